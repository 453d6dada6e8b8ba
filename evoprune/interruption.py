"""One Ctrl-C stops a job at its next safe point; a second one stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from evoprune.observer import Observer
from search_spaces.errors import EvoPruneError


class InterruptedRunError(EvoPruneError):
    """A job was asked to stop and did; ``run`` can be resumed, where the job had one already."""

    def __init__(self, run: Path | None, done: str = "") -> None:
        """Say what was ``done``, and how to go on."""
        self.run = run
        remedy = f"continue with: evoprune resume {run}" if run else "nothing was written; start it again"
        super().__init__(f"stopped{f' after {done}' if done else ''}; {remedy}")


def stop_if_asked(observer: Observer, run: Path | None, done: str) -> None:
    """End the job here where ``observer`` asks for it.

    Raises:
        InterruptedRunError: It does.
    """
    if observer.should_stop():
        raise InterruptedRunError(run, done)


@contextmanager
def stops_on_interrupt(announce: Callable[[], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets; the next one raises ``KeyboardInterrupt``.

    Args:
        announce: Called once, at the first signal.

    Outside of the main thread, where Python allows no signal handler, the event is never set.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def handle(_: int, __: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        announce()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def first_interrupt_sets(event: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set ``event`` and every further one raise KeyboardInterrupt, in the main thread.

    A handler that was installed before, other than Python's own, hears of the first one too: it may tell the user.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
