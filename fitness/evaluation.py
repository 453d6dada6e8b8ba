"""What an evaluation of one genome says, and the contract of whatever produces it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from search_spaces.genome import BoolArray, FloatArray, genome_digest

#: Name of the metric that only evaluations have which were stopped early: what the objective over all images exceeds.
LOWER_BOUND = "lower_bound"


@dataclass(frozen=True)
class Evaluation:
    """The quality of one genome at one rung of the fidelity ladder.

    Attributes:
        digest: Identity of the genome, :func:`search_spaces.genome.genome_digest`.
        rung: Name of the rung that produced the number.
        n_images: Images that the number rests on; 0 where no image was passed forward. Fewer than the rung has where it
            was stopped early.
        objective: What the search minimises; ``inf`` for a failed evaluation, never NaN nor ``-inf``.
        metrics: Further figures by name (``kl``, ``cross_entropy``, ``accuracy`` as a fraction, ...).
        seconds: Wall time; not part of equality, since it differs between equal runs.
        failure: Why the evaluation failed, as ``reason: particulars``; empty when it did not.
    """

    digest: str
    rung: str
    n_images: int
    objective: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    failure: str = ""

    def __post_init__(self) -> None:
        """Turn an objective that is not finite into a failed evaluation, so that no comparison ever meets a NaN."""
        if not math.isfinite(self.objective):
            reason = "the objective is NaN" if math.isnan(self.objective) else "the objective is infinite"
            object.__setattr__(self, "objective", math.inf)
            object.__setattr__(self, "failure", self.failure or reason)

    @property
    def is_stopped(self) -> bool:
        """Whether it was given up early: the objective is that of the first images alone."""
        return LOWER_BOUND in self.metrics

    @property
    def is_whole(self) -> bool:
        """Whether the objective is that of all images: it neither failed nor was stopped."""
        return not self.failure and not self.is_stopped

    def answers(self, limit: float) -> bool:
        """Return whether it says all that is of use where objectives above ``limit`` are of none."""
        return not self.is_stopped or self.metrics[LOWER_BOUND] > limit

    @property
    def failure_reason(self) -> str:
        """The part of ``failure`` that equal failures of other genomes share; empty where there is none."""
        return self.failure.partition(":")[0]


def evaluations_without_images(
    genomes: BoolArray,
    rung: str,
    objectives: Sequence[float] | FloatArray,
    metrics: Sequence[Mapping[str, float]],
    seconds: float,
) -> list[Evaluation]:
    """Return one evaluation per row of ``genomes`` ``(n, n_genes)``, which were judged at once in ``seconds``."""
    share = seconds / max(len(genomes), 1)
    return [
        Evaluation(genome_digest(genome), rung, 0, float(objective), entry, share)
        for genome, objective, entry in zip(genomes, objectives, metrics, strict=True)
    ]


class Evaluator(Protocol):
    """Judges genomes. Pure: the same genome at the same rung gives the same evaluation, whatever came before."""

    @property
    def rungs(self) -> Sequence[str]:
        """Names of the rungs, cheapest first."""

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes`` ``(n, n_genes)``, in order; failures are values, not errors."""


@runtime_checkable
class StoppingEvaluator(Evaluator, Protocol):
    """Gives a genome up once it is sure to be of no use. Pure, too: evaluations follow from genome, rung and limit."""

    def evaluate_up_to(self, genomes: BoolArray, rung: str, limit: float) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes`` ``(n, n_genes)``, in order.

        One whose objective is at most ``limit`` equals that of :meth:`evaluate`. Any other may be stopped as soon as it
        is proven to exceed it.
        """
