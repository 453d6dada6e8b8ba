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
from search_spaces.errors import OptionError
from tests.integration.command_line import run, small_search
from tests.integration.test_interruption import _CtrlC, _same_run

#: Mode and budget.
RUNS = {"pareto": None, "random": "0.5", "uniform-l1": "0.5"}
N_GENERATIONS = 2


@pytest.fixture(scope="module", params=RUNS)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def options(mode: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    sizes = {} if mode == "uniform-l1" else {"population_size": 6, "n_generations": N_GENERATIONS}
    return small_search(tmp_path_factory.mktemp("inputs"), **sizes)


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
        assert result["test_accuracy"] == result["baseline_uniform_l1_adapted_test_accuracy"]
        assert result["macs"] == result["baseline_uniform_l1_macs"]
    if mode != "pareto":
        assert result["macs"] <= 0.5 * result["macs_dense"]


@pytest.mark.parametrize("mode", ["uniform-l1"], indirect=True, scope="module")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("population_size", 5), ("n_generations", 3), ("max_evaluations", 9), ("max_time_s", 9.0), ("patience", 2)),
        ("target", 0.0),
    ],
)
def test_sizes_and_stop_rules_are_refused_where_there_are_no_generations(
    options: dict[str, Any], uninterrupted: Path, tmp_path: Path, name: str, value: float
) -> None:
    told = rf"'uniform-l1' judges one network and has no generations, but got {name}={value}; leave it out"
    with pytest.raises(OptionError, match=told):
        evoprune.search(**options, mode="uniform-l1", budget="0.5", out=tmp_path / "RUN", **{name: value})
    assert not list(tmp_path.iterdir())
    if name != "population_size":
        with pytest.raises(OptionError, match=told):
            evoprune.resume(uninterrupted, **{name: value})
    assert evoprune.resume(uninterrupted).n_evaluations == 1


@pytest.mark.parametrize("mode", ["uniform-l1"], indirect=True, scope="module")
def test_a_run_that_was_started_with_sizes_that_nothing_reads_still_opens(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evoprune.api.check_course", lambda _: None)
    given = {**options, "mode": "uniform-l1", "budget": "0.5", "population_size": 6, "n_generations": 2}
    with pytest.raises(InterruptedRunError):
        evoprune.search(**given, out=tmp_path / "RUN", observer=_CtrlC("generations", 0.1))
    monkeypatch.undo()
    assert evoprune.resume(tmp_path / "RUN").n_evaluations == 1
    assert evoprune.finetune(tmp_path / "RUN", epochs=1).epochs_done == 1


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
