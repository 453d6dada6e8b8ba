"""A bound on how long running a user's code may take."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from search_spaces.errors import TraceError


@contextlib.contextmanager
def time_limit(seconds: float, doing: str) -> Iterator[None]:
    """Raise :class:`TraceError` when the block takes longer than ``seconds``.

    Works by an interval timer, hence only in the main thread of a POSIX process; elsewhere the block runs without
    limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(_signum: int, _frame: FrameType | None) -> None:
        raise TraceError(
            f"{doing} must end within time_limit_s={seconds:g} s, but did not; raise the limit, or pass a network "
            "without loops that unroll"
        )

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
