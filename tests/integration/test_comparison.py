"""`--compare random` end to end: its row and figures, killed, added afterwards, with workers, and wrong use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evoprune
from tests.integration.command_line import MODEL, QUICK, run, small_search
from tests.integration.test_interruption import ROOT, _evaluations, _same_run

#: A script that kills itself while random search is judged.
KILLED = """
import os, signal, sys
import evoprune
from evoprune.observer import SilentObserver

class Killer(SilentObserver):
    stage = ""

    def on_stage(self, name, n_steps):
        self.stage = name

    def on_step(self, n_done, figures):
        if self.stage.startswith("random search") and n_done >= 4:
            os.kill(os.getpid(), signal.SIGKILL)

evoprune.search(observer=Killer(), **eval(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_search(tmp_path_factory.mktemp("inputs"), budget=0.5, population_size=4, n_generations=1)


@pytest.fixture(scope="module")
def compared(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "RUN"
    evoprune.search(**options, compare="random", out=folder)
    return folder


def _result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def _same_comparison(first: Path, second: Path) -> None:
    _same_run(first, second)
    assert _evaluations(first / "random") == _evaluations(second / "random")


def test_random_search_makes_as_many_evaluations_and_says_what_it_found(compared: Path) -> None:
    result = _result(compared)
    random, rungs = result["random_search"], result["rungs"]
    n_made = {rung: figures["n_evaluations"] for rung, figures in random["rungs"].items()}
    assert n_made == {rung: rungs[rung]["n_evaluations"] for rung in ("network", "shipped")}
    assert random["rung"] == result["objective"]["rung"] == "shipped"
    assert random["macs"] == random["costs"]["macs"] <= result["budgets"][0]["limit"]
    assert random["genome_digest"] != result["genome_digest"]
    assert 0 <= random["test_accuracy"] <= 1
    stored = [row for row in _evaluations(compared / "random") if row[1] == "shipped"]
    assert random["objective"] == min(row[5] for row in stored)
    assert random["genome_digest"] in [row[0] for row in stored if row[5] == random["objective"]]


def test_the_search_itself_is_the_same_without_a_comparison(
    options: dict[str, Any], compared: Path, tmp_path: Path
) -> None:
    evoprune.search(**options, out=tmp_path / "RUN")
    assert _evaluations(tmp_path / "RUN") == _evaluations(compared)
    alone, beside = _result(tmp_path / "RUN"), _result(compared)
    assert alone["random_search"] is None
    for name in ("genome_digest", "objective", "test_accuracy", "baseline_uniform_l1_test_accuracy"):
        assert alone[name] == beside[name]

    outcome = run("resume", tmp_path / "RUN", "--compare", "random")  # afterwards
    assert outcome.exit_code == 0, outcome.stderr
    assert "random search" in outcome.stdout
    _same_comparison(tmp_path / "RUN", compared)
    again = run("resume", tmp_path / "RUN", "--json")
    assert again.json["random_search"] == _result(tmp_path / "RUN")["random_search"]


def test_killed_in_the_middle_it_ends_alike(options: dict[str, Any], compared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    arguments = [sys.executable, "-c", KILLED, repr({**options, "compare": "random", "out": str(folder)})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(arguments, cwd=ROOT, timeout=300, env=environment).returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    assert len(_evaluations(folder / "random")) >= 4
    evoprune.resume(folder)
    _same_comparison(folder, compared)


def test_a_search_that_goes_on_is_compared_anew(options: dict[str, Any], compared: Path, tmp_path: Path) -> None:
    evoprune.search(**{**options, "n_generations": 0}, compare="random", out=tmp_path / "RUN")
    evoprune.resume(tmp_path / "RUN", n_generations=1)
    result, expected = _result(tmp_path / "RUN")["random_search"], _result(compared)["random_search"]
    for figures in (*result["rungs"].values(), *expected["rungs"].values()):
        del figures["seconds"]
    assert result == expected


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_compare_alike(options: dict[str, Any], compared: Path, tmp_path: Path) -> None:
    evoprune.search(**options, compare="random", out=tmp_path / "RUN", workers=2)
    _same_comparison(tmp_path / "RUN", compared)


def test_a_front_is_compared_at_the_cost_of_its_knee(options: dict[str, Any], tmp_path: Path) -> None:
    given = {**options, "mode": "pareto", "budget": None}
    result = evoprune.search(**given, compare="random", out=tmp_path / "RUN")
    assert result.random_search is not None
    assert result.random_search.macs <= result.macs
    assert result.random_search.rung == result.objective.rung == "network"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compare", "randon"), "did you mean 'random'?"),
        (("--compare", "random", "--mode", "random"), "the mode 'random' is a baseline itself"),
        (("--compare", "random", "--mode", "uniform-l1"), "the mode 'uniform-l1' is a baseline itself"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("search", *MODEL, *QUICK, "--out", tmp_path / "RUN", *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.message
    assert not (tmp_path / "RUN").exists()
