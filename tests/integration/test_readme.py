"""The README's examples run as they are written; its two commands are run by `.ci/run`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command_line import run

README = (Path(__file__).parents[2] / "README.md").read_text()


def _blocks(marker: str) -> list[str]:
    return re.findall(rf"^<!-- {marker} -->\n```\w+\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EVOPRUNE_CACHE", str(folder / ".cache"))
        yield folder


def test_commands(folder: Path) -> None:
    (block,) = _blocks("test: shell")
    lines = block.replace("\\\n", " ").splitlines()
    assert len(lines) == 6
    for line in lines:
        command, *arguments = shlex.split(line)
        assert command == "evoprune"
        outcome = run(*arguments)
        assert outcome.exit_code == 0, f"{line}\n{outcome.stderr}"
    assert sorted(path.name for path in (folder / "runs" / "first" / "export-finetuned").iterdir()) == [
        "evoprune.json",
        "model.pt2",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("number", range(len(_blocks("test: python"))))
def test_python(folder: Path, number: int) -> None:
    exec(compile(_blocks("test: python")[number], f"README.md, example {number}", "exec"), {})


def test_the_two_commands_do_all_the_set_up() -> None:
    for name, last in (
        ("main-job", "evoprune search --model vgg16 --budget 0.3"),
        ("tests", "pytest -n auto --maxprocesses 4 --dist loadfile"),
    ):
        (block,) = _blocks(f"ci: {name}")
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert block.strip().endswith(f".venv/bin/{last}")
        assert len(block.splitlines()) == 1


def test_the_environment_is_activated_before_it_is_used() -> None:
    before, _, _ = README.partition("<!-- test: shell -->")
    assert "source .venv/bin/activate" in before
