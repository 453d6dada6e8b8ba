"""Rich progress of a job: its stage, the best objective so far, and an estimate of the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evoprune.cli.console import stderr_console
from evoprune.interruption import stops_on_interrupt

_SECONDS_PER_LINE = 15.0


class RichObserver:
    """Shows the events of a job: as bars on a terminal, elsewhere as lines, a few a minute."""

    def __init__(self, console: Console, stop_requested: threading.Event) -> None:
        self._console = console
        self._stop_requested = stop_requested
        self._task: TaskID | None = None
        self._stage: tuple[str, int | None] = ("", None)
        self._last_line_at = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_note(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._console.print(escape(text), soft_wrap=True)

    def on_stage(self, name: str, n_steps: int | None) -> None:
        """Begin a new bar; elsewhere than on a terminal, print its name."""
        self._stage = (name, n_steps)
        self._last_line_at = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(escape(name), soft_wrap=True)
            return
        self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escape(name), total=n_steps, figures="")

    def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:
        """Move the bar on; elsewhere than on a terminal, print a line from time to time."""
        text = "  ".join(f"{escape(name)} {value:.4g}" for name, value in figures.items())
        if self._task is not None:
            self._progress.update(self._task, completed=n_done, figures=text)
        elif time.monotonic() - self._last_line_at >= _SECONDS_PER_LINE:
            self._last_line_at = time.monotonic()
            name, n_steps = self._stage
            self._console.print(f"{escape(name)} {n_done:.4g}/{n_steps or '?'}  {text}", soft_wrap=True)

    def on_end(self) -> None:
        """Take the bars away."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.stop()

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop_requested.is_set()


@contextmanager
def rich_observer() -> Iterator[RichObserver]:
    """Yield an observer that shows the job on stderr and stops it on Ctrl-C."""
    console = stderr_console()

    def announce() -> None:
        console.print("[yellow]stopping at the next safe point; press Ctrl-C again to stop at once[/yellow]")

    with stops_on_interrupt(announce) as requested:
        observer = RichObserver(console, requested)
        try:
            yield observer
        finally:
            observer.on_end()
