"""The events of a search, as an observer shows them."""

from __future__ import annotations

from evoprune.callbacks import Callback, EvaluationsFinished, GenerationFinished, SearchStarted
from evoprune.observer import Observer


class SearchProgress(Callback):
    """Passes generations, the best objective and the number of evaluated networks on to an observer."""

    def __init__(self, observer: Observer, objective: str) -> None:
        self._observer = observer
        self._objective = objective
        self._figures: dict[str, float] = {}

    def on_start(self, event: SearchStarted) -> None:
        """Begin the stage, where an earlier session left it."""
        self._observer.on_stage("generations", event.n_generations + 1)
        self._observer.on_step(event.generation + 1, self._figures)

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        """Show the part of a generation that is judged."""
        self._figures["networks"] = event.n_evaluations
        if event.role == "judge":
            share = event.n_done / event.n_requested if event.n_requested else 1.0
            # Never quite done before the checkpoint is written.
            self._observer.on_step(event.generation + min(share, 0.99), self._figures)

    def on_generation(self, event: GenerationFinished) -> None:
        """Show the best objective so far."""
        self._figures[f"best {self._objective}"] = event.best.objective
        self._figures["networks"] = event.n_evaluations
        self._observer.on_step(event.generation + 1, self._figures)

    def on_warning(self, message: str) -> None:
        """Pass it on."""
        self._observer.on_note(f"warning: {message}")
