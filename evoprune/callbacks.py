"""What a running search tells whoever listens: six events, in the thread that runs the search.

class Printer(Callback):
    def on_generation(self, event):
        print(event.generation, event.best.objective)

evoprune.search("vgg16", "digits", callbacks=[Printer()])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evoprune.search import BestGenome
from fitness.evaluation import Evaluation


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


@dataclass(frozen=True)
class SearchOutcome:
    """How a session of a search ended.

    Attributes:
        status: ``finished`` by a stop rule, or ``interrupted`` by the user.
        reason: Which rule, or what interrupted.
        best: The best genome so far; None where the initial population was not judged.
        generation: The last finished generation.
        n_evaluations: Evaluations of the whole run, at any rung.
        n_cached: Requested evaluations that an earlier generation had made.
        elapsed_s: Seconds of work in all sessions.
    """

    status: Literal["finished", "interrupted"]
    reason: str
    best: BestGenome | None
    generation: int
    n_evaluations: int
    n_cached: int
    elapsed_s: float


class Callback:
    """Listens to a search; override what is of interest.

    A callback cannot cost a run its work: one that raises is named in ``log.jsonl`` and to the others, and hears
    nothing more in this session; the search goes on. ``KeyboardInterrupt`` is no error: it stops the search, which can
    be resumed.
    """

    def on_start(self, event: SearchStarted) -> None:
        """A session begins."""

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        """Evaluations are stored."""

    def on_generation(self, event: GenerationFinished) -> None:
        """A generation is done and saved."""

    def on_warning(self, message: str) -> None:
        """Something went wrong that does not end the search; may come before :meth:`on_start`."""

    def on_end(self, outcome: SearchOutcome) -> None:
        """The session ends, finished or interrupted."""

    def on_failure(self, message: str) -> None:
        """An error ends the session, perhaps before :meth:`on_start`; it is raised again afterwards."""


class Listeners:
    """The callbacks of a session, in order, without those that have raised.

    Args:
        callbacks: Whom to tell.
        log_warning: Where a failure is written down.
    """

    def __init__(self, callbacks: Sequence[Callback], log_warning: Callable[[str], None]) -> None:
        self._callbacks = list(callbacks)
        self._log_warning = log_warning

    def start(self, event: SearchStarted) -> None:
        """Tell that a session begins."""
        self._tell(lambda callback: callback.on_start(event))

    def evaluations(self, event: EvaluationsFinished) -> None:
        """Tell that evaluations are stored."""
        self._tell(lambda callback: callback.on_evaluations(event))

    def generation(self, event: GenerationFinished) -> None:
        """Tell that a generation is saved."""
        self._tell(lambda callback: callback.on_generation(event))

    def warning(self, message: str) -> None:
        """Write ``message`` down and tell it."""
        self._log_warning(message)
        self._tell(lambda callback: callback.on_warning(message))

    def end(self, outcome: SearchOutcome) -> None:
        """Tell that the session ends."""
        self._tell(lambda callback: callback.on_end(outcome))

    def failure(self, message: str) -> None:
        """Tell that an error ends the session."""
        self._tell(lambda callback: callback.on_failure(message))

    def _tell(self, event: Callable[[Callback], None]) -> None:
        failures = [(callback, self._failure_of(callback, event)) for callback in tuple(self._callbacks)]
        self._callbacks = [callback for callback, failure in failures if failure is None]
        for callback, failure in failures:
            if failure is not None:
                name = type(callback).__name__
                self.warning(f"callback {name} raised {failure}; it hears nothing more, the search goes on")

    @staticmethod
    def _failure_of(callback: Callback, event: Callable[[Callback], None]) -> str | None:
        try:
            event(callback)
        except Exception as error:  # code of the user's, or of a tracking service, must not end a search of hours
            return f"{type(error).__name__}: {error}"
        return None
