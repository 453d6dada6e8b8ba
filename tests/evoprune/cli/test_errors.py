from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import typer

from evoprune.artefact import ArtefactError
from evoprune.cli import latency_command, search_commands
from evoprune.cli.errors import RENAMED, reports_errors
from evoprune.exporting import ExportError
from evoprune.interruption import InterruptedRunError
from evoprune.options import LatencyOptions, SearchOptions
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


def test_options_are_called_what_they_are_called_in_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def command(generations: int = 0, cost_weight: float = 1.0) -> None:
        raise OptionError(
            f"`n_generations` {generations} and cost_weight={cost_weight}, not round_to or /a/n_generations"
        )

    with pytest.raises(typer.Exit):
        command()
    message = "`--generations` 0 and --cost-weight=1.0, not round_to or /a/n_generations"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_every_option_of_another_name_is_one_of_a_command() -> None:
    commands = [search_commands.search, search_commands.resume, latency_command.latency]
    parameters = {name for command in commands for name in inspect.signature(command).parameters}
    assert set(RENAMED.values()) <= parameters
    assert not set(RENAMED) & parameters
    options = {*SearchOptions.model_fields, *LatencyOptions.model_fields}
    assert set(RENAMED) <= options


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
