"""How a long job tells what it is doing, and learns that it should stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """Receives the events of one job, in order, on the thread that started it."""

    def on_note(self, text: str) -> None:
        """Something happened that a person should know, such as that weights were trained here."""

    def on_stage(self, name: str, n_steps: int | None) -> None:
        """A stage begins; ``n_steps`` is None where its length is unknown."""

    def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:
        """``n_done`` steps of the stage are done, parts of one included; ``figures`` by name are worth showing."""

    def on_end(self) -> None:
        """The job ends, whatever the reason."""

    def should_stop(self) -> bool:
        """Whether the job should stop at its next safe point."""


class SilentObserver:
    """Shows nothing and never stops; the default from Python."""

    def on_note(self, text: str) -> None:
        """Ignore the event."""

    def on_stage(self, name: str, n_steps: int | None) -> None:
        """Ignore the event."""

    def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:
        """Ignore the event."""

    def on_end(self) -> None:
        """Ignore the event."""

    def should_stop(self) -> bool:
        """Return False."""
        return False
