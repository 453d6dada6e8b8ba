from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import typer.main
from rich.text import Text
from typer.core import TyperGroup

from evoprune.catalogue import catalogue
from evoprune.cli.app import app
from evoprune.cli.list_command import KINDS
from tests.integration.command_line import run


def parameters() -> Iterator[tuple[str, str, str]]:
    """Yield command, option and help text."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        for parameter in command.params:
            yield name, parameter.name or "", getattr(parameter, "help", None) or ""


@pytest.mark.parametrize(("command", "parameter", "text"), list(parameters()))
def test_help_is_a_sentence_that_is_shown_whole(command: str, parameter: str, text: str) -> None:
    assert text.endswith("."), f"`{command} --{parameter}` has no sentence of help"
    assert Text.from_markup(text).plain == text, "square brackets are taken for markup, and what they hold is dropped"


def test_the_help_of_list_names_every_list() -> None:
    assert list(KINDS) == list(catalogue())


def test_the_version_of_a_checkout_without_metadata_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # nothing is installed then
    outcome = run("--version")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert "evoprune is not installed here" in outcome.stderr
