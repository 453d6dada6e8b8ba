"""Wrong use of modes, budgets, limits and finished runs: exit code 2, one message, and nothing is changed or left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command_line import MODEL, Outcome, run

SIZE = ("--seed", "3", "--population", "4", "--n-fitness-images", "8", "--n-calibration-images", "8")


pytestmark = pytest.mark.usefixtures("own_folder")


def search(inputs: Path, *options: str, out: str | Path = "RUN", generations: int = 1) -> Outcome:
    weights, images = inputs / "weights.safetensors", f"npz:{inputs / 'images.npz'}"
    given = ["--weights", weights, "--data", images, *SIZE, "--generations", str(generations), "--out", out]
    return run("search", *MODEL, *given, *options)


def refused(outcome: Outcome) -> str:
    assert outcome.exit_code == 2, outcome.stderr
    assert outcome.stdout == ""
    return outcome.message


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


SEARCHES = [
    (["--budget", "0.5", "--budget", "macs=0.4"], "every metric has one budget, but macs has two, '0.5' and '0.4'"),
    (["--budget", "params=0.4", "--metric", "macs"], "got metric 'macs' and params=0.4; leave the metric out"),
    (["--budget", "flops=0.4"], "unknown metric 'flops'"),
    (["--budget", "macs="], "a budget must be a positive number, but got ''"),
    (["--budget", "=0.4"], "unknown metric ''"),
    (["--budget", "params=0.5", "--budget", "macs=1e-7"], "must lie in the reachable range"),
    (["--budget", "12ms"], "a number with a unit of macs (k, m, g), but got '12ms'"),
    (["--budget", "latency=0.5"], "needs a table of the device"),
    (["--latency-table", "nowhere.json"], "serves a budget of latency, but got"),
    (["--budget", "latency=0.5", "--latency-table", "nowhere.json"], "cannot be read"),
    (["--mode", "staged", "--stages", "nowhere*"], "'nowhere*' of 'nowhere*' does not; groups: features"),
    (["--mode", "staged", "--stages", "*"], "needs at least two stages, but this network has 1 by `--stages *`"),
    (["--mode", "staged", "--stages", ","], "every pattern of stages must match a group"),
    (["--mode", "staged", "--stages", ""], "`stages`: string should have at least 1 character"),
    (["--stages", "blocks"], "`stages` is read in mode 'staged' only, but the mode is 'global'"),
    (["--mode", "staged", "--budget", "0.5", "--cost-weight", "1"], "and the budget 0.5; leave one of them out"),
    (["--mode", "staged", "--cost-weight", "nan"], "`--cost-weight`: input should be"),
    (["--mode", "layerwise", "--prior", "l1"], "two-step is not the first with scores among the priors l1"),
    (["--mode", "layerwise", "--prior", "l1,two-step"], "with scores among the priors l1, two-step"),
    (["--mode", "layerwise", "--compensation", "none"], "follow from `--prior mixture` and `--compensation none`"),
    (["--mode", "layerwise", "--elites", "3"], "has a ladder of its own, but `--elites` is given"),
    (["--mode", "pareto", "--elites", "3"], "judges no elites, but `--elites` is given"),
    (["--mode", "random", "--prior", "l1"], "the mode 'random' asks no criteria, but got prior='l1'"),
    (["--mode", "random", "--restart"], "`restart` is of the modes global and pareto, but the mode is random"),
    (["--target", "nan"], "`target`: input should be a finite number, but got nan"),
    (["--target", "inf"], "`target`: input should be a finite number, but got inf"),
    (["--patience", "0"], "`patience`: input should be greater than or equal to 1, but got 0"),
    (["--max-time", "-1"], "`--max-time`: input should be greater than 0, but got -1.0"),
    (["--max-time", "nan"], "`--max-time`: input should be"),
    (["--max-time", "inf"], "`--max-time`: input should be less than inf, but got inf"),
    (["--max-evaluations", "0"], "`--max-evaluations`: input should be greater than or equal to 1"),
    (["--generations", "-1"], "`--generations`: input should be greater than or equal to 0, but got -1"),
    (["--mode", "pareto", "--min-hypervolume-gain", "-0.1"], "`--min-hypervolume-gain`: input should be greater"),
    (["--min-hypervolume-gain", "0.1"], "but the mode is global; leave it out"),
    (["--seed-share", "0.9", "--random-share", "0.5"], "but got 0.9 and 0.5; lower one of them"),
    (["--address", "auto"], "got address='auto' and workers=0; give the number of workers too"),
    (["--workers", "-1"], "`workers`: input should be greater than or equal to 0, but got -1"),
    (["--data-root", "downloads"], "`--data-root` is the folder that cifar10, cifar100, "),
    (
        ["--fitness", "two-step", "--n-fitness-images", "99"],
        "`--n-fitness-images` is of the images that predictions are compared on, but nothing compares any with",
    ),
    (
        ["--fitness", "wavelet", "--n-fitness-images", "512", "--fitness-images", "mixture"],
        "`--fitness-images` is of the images that predictions are compared on",
    ),
    (["--train-epochs", "8"], "whose weights are given is not trained, but got --train-epochs=8 beside weights='"),
    (["--width-phase", "2"], "`--width-phase <= --generations` must hold, since it is a part of them, but got 2 and 1"),
]


@pytest.mark.parametrize(("options", "told"), SEARCHES, ids=[" ".join(options) for options, _ in SEARCHES])
def test_a_search_that_makes_no_sense_is_refused(inputs: Path, tmp_path: Path, options: list[str], told: str) -> None:
    message = refused(search(inputs, *options))
    assert told in message
    assert "'population_size'" not in message  # no dump of all options
    assert {path.name for path in tmp_path.iterdir()} <= {".cache"}


# ---------------------------------------------------------------------- what is done with a run


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "RUN"
    assert search(inputs, "--budget", "0.5", "--fitness", "network", out=folder, generations=2).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--generations", "1"], "fewer generations than it has done, which are 2, but got --generations=1; give 2"),
        (["--generations", "-1"], "`--generations`: input should be greater than or equal to 0"),
        (["--generations", "5", "--workers", "-1"], "`workers`: input should be greater than or equal to 0"),
        (["--generations", "5", "--address", "auto"], "address='auto' and workers=0"),
        (["--min-hypervolume-gain", "0.1"], "`--min-hypervolume-gain` needs a front"),
        (["--patience", "0"], "`patience`: input should be"),
        (["--target", "nan"], "`target`: input should be a finite number"),
    ],
)
def test_a_run_is_not_resumed_with_limits_that_make_no_sense(finished: Path, options: list[str], told: str) -> None:
    before = content(finished)
    assert told in refused(run("resume", finished, *options))
    assert content(finished) == before


def test_generations_per_part_stay_as_they_are(inputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    parts = ("--mode", "staged", "--stages", "features.?", "--fitness", "network", "--budget", "0.5")
    assert search(inputs, *parts, out=folder).exit_code == 0
    before = content(folder)
    message = refused(run("resume", folder, "--generations", "4"))
    assert "generations of mode 'staged' count per part of the network" in message
    assert "so they stay at 1, but got 4" in message
    assert content(folder) == before
    (folder / "result.json").unlink()  # it can still be continued, with what it began with
    assert run("resume", folder, "--generations", "1", "--json").exit_code == 0


@pytest.mark.parametrize("command", ["pick", "export"])
@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("1e-6", "a budget must leave a network that the run has judged, but of"),
        ("params=1e-6", "of the dense params"),
        ("1.5", "a share in (0, 1] of the dense cost, but got '1.5'"),
        ("62G", "must not exceed the cost of the dense network"),
        ("flops=0.5", "unknown metric 'flops'"),
        ("latency=0.5", "unknown metric 'latency'"),
    ],
)
def test_a_budget_outside_of_what_was_judged_is_refused(finished: Path, command: str, budget: str, told: str) -> None:
    before = content(finished)
    assert told in refused(run(command, finished, "--budget", budget))
    assert content(finished) == before


def test_networks_are_not_written_over_what_is_something_else(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    before = content(finished)
    picking = ("pick", finished, "--budget", "0.5", "--out")
    assert "must not replace the one that result.json speaks of" in refused(run(*picking, finished / "best"))
    assert "an artefact replaces nothing but an artefact" in refused(run(*picking, finished))
    assert "an artefact replaces nothing but an artefact" in refused(run(*picking, "thesis.tex"))
    assert "must be writable" in refused(run(*picking, "/proc/evoprune/network"))
    assert "must not overwrite its source" in refused(run("export", finished, "--out", finished / "best"))
    assert "but --out is the run" in refused(run("export", finished, "--out", finished))
    assert "must be a writable folder" in refused(run("export", finished, "--out", "thesis.tex"))
    assert "must be writable" in refused(run("export", finished, "--budget", "0.5", "--out", "/proc/evoprune"))
    assert "must be a file, but is a folder" in refused(run("inspect", *MODEL, "--drawing", "."))
    assert "must be a file, but is a folder" in refused(run("report", finished, "--out", "."))
    assert content(finished) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "/proc/evoprune/network"], "must be writable"),
        (["--learning-rate", "inf"], "`learning_rate`: input should be less than inf"),
        (["--learning-rate", "0"], "`learning_rate`: input should be greater than 0"),
        (["--epochs", "0"], "`epochs`: input should be greater than or equal to 1"),
        (["--max-time", "-1"], "`--max-time`: input should be greater than 0"),
    ],
)
def test_finetuning_that_makes_no_sense_is_refused(finished: Path, options: list[str], told: str) -> None:
    before = content(finished)
    assert told in refused(run("finetune", finished, *options))
    assert content(finished) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "nowhere/latency.json"], "must be writable"),
        (["--out", "."], "must be a file, but is a folder"),
        (["--checks", "0"], "`--checks`: input should be greater than or equal to 1"),
        (["--classes", "0"], "`n_classes >= 1` must hold"),
    ],
)
def test_a_table_that_cannot_be_kept_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    def measure(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr("evoprune.api.measure_and_check", measure)
    assert told in refused(run("latency", *MODEL, *options))
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_network_is_refused(inputs: Path, tmp_path: Path) -> None:
    table = tmp_path / "latency.json"
    other = ("--model", "vgg16", "--model-args", '{"width": 0.03}', "--input-shape", "3x16x16", "--checks", "1")
    assert run("latency", *other, "--out", table, "--threads", "1").exit_code == 0
    message = refused(search(inputs, "--budget", "latency=0.5", "--latency-table", str(table)))
    assert "a latency table must be measured for the network that is searched" in message
    damaged = json.loads(table.read_text())
    damaged["tables"] = damaged["tables"][:1]
    table.write_text(json.dumps(damaged))
    assert "is damaged" in refused(search(inputs, "--budget", "latency=0.5", "--latency-table", str(table)))
    assert {path.name for path in tmp_path.iterdir()} <= {".cache", "latency.json"}
