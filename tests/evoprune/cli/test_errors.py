from __future__ import annotations

from pathlib import Path

import pytest
import typer

from evoprune.artefact import ArtefactError
from evoprune.cli.errors import reports_errors
from evoprune.exporting import ExportError
from evoprune.interruption import InterruptedRunError
from search_spaces.errors import (
    BudgetError,
    DataError,
    EvoPruneError,
    ExecutionError,
    OptionError,
    RunDirectoryError,
    TraceError,
    UnknownNameError,
    WeightsError,
)


def _exit_code(error: BaseException) -> int:
    @reports_errors
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    return int(caught.value.exit_code)


@pytest.mark.parametrize(
    "error",
    [
        OptionError("m"),
        UnknownNameError("model", "a", ["b"]),
        BudgetError("m"),
        WeightsError("m"),
        DataError("m"),
        RunDirectoryError("m"),
        ArtefactError("m"),
    ],
)
def test_wrong_use_is_2(error: EvoPruneError, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(error) == 2
    assert capsys.readouterr() == ("", f"error: {error}\n")


@pytest.mark.parametrize("error", [ExecutionError("m"), TraceError("m"), ExportError("m"), EvoPruneError("m")])
def test_a_failed_run_is_1(error: EvoPruneError, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(error) == 1
    assert capsys.readouterr() == ("", "error: m\n")


def test_an_interrupted_run_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(InterruptedRunError(Path("run"))) == 130
    assert capsys.readouterr().err == "stopped; continue with: evoprune resume run\n"
    assert _exit_code(KeyboardInterrupt()) == 130


def test_a_defect_is_one_message_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVOPRUNE_DEBUG", raising=False)
    assert _exit_code(ZeroDivisionError("division by zero [ok]")) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: unexpected ZeroDivisionError: division by zero [ok]\n")
    assert "EVOPRUNE_DEBUG=1" in message
    assert "Traceback" not in message


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_DEBUG", "1")

    @reports_errors
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_markup_in_messages_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    assert _exit_code(OptionError(f"pip install 'evoprune[onnx]' {long}")) == 2
    assert capsys.readouterr().err == f"error: pip install 'evoprune[onnx]' {long}\n"
