"""What a search and its runner hand each other: requests to evaluate genomes, and the best genome so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, OptionError
from search_spaces.genome import BoolArray

Role = Literal["probe", "screen", "judge", "elite"]


@dataclass(frozen=True)
class EvaluationRequest:
    """Genomes that the search wants to know about; ``(generation, rung)`` is unique within a search.

    Attributes:
        generation: 0 for the initial population.
        rung: Rung of the fidelity ladder.
        role: What the rung is used for; a ``probe`` measures the space and is no part of a population.
        genomes: ``(n, n_genes)``, distinct and feasible; ``n`` may be 0.
        digests: Identities of the genomes.
        since: The first generation of the dense network that they are cuts of; what was judged for another one does
            not answer.
        limit: Objectives above it are of no use: an evaluation may end once it is sure to exceed it. The search goes on
            as it would with the true objective, but for what it learns from how bad such a genome is.
    """

    generation: int
    rung: str
    role: Role
    genomes: BoolArray
    digests: tuple[str, ...]
    since: int = 0
    limit: float = math.inf


@dataclass(frozen=True)
class BestGenome:
    """The best solution so far: ``objective`` is a number of ``rung``."""

    genome: BoolArray
    digest: str
    objective: float
    rung: str


def check_answers(request: EvaluationRequest, evaluations: Sequence[Evaluation]) -> None:
    """Check that ``evaluations`` answer ``request``, one by one.

    Raises:
        OptionError: They do not.
    """
    received = [(evaluation.digest, evaluation.rung) for evaluation in evaluations]
    expected = [(digest, request.rung) for digest in request.digests]
    if received != expected:
        raise OptionError(
            f"`tell` needs one evaluation per requested genome, in order: {len(expected)} at {request.rung!r}, but "
            f"got {len(received)}, the first that differs being "
            f"{next((r for r, e in zip(received, expected, strict=False) if r != e), 'missing')}"
        )


def check_any_succeeded(evaluations: Sequence[Evaluation]) -> None:
    """Check that an initial population has a member to breed from.

    Raises:
        ExecutionError: All of them failed.
    """
    if not any(math.isfinite(evaluation.objective) for evaluation in evaluations):
        raise ExecutionError(
            f"at least one genome of the initial population must be evaluated, but all {len(evaluations)} failed; "
            f"the first: {evaluations[0].failure or 'objective is infinite'}"
        )
