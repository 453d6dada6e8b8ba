from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from evoprune.interruption import InterruptedRunError, first_interrupt_sets, stops_on_interrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _hangups_are_heard() -> Iterator[None]:
    """Under ``nohup`` they are ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_one_stops(number: signal.Signals) -> None:
    announced: list[int] = []
    before = [signal.getsignal(each) for each in SIGNALS]
    with stops_on_interrupt(lambda: announced.append(1)) as requested:
        assert not requested.is_set()
        os.kill(os.getpid(), number)
        assert requested.is_set()
        assert announced == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert announced == [1]
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_search_hears_of_a_signal_and_so_does_who_tells_the_user(number: signal.Signals) -> None:
    announced: list[int] = []
    event = threading.Event()
    with stops_on_interrupt(lambda: announced.append(1)) as requested:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # another's, such as Ray's
        with first_interrupt_sets(event):
            os.kill(os.getpid(), number)
            assert event.is_set()
            assert requested.is_set()
            assert announced == [1]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_a_handler_that_would_end_the_process_is_not_told() -> None:
    def handler(*_: object) -> None:
        raise SystemExit

    handler.__module__ = "ray._private.worker"
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with first_interrupt_sets(event):
            os.kill(os.getpid(), signal.SIGTERM)
        assert event.is_set()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stops_on_interrupt(lambda: None) as requested:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not requested.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_is_no_reason_to_fail() -> None:
    def announce() -> None:
        raise OSError

    with stops_on_interrupt(announce) as requested:
        os.kill(os.getpid(), signal.SIGHUP)
        assert requested.is_set()


def test_another_thread_has_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def work() -> None:
        with stops_on_interrupt(lambda: None) as requested:
            seen.append(requested.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_message_says_how_to_go_on() -> None:
    assert str(InterruptedRunError(Path("runs/x"), "generation 3")) == (
        "stopped after generation 3; continue with: evoprune resume runs/x"
    )
    assert str(InterruptedRunError(Path("my runs/x"))).endswith("continue with: evoprune resume 'my runs/x'")
    assert str(InterruptedRunError(None)) == "stopped; nothing was written; start it again"
