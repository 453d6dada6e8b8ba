from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer.main
from rich.text import Text
from typer.core import TyperGroup

from evoprune.cli.app import app


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
