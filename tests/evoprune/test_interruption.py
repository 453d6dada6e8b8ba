from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from evoprune.interruption import InterruptedRunError, stops_on_interrupt


def test_the_first_ctrl_c_asks_and_the_second_one_stops() -> None:
    announced: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with stops_on_interrupt(lambda: announced.append(1)) as requested:
        assert not requested.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert requested.is_set()
        assert announced == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert announced == [1]
    assert signal.getsignal(signal.SIGINT) is before


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
    assert str(InterruptedRunError(None)) == "stopped; nothing was written; start it again"
