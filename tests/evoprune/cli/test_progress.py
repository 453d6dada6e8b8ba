from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from evoprune.cli import progress
from evoprune.cli.progress import RichObserver


def _observer(*, is_terminal: bool) -> tuple[RichObserver, io.StringIO, threading.Event]:
    stream, stop = io.StringIO(), threading.Event()
    console = Console(file=stream, force_terminal=is_terminal, width=200, highlight=False, color_system=None)
    return RichObserver(console, stop), stream, stop


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    observer, stream, _ = _observer(is_terminal=False)
    observer.on_note("read [bold]weights[/bold]")
    observer.on_stage("generations", 21)
    observer.on_step(1, {"best kl": 0.25})
    now += 20
    observer.on_step(2.5, {"best kl": 0.125, "networks": 48})
    now += 5
    observer.on_step(3, {"best kl": 0.125})
    observer.on_end()
    assert stream.getvalue().splitlines() == [
        "read [bold]weights[/bold]",
        "generations",
        "generations 2.5/21  best kl 0.125  networks 48",
    ]


def test_a_bar_on_a_terminal() -> None:
    observer, stream, _ = _observer(is_terminal=True)
    observer.on_stage("generations", 21)
    observer.on_step(2, {"best kl": 0.125})
    observer.on_stage("testing", None)
    observer.on_end()
    observer.on_end()
    assert "generations" in stream.getvalue()


def test_it_stops_when_asked() -> None:
    observer, _, stop = _observer(is_terminal=False)
    assert not observer.should_stop()
    stop.set()
    assert observer.should_stop()
