"""One Ctrl-C, or SIGTERM or SIGHUP, stops a job at its next safe point; a second one stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from evoprune.observer import Observer
from evoprune.run_directory import resume_command
from search_spaces.errors import EvoPruneError

#: What a person, a scheduler or a terminal that is closed sends; not every system has all of them.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class InterruptedRunError(EvoPruneError):
    """A job was asked to stop and did; ``run`` can be resumed, where the job had one already."""

    def __init__(self, run: Path | None, done: str = "") -> None:
        """Say what was ``done``, and how to go on."""
        self.run = run
        remedy = f"continue with: {resume_command(run)}" if run else "nothing was written; start it again"
        super().__init__(f"stopped{f' after {done}' if done else ''}; {remedy}")


def stop_if_asked(observer: Observer, run: Path | None, done: str) -> None:
    """End the job here where ``observer`` asks for it.

    Raises:
        InterruptedRunError: It does.
    """
    if observer.should_stop():
        raise InterruptedRunError(run, done)


class _Announcer:
    """A signal handler that sets an event the first time, and raises ``KeyboardInterrupt`` from then on."""

    def __init__(self, requested: threading.Event, announce: Callable[[], None]) -> None:
        self._requested = requested
        self._announce = announce

    def __call__(self, _: int, __: FrameType | None) -> None:
        if self._requested.is_set():
            raise KeyboardInterrupt
        self._requested.set()
        with suppress(OSError):  # the terminal may be gone, which SIGHUP tells
            self._announce()


@contextmanager
def stops_on_interrupt(announce: Callable[[], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT, SIGTERM or SIGHUP sets; the next one raises ``KeyboardInterrupt``.

    Args:
        announce: Called once, at the first signal.

    Outside of the main thread, where Python allows no signal handler, the event is never set. A signal that is ignored,
    as SIGHUP is under ``nohup``, stays so.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    handler = _Announcer(requested, announce)
    previous = _install(handler)
    try:
        yield requested
    finally:
        _restore(previous)


@contextmanager
def first_interrupt_sets(event: threading.Event) -> Iterator[None]:
    """Let the first SIGINT, SIGTERM or SIGHUP set ``event`` and every further one raise KeyboardInterrupt.

    In the main thread only. A handler that was installed before hears of the first one too: it may tell the user.
    Python's own does not, nor Ray's, which would end the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        if _may_be_told(previous[number]):
            previous[number](number, frame)

    previous = _install(handle)
    outer = previous[signal.SIGINT]
    if isinstance(outer, _Announcer):  # for all of them, but Ray takes SIGTERM for itself when it is imported
        previous = dict.fromkeys(previous, outer)
    try:
        yield
    finally:
        _restore(previous)


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let ``handler`` take every signal that stops a job and return what took them before."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    heard = [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python


def _may_be_told(handler: Any) -> bool:
    is_rays = str(getattr(handler, "__module__", "")).partition(".")[0] == "ray"
    return callable(handler) and handler is not signal.default_int_handler and not is_rays
