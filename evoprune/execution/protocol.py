"""The contract of executors, and what all of them do with a chunk of genomes."""

from __future__ import annotations

import math
import traceback
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fitness.evaluation import Evaluation, Evaluator, StoppingEvaluator
from search_spaces.errors import ExecutionError
from search_spaces.genome import BoolArray, IntArray, genome_digest

_N_CHUNKS_PER_WORKER = 8
_MAX_CHUNK_SIZE = 64


@dataclass(frozen=True)
class EvaluatedChunk:
    """Finished evaluations: ``evaluations[i]`` judges row ``indices[i]`` of the requested genomes."""

    indices: IntArray
    evaluations: tuple[Evaluation, ...]


class Executor(Protocol):
    """Evaluates genomes somewhere. Results do not depend on the number of workers nor on the order of completion.

    That rests on the evaluator: its evaluation of a genome must not depend on the other genomes of the call.
    """

    @property
    def n_workers(self) -> int:
        """How many genomes are evaluated at the same time."""

    def stream(self, genomes: BoolArray, rung: str, limit: float = math.inf) -> Generator[EvaluatedChunk, None, None]:
        """Yield the evaluations of ``genomes`` ``(n, n_genes)`` in chunks as they finish, each row exactly once.

        A genome whose evaluation raises, or kills its worker repeatedly, comes back as a failed evaluation; one that is
        sure to exceed ``limit`` may come back as a stopped one. Closing the iterator abandons what has not begun.

        Raises:
            ExecutionError: Workers cannot be had, or the evaluator breaks its contract.
        """

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes``, in order."""

    def close(self) -> None:
        """Give all workers back; may be called twice."""


class Recipe(Protocol):
    """Builds an evaluator on a worker. Picklable, small without its arrays, free of user code and of live networks."""

    @property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Large content by name; workers of one machine share it without copies, read-only."""

    def with_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Recipe:
        """Return this recipe with its content replaced by ``arrays`` (``{}`` strips it for the journey)."""

    def build(self) -> Evaluator:
        """Return the evaluator."""


def collect(chunks: Iterator[EvaluatedChunk], n_genomes: int) -> list[Evaluation]:
    """Return the evaluations of ``chunks`` by index.

    Raises:
        ExecutionError: A row is missing.
    """
    placed: list[Evaluation | None] = [None] * n_genomes
    for chunk in chunks:
        for index, evaluation in zip(chunk.indices.tolist(), chunk.evaluations, strict=True):
            placed[index] = evaluation
    evaluations = [evaluation for evaluation in placed if evaluation is not None]
    if len(evaluations) != n_genomes:
        raise ExecutionError(
            f"an executor must answer for every genome, but answered for {len(evaluations)} of {n_genomes}; "
            "this is a defect of the executor"
        )
    return evaluations


def split_indices(n_genomes: int, n_workers: int, chunk_size: int | None) -> list[IntArray]:
    """Return ``range(n_genomes)`` cut into chunks of ``chunk_size``, by default small enough to keep workers level."""
    size = chunk_size or min(max(1, n_genomes // (_N_CHUNKS_PER_WORKER * n_workers)), _MAX_CHUNK_SIZE)
    indices = np.arange(n_genomes, dtype=np.int64)
    return [indices[start : start + size] for start in range(0, n_genomes, size)]


def evaluate_chunk(
    evaluator: Evaluator, genomes: BoolArray, rung: str, limit: float = math.inf
) -> tuple[Evaluation, ...]:
    """Return one evaluation per row of ``genomes``; where the call raises, each genome is tried on its own.

    An evaluator that can stops those that are sure to exceed ``limit``.

    Raises:
        ExecutionError: The evaluator answers with other genomes than it was asked for.
    """
    try:
        if limit < math.inf and isinstance(evaluator, StoppingEvaluator):
            evaluations = list(evaluator.evaluate_up_to(genomes, rung, limit))
        else:
            evaluations = list(evaluator.evaluate(genomes, rung))
    except Exception as error:  # whatever one genome does to the evaluator must not end a search of hours
        if len(genomes) > 1:
            return tuple(evaluate_chunk(evaluator, genomes[i : i + 1], rung, limit)[0] for i in range(len(genomes)))
        return (failed_evaluation(genomes[0], rung, describe(error)),)
    expected = [(genome_digest(genome), rung) for genome in genomes]
    received = [(evaluation.digest, evaluation.rung) for evaluation in evaluations]
    if received != expected:
        raise ExecutionError(
            f"an evaluator must answer for the genomes and the rung it was asked for, in order, but {expected} was "
            f"answered by {received}; mend {type(evaluator).__name__}.evaluate"
        )
    return tuple(evaluations)


def failed_evaluation(genome: BoolArray, rung: str, failure: str) -> Evaluation:
    """Return the evaluation of a ``genome`` that could not be judged."""
    return Evaluation(genome_digest(genome), rung, n_images=0, objective=math.inf, failure=failure)


def describe(error: BaseException) -> str:
    """Return kind, message and place of ``error`` on one line, the same on every worker."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
