"""When a run ends: every rule from the command line, recorded, and extended on resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import evoprune
from evoprune.interruption import InterruptedRunError
from search_spaces.errors import OptionError, RunDirectoryError
from tests.integration.command_line import MODEL, run, write_images, write_weights
from tests.integration.test_interruption import _CtrlC, _same_run

N_GENERATIONS = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    return str(write_weights(folder / "weights.safetensors")), f"npz:{write_images(folder / 'images.npz')}"


def start(inputs: tuple[str, str], out: Path, *further: str, generations: int = N_GENERATIONS) -> Any:
    weights, data = inputs
    size = ["--population", "4", "--n-fitness-images", "8", "--n-calibration-images", "8", "--fitness", "network"]
    size += ["--generations", str(generations), "--seed", "3", "--budget", "0.5"]
    return run("search", *MODEL, "--weights", weights, "--data", data, *size, "--out", out, "--json", *further)


@pytest.fixture(scope="module")
def whole(inputs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "RUN"
    assert start(inputs, folder).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("option", "value", "field", "reason", "n_generations"),
    [
        ("--max-evaluations", "8", "max_evaluations", "8 evaluations", 1),
        ("--max-time", "1e-6", "max_time_s", "1e-06 s", 0),
        ("--target", "1e9", "target", "objective 1e+09 reached", 0),
    ],
)
def test_every_rule_ends_a_run_and_is_recorded(
    inputs: tuple[str, str], tmp_path: Path, option: str, value: str, field: str, reason: str, n_generations: int
) -> None:
    outcome = start(inputs, tmp_path / "RUN", option, value)
    assert outcome.exit_code == 0, outcome.stderr
    assert (outcome.json["stopped_by"], outcome.json["n_generations"]) == (reason, n_generations)
    assert json.loads((tmp_path / "RUN" / "config.json").read_text())["options"][field] == float(value)


def test_a_run_that_is_given_more_generations_ends_as_one_that_began_with_them(
    inputs: tuple[str, str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "RUN"
    assert start(inputs, folder, generations=1).json["stopped_by"] == "1 generations"
    with pytest.raises(InterruptedRunError):
        evoprune.resume(folder, n_generations=N_GENERATIONS, observer=_CtrlC("generations", 2.1))
    outcome = run("resume", folder, "--json")  # the new limit holds until another one is given
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.json["stopped_by"] == f"{N_GENERATIONS} generations"
    _same_run(folder, whole)
    for again in (
        run("resume", folder, "--json"),
        run("resume", folder, "--generations", str(N_GENERATIONS), "--json"),
    ):
        assert "is finished" in again.stderr
        assert again.json == outcome.json


def test_limits_that_make_no_sense_are_refused(inputs: tuple[str, str], whole: Path, tmp_path: Path) -> None:
    outcome = start(inputs, tmp_path / "RUN", "--min-hypervolume-gain", "0.1")
    assert outcome.exit_code == 2
    assert "`--min-hypervolume-gain` needs a front" in outcome.message
    for option in ("--max-evaluations", "--max-time", "--patience"):
        outcome = start(inputs, tmp_path / "RUN", option, "0")
        assert outcome.exit_code == 2
        assert option.strip("-") in outcome.message
    assert not (tmp_path / "RUN").exists()
    with pytest.raises(OptionError, match="may be resumed with other limits only, but got population_size"):
        evoprune.resume(whole, population_size=8)


def test_damaged_limits_are_named(inputs: tuple[str, str], tmp_path: Path) -> None:
    assert start(inputs, tmp_path / "RUN", "--target", "1e9").exit_code == 0
    (tmp_path / "RUN" / "limits.json").write_text('{"patience": -1}')
    with pytest.raises(RunDirectoryError, match=r"limits\.json must hold the limits of the run"):
        evoprune.resume(tmp_path / "RUN", patience=2)
