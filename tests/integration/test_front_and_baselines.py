"""Modes `pareto`, `random` and `uniform-l1` end to end: repeatable, resumable, and a front to pick from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import evoprune
from evoprune.artefact import read_description
from evoprune.interruption import InterruptedRunError
from tests.integration.command_line import run, small_search
from tests.integration.test_interruption import _CtrlC, _same_run

#: Mode and budget.
RUNS = {"pareto": None, "random": "0.5", "uniform-l1": "0.5"}
N_GENERATIONS = 2


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_search(tmp_path_factory.mktemp("inputs"), population_size=6, n_generations=N_GENERATIONS)


@pytest.fixture(scope="module", params=RUNS)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def uninterrupted(mode: str, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / mode
    evoprune.search(**options, mode=mode, budget=RUNS[mode], out=folder)
    return folder


def test_stopped_in_any_generation_and_resumed_it_ends_as_the_uninterrupted_run(
    mode: str, options: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    n_generations = 0 if mode == "uniform-l1" else N_GENERATIONS
    for generation in range(n_generations + 1):
        folder = tmp_path / f"stopped-in-{generation}"
        with pytest.raises(InterruptedRunError):
            evoprune.search(
                **options, mode=mode, budget=RUNS[mode], out=folder, observer=_CtrlC("generations", generation + 0.1)
            )
        evoprune.resume(folder)
        _same_run(folder, uninterrupted)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_give_the_same_run(mode: str, options: dict[str, Any], uninterrupted: Path, tmp_path: Path) -> None:
    evoprune.search(**options, mode=mode, budget=RUNS[mode], out=tmp_path / "RUN", workers=2)
    _same_run(tmp_path / "RUN", uninterrupted)


def test_each_mode_evaluates_what_it_says(mode: str, uninterrupted: Path) -> None:
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["mode"] == mode
    n_judged = result["rungs"]["network"]["n_evaluations"]
    assert n_judged == (1 if mode == "uniform-l1" else 6 * (N_GENERATIONS + 1))
    if mode == "uniform-l1":
        assert result["n_evaluations"] == 1
    if mode == "uniform-l1":
        assert result["test_accuracy"] == result["baseline_uniform_l1_adapted_test_accuracy"]
        assert result["macs"] == result["baseline_uniform_l1_macs"]
    if mode != "pareto":
        assert result["macs"] <= 0.5 * result["macs_dense"]


@pytest.mark.parametrize("mode", ["pareto"], indirect=True, scope="module")
def test_any_budget_of_a_front_can_be_picked_and_exported(uninterrupted: Path, tmp_path: Path) -> None:
    with (uninterrupted / "front.csv").open() as file:
        front = [(int(row["macs"]), float(row["objective"]), row["genome_digest"]) for row in csv.DictReader(file)]
    dense = json.loads((uninterrupted / "result.json").read_text())["macs_dense"]
    assert len(front) > 2
    assert front[-1][0] == dense
    for budget in (0.7, 0.3):
        expected = [row for row in front if row[0] <= budget * dense][-1]
        outcome = run("pick", uninterrupted, "--budget", str(budget), "--out", tmp_path / f"{budget}", "--json")
        assert outcome.exit_code == 0, outcome.stderr
        assert (outcome.json["macs"], outcome.json["objective"], outcome.json["genome_digest"]) == expected
        assert read_description(tmp_path / f"{budget}").genome.digest == expected[2]
        network = evoprune.load(tmp_path / f"{budget}")
        assert sum(p.numel() for p in network.parameters()) >= outcome.json["n_params"]  # biases may be added
    outcome = run("export", uninterrupted, "--budget", "30%", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert {Path(file["path"]).parent.name for file in outcome.json} == {"export-30%"}
    exported, picked = (load_file(f / "weights.safetensors") for f in (uninterrupted / "export-30%", tmp_path / "0.3"))
    assert exported.keys() == picked.keys()
    assert all(torch.equal(tensor, picked[name]) for name, tensor in exported.items())


@pytest.mark.parametrize("mode", ["pareto"], indirect=True, scope="module")
@pytest.mark.parametrize(
    ("budget", "message"),
    [("0.0001", "a budget must leave a network that the run has judged"), ("2", "share in"), ("x", "positive number")],
)
def test_a_budget_that_no_network_meets_is_refused(uninterrupted: Path, budget: str, message: str) -> None:
    for command in ("pick", "export"):
        outcome = run(command, uninterrupted, "--budget", budget)
        assert outcome.exit_code == 2
        assert message in outcome.message
