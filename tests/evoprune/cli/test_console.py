"""Tables on stdout: whole, however narrow the terminal is, and wherever there is none."""

from __future__ import annotations

import pytest
from rich.table import Table

from evoprune.cli.console import print_whole, stdout_console
from tests.integration.command_line import run


def _table() -> Table:
    table = Table()
    for heading in ("a heading of some length", "figures"):
        table.add_column(heading)
    table.add_row("a cell that is longer than any narrow terminal", "12.34M")
    return table


@pytest.mark.parametrize("is_terminal", [False, True])
def test_no_cell_is_cut(is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
    print_whole(_table())
    shown = capsys.readouterr().out
    assert "a cell that is longer than any narrow terminal" in shown
    assert "12.34M" in shown
    assert "…" not in shown


def test_a_terminal_keeps_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert stdout_console().width > 1000
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert stdout_console().width == 30


def test_inspecting_shows_whole_names_in_a_narrow_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = run("inspect", "--model", "resnet20", "--model-args", '{"width": 0.25}').stdout
    assert "…" not in shown
    assert "layer3.2.conv1" in shown
