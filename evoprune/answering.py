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

    Args:
        request: Genomes and the rung to judge them by.
        space: Costs the genomes, for the record.
        executor: Evaluates what is not stored.
        store: Of the run; open for writing.
        on_known: Told what was stored already, before anything is evaluated.
        on_chunk: Told of every chunk when it is stored, and how many genomes of the request are answered; an error that
            it raises ends the evaluation.

    Raises:
        ExecutionError: Workers cannot be had, or do not answer.
        RunDirectoryError: The store cannot be written.
    """
    stored = store.get_many(request.digests, request.rung)
    known = {digest: record for digest, record in stored.items() if record.generation >= request.since}
    placed = {digest: record.evaluation for digest, record in known.items()}
    on_known(tuple(known.values()))
    missing = np.flatnonzero([digest not in placed for digest in request.digests])
    if len(missing):
        genomes = request.genomes[missing]
        macs, n_params = space.macs(genomes), space.n_params(genomes)
        with closing(executor.stream(genomes, request.rung)) as chunks:
            for chunk in chunks:
                records = [
                    StoredEvaluation(
                        genomes[i], int(macs[i]), int(n_params[i]), request.generation, int(missing[i]), evaluation
                    )
                    for i, evaluation in zip(chunk.indices, chunk.evaluations, strict=True)
                ]
                store.put_many(records)
                placed.update((record.evaluation.digest, record.evaluation) for record in records)
                on_chunk(chunk.evaluations, len(placed))
    if len(placed) != len(request.digests):
        raise ExecutionError(
            f"an executor must answer for every genome, but answered for {len(placed)} of {len(request.digests)}; "
            "this is a defect of the executor"
        )
    return [placed[digest] for digest in request.digests]
