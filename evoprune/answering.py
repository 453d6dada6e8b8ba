"""Answers a request for evaluations: what is stored from the store, the rest from an executor, stored as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np

from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from evoprune.execution.protocol import Executor
from evoprune.search import EvaluationRequest, Space
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError


def answer_request(
    request: EvaluationRequest,
    space: Space,
    executor: Executor,
    store: EvaluationStore,
    *,
    on_known: Callable[[Sequence[StoredEvaluation]], None],
    on_chunk: Callable[[tuple[Evaluation, ...], int], None],
) -> list[Evaluation]:
    """Return the evaluations of ``request``, in its order; what is new is stored.

    What is stored answers where it was judged for the same ``since``, the same network then. An evaluation that was
    stopped early answers a limit that it is sure to exceed; for any other one it is made anew, and replaced.

    Failures of genomes that could not be run at all are stored once another one of the request could: where none can,
    it is the machine that is broken, and a run that continues must not find its genomes condemned.

    Args:
        request: Genomes and the rung to judge them by.
        space: Costs the genomes, for the record.
        executor: Evaluates what is not stored.
        store: Of the run; open for writing.
        on_known: Told what was stored already, before anything is evaluated.
        on_chunk: Told of every chunk, and how many genomes of the request are answered with it; an error that it raises
            ends the evaluation.

    Raises:
        ExecutionError: Workers cannot be had or do not answer, or none of several genomes could be run.
        RunDirectoryError: The store cannot be written.
    """
    stored = store.get_many(request.digests, request.rung, since=request.since)
    known = {digest: record for digest, record in stored.items() if record.evaluation.answers(request.limit)}
    outdated = stored.keys() - known.keys()
    placed = {digest: record.evaluation for digest, record in known.items()}
    on_known(tuple(known.values()))
    missing = np.flatnonzero([digest not in placed for digest in request.digests])
    if len(missing):
        genomes = request.genomes[missing]
        macs, n_params = space.macs(genomes), space.n_params(genomes)
        withheld: list[StoredEvaluation] = []
        can_run = any(not _could_not_run(evaluation) for evaluation in placed.values())
        with closing(executor.stream(genomes, request.rung, request.limit)) as chunks:
            for chunk in chunks:
                records = [
                    StoredEvaluation(
                        genomes[i], int(macs[i]), int(n_params[i]), request.generation, int(missing[i]), evaluation
                    )
                    for i, evaluation in zip(chunk.indices, chunk.evaluations, strict=True)
                ]
                withheld += records
                can_run = can_run or any(not _could_not_run(evaluation) for evaluation in chunk.evaluations)
                if can_run:
                    store.put_many(withheld, since=request.since, instead_of=outdated)
                    withheld = []
                placed.update((record.evaluation.digest, record.evaluation) for record in records)
                on_chunk(chunk.evaluations, len(placed))
        if len(withheld) > 1 and request.role != "elite":  # elites are few, and alike
            raise ExecutionError(
                f"at least one network of a generation must be run, but all {len(withheld)} of generation "
                f"{request.generation} failed at rung {request.rung!r}; the first: {withheld[0].evaluation.failure}; "
                "mend what is broken, then continue with `evoprune resume`: these failures were not kept"
            )
        store.put_many(withheld, since=request.since, instead_of=outdated)
    if len(placed) != len(request.digests):
        raise ExecutionError(
            f"an executor must answer for every genome, but answered for {len(placed)} of {len(request.digests)}; "
            "this is a defect of the executor"
        )
    return [placed[digest] for digest in request.digests]


def _could_not_run(evaluation: Evaluation) -> bool:
    """Return whether an error or the death of its worker took the place of the ``evaluation``."""
    return bool(evaluation.failure) and evaluation.n_images == 0
