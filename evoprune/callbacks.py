"""What a running search tells whoever listens: four events, in the thread that runs the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitness.evaluation import Evaluation

if TYPE_CHECKING:
    from evoprune.runner import SearchOutcome
    from evoprune.search import BestGenome


@dataclass(frozen=True)
class SearchStarted:
    """A session begins.

    Attributes:
        run_path: The run directory.
        n_generations: Generations the search is configured for.
        population_size: Survivors per generation.
        n_workers: Genomes evaluated at the same time.
        generation: The last finished generation of an earlier session; -1 for a new run.
        elapsed_s: Seconds of work in earlier sessions.
    """

    run_path: Path
    n_generations: int
    population_size: int
    n_workers: int
    generation: int
    elapsed_s: float


@dataclass(frozen=True)
class EvaluationsFinished:
    """A chunk of a request is evaluated and stored; the first event of a request holds what the store knew.

    Attributes:
        generation: Generation in the making.
        rung: Rung of the fidelity ladder.
        role: ``screen``, ``judge`` or ``elite``.
        evaluations: What is new since the last event.
        n_done: Genomes of the request that are done.
        n_requested: Genomes of the request.
        n_evaluations: Evaluations of the whole run.
        n_cached: Evaluations of the whole run that an earlier generation had made.
        elapsed_s: Seconds of work in the whole run.
    """

    generation: int
    rung: str
    role: str
    evaluations: tuple[Evaluation, ...]
    n_done: int
    n_requested: int
    n_evaluations: int
    n_cached: int
    elapsed_s: float


@dataclass(frozen=True)
class GenerationFinished:
    """A generation is judged and its checkpoint written.

    Attributes:
        generation: Its number; 0 is the initial population.
        row: Its row of the logbook.
        best: The best genome so far.
        n_evaluations: Evaluations of the whole run.
        n_cached: Evaluations of the whole run that an earlier generation had made.
        elapsed_s: Seconds of work in the whole run.
    """

    generation: int
    row: Mapping[str, Any]
    best: BestGenome
    n_evaluations: int
    n_cached: int
    elapsed_s: float


class Callback:
    """Listens to a search; override what is of interest. An error in a callback ends the search."""

    def on_start(self, event: SearchStarted) -> None:
        """A session begins."""

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        """Evaluations are stored."""

    def on_generation(self, event: GenerationFinished) -> None:
        """A generation is done and saved."""

    def on_end(self, outcome: SearchOutcome) -> None:
        """The session ends, finished or interrupted."""
