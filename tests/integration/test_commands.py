"""A run from the command line, and everything that can be done with it afterwards."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import evoprune
from evoprune.artefact import read_description
from evoprune.observer import SilentObserver
from evoprune.options import SearchOptions
from evoprune.result import FinetuneResult
from fitness.data import load_data, normalise
from search_spaces.cost import whole_limit
from search_spaces.models import build_model, load_weights
from tests.integration.command_line import MODEL, QUICK, Outcome, run, write_weights

FIELDS = {
    *("model", "seed", "genome_digest", "macs", "macs_dense", "n_params", "n_params_dense", "test_accuracy_dense"),
    *("test_accuracy", "baseline_uniform_l1_test_accuracy", "n_evaluations", "n_cached", "wall_s", "device", "workers"),
}

#: Fitnesses that compare no predictions take no other number.
USUAL_IMAGES = ("--n-fitness-images", str(SearchOptions.model_fields["n_fitness_images"].default))


def _search(inputs: Path, out: Path, *options: str) -> Outcome:
    weights, images = inputs / "weights.safetensors", f"npz:{inputs / 'images.npz'}"
    return run("search", *MODEL, "--weights", weights, "--data", images, *QUICK, "--out", out, *options)


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("finished") / "RUN"
    outcome = _search(inputs, folder, "--budget", "0.5", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return folder, outcome.json


def _evaluations(folder: Path) -> list[Any]:
    with sqlite3.connect(folder / "evaluations.sqlite") as connection:
        columns = "digest, rung, generation, position, genome, objective, metrics"
        rows = connection.execute(f"SELECT {columns} FROM evaluations ORDER BY generation, position, digest").fetchall()
    connection.close()
    return rows


def test_json_alone_is_on_stdout_and_is_the_result(finished: tuple[Path, Any]) -> None:
    folder, printed = finished
    written = json.loads((folder / "result.json").read_text())
    assert printed.keys() >= FIELDS
    assert {"run": str(folder), **written} == printed


def test_the_figures_are_right(inputs: Path, finished: tuple[Path, Any]) -> None:
    folder, result = finished
    dense = build_model("vgg16", 10, {"width": 0.0625}, (3, 16, 16))
    load_weights(dense, inputs / "weights.safetensors")
    data = load_data(f"npz:{inputs / 'images.npz'}")
    batch = next(data.test.batches(100))
    small = evoprune.load(folder / "best")
    for network, macs, n_params, accuracy in (
        (dense, "macs_dense", "n_params_dense", "test_accuracy_dense"),
        (small, "macs", "n_params", "test_accuracy"),
    ):
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            network(torch.zeros(1, 3, 16, 16))
        assert counter.get_total_flops() == 2 * result[macs]
        assert sum(parameter.numel() for parameter in network.parameters()) == result[n_params]
        with torch.inference_mode():
            logits = network(normalise(batch.images, data.mean, data.std))
        found = float((logits.argmax(1) == batch.labels).float().mean())
        assert result[accuracy] == pytest.approx(found, abs=0.1)  # measured in bfloat16 where the processor has it
    assert 0.3 * result["macs_dense"] < result["macs"] <= 0.5 * result["macs_dense"]
    assert result["baseline_uniform_l1_macs"] <= 0.5 * result["macs_dense"]
    assert result["n_test_images"] == 40
    assert len(_evaluations(folder)) == result["n_evaluations"]


def test_a_fresh_process_loads_the_network_that_was_in_memory(finished: tuple[Path, Any], tmp_path: Path) -> None:
    folder, result = finished
    program = """
import sys, numpy, torch, evoprune
network = evoprune.load(sys.argv[1])
images = torch.from_numpy(numpy.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype("float32"))
with torch.inference_mode():
    numpy.save(sys.argv[2], network(images).numpy())
"""
    arguments = [sys.executable, "-c", program, str(folder / "best"), str(tmp_path / "logits.npy")]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parents[2], timeout=120)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32))
    with torch.inference_mode():
        here = evoprune.load(folder / "best")(images).numpy()
    assert np.allclose(np.load(tmp_path / "logits.npy"), here, atol=1e-5)
    assert read_description(folder / "best").genome.digest == result["genome_digest"]


def test_the_front_is_mutually_non_dominated(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    rows = list(csv.DictReader((folder / "front.csv").read_text().splitlines()))
    macs, objectives = [int(row["macs"]) for row in rows], [float(row["objective"]) for row in rows]
    assert macs == sorted(set(macs))
    assert objectives == sorted(set(objectives), reverse=True)
    assert {row["rung"] for row in rows} == {"network"}


def test_the_winner_is_the_best_of_the_dearest_rung(finished: tuple[Path, Any]) -> None:
    folder, result = finished
    with sqlite3.connect(folder / "evaluations.sqlite") as connection:
        judged = dict(connection.execute("SELECT rung, count(*) FROM evaluations GROUP BY rung").fetchall())
        best = connection.execute(
            "SELECT digest, objective FROM evaluations WHERE rung = 'shipped' ORDER BY objective LIMIT 1"
        ).fetchone()
    connection.close()
    assert (result["genome_digest"], result["objective"]["value"]) == best
    assert result["objective"]["rung"] == "shipped"
    assert list(result["rungs"]) == ["e2", "network", "shipped"]
    assert {rung: figures["n_evaluations"] for rung, figures in result["rungs"].items()} == judged
    assert result["rungs"]["shipped"]["n_images"] == 24
    assert (result["failures"], result["uncompensated_layers"]) == ({}, [])


@pytest.mark.parametrize(
    ("options", "rungs", "objective"),
    [
        (["two-step", *USUAL_IMAGES], ["e1", "e2"], "e2"),
        (["two-step", "--screen-factor", "1", *USUAL_IMAGES], ["e2"], "e2"),
        (["wavelet", *USUAL_IMAGES], ["wavelet"], "wavelet"),
        (["network", "--halvings", "1"], ["network@8", "network"], "kl"),
        (["distill", "--distill-steps", "2"], ["distill"], "kl"),
        (["ladder", "--halvings", "1", "--elites", "0"], ["e2", "network@8", "network"], "kl"),
    ],
)
def test_every_fitness_judges_by_its_rungs(
    inputs: Path, tmp_path: Path, options: list[str], rungs: list[str], objective: str
) -> None:
    outcome = _search(inputs, tmp_path / "RUN", "--budget", "0.5", "--fitness", *options, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    result = outcome.json
    assert list(result["rungs"]) == rungs
    assert (result["objective"]["name"], result["objective"]["rung"]) == (objective, rungs[-1])
    assert result["fitness"] == options[0]
    assert json.loads((tmp_path / "RUN" / "config.json").read_text())["options"]["fitness"] == options[0]


def test_the_same_seed_gives_the_same_run(inputs: Path, finished: tuple[Path, Any], tmp_path: Path) -> None:
    again = _search(inputs, tmp_path / "again", "--budget", "50%", "--json").json
    assert again["genome_digest"] == finished[1]["genome_digest"]
    assert _evaluations(tmp_path / "again") == _evaluations(finished[0])
    other = _search(inputs, tmp_path / "other", "--budget", "0.5", "--seed", "4", "--json").json
    assert other["genome_digest"] != again["genome_digest"]


def test_a_seed_is_drawn_and_recorded(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights, images = inputs / "weights.safetensors", f"npz:{inputs / 'images.npz'}"
    options = [*MODEL, "--weights", weights, "--data", images, *QUICK[2:], "--generations", "0", "--json"]
    result = run("search", *options).json
    folder = Path("runs") / f"vgg16-npz-{result['seed']}"
    assert json.loads((folder / "config.json").read_text())["options"]["seed"] == result["seed"]
    second = run("search", *options, "--seed", str(result["seed"])).json
    assert second["run"] == str((tmp_path / folder).with_name(f"{folder.name}-2"))
    assert second["genome_digest"] == result["genome_digest"]


def test_the_summary_names_the_three_networks_and_the_next_steps(inputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my RUN"
    outcome = _search(inputs, folder, "--metric", "params", "--budget", "0.6")
    for text in ("dense", "evolved", "uniform L1", "networks evaluated"):
        assert text in outcome.stdout
    assert f"evoprune finetune '{folder}'    or: evoprune export '{folder}'" in outcome.stderr
    result = json.loads((folder / "result.json").read_text())
    assert 0.5 * result["n_params_dense"] < result["n_params"] <= 0.6 * result["n_params_dense"]


def test_several_budgets_hold_and_are_reported(inputs: Path, tmp_path: Path) -> None:
    budgets = ("--budget", "0.7", "--budget", "params=0.6", "--metric", "activation-bytes")
    outcome = _search(inputs, tmp_path / "RUN", *budgets)
    assert outcome.exit_code == 0, outcome.stderr
    assert "activations" in outcome.stdout
    result = json.loads((tmp_path / "RUN" / "result.json").read_text())
    assert [(b["metric"], b["budget"], b["unit"]) for b in result["budgets"]] == [
        ("activation-bytes", 0.7, "bytes"),
        ("params", 0.6, "parameters"),
    ]
    for budget in result["budgets"]:
        assert budget["cost"] <= budget["limit"] == whole_limit(budget["budget"], budget["cost_dense"])
        assert budget["baseline_uniform_l1_cost"] <= budget["limit"]
    front = (tmp_path / "RUN" / "front.csv").read_text().splitlines()
    assert front[0].startswith("macs,n_params,activation_bytes,objective")
    assert all(int(line.split(",")[2]) <= result["budgets"][0]["limit"] for line in front[1:])


def test_resume_of_a_finished_run_prints_its_result(finished: tuple[Path, Any]) -> None:
    outcome = run("resume", finished[0], "--json")
    assert outcome.exit_code == 0
    assert outcome.json == finished[1]
    assert "is finished" in outcome.stderr


@pytest.mark.parametrize("content", ["no JSON", "[1]", "{}"])
def test_a_damaged_result_is_made_again(finished: tuple[Path, Any], content: str) -> None:
    folder = finished[0]
    intact = (folder / "result.json").read_text()
    try:
        (folder / "result.json").write_text(content)
        outcome = run("resume", folder)
    finally:
        (folder / "result.json").write_text(intact)
    assert outcome.exit_code == 2
    assert f"delete it and continue the run with `evoprune resume {folder}`" in outcome.message
    assert "is finished" not in outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(["report", "RUN", "--out", f"RUN/{name}"] for name in ("result.json", "config.json", "best/evoprune.json")),
        ["inspect", *MODEL, "--drawing", "RUN/front.csv"],
        ["latency", *MODEL, "--out", "RUN/best/evoprune.json"],
        ["report", "RUN", "--out", "notes.md"],
        ["report", "RUN", "--out", "index.html"],
        ["report", "RUN", "--out", "new.txt"],
        ["inspect", *MODEL, "--drawing", "notes.md"],
        ["inspect", *MODEL, "--drawing", "logo.svg"],
        ["inspect", *MODEL, "--drawing", "new.png"],
        ["latency", *MODEL, "--out", "notes.md"],
        ["export", "RUN", "--out", "RUN/best"],
        ["export", "RUN", "--budget", "0.5", "--out", "RUN/best"],
        ["pick", "RUN", "--budget", "0.5", "--out", "RUN/finetuned"],
        ["pick", "RUN", "--budget", "0.5", "--out", "RUN/finetuned-2"],
        ["pick", "RUN", "--budget", "0.5", "--out", "mine"],
    ],
)
def test_nothing_is_written_over_files_of_a_run_or_of_the_users(
    finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], "RUN")
    shutil.copytree(finished[0] / "best", "RUN/finetuned-2", dirs_exist_ok=True)
    shutil.copytree(finished[0] / "best", "mine")
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "notes.md").write_text("years of work")
    (tmp_path / "logo.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "index.html").write_text("<html><title>Me</title></html>")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert "name another" in outcome.message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_evaluate_agrees_with_the_search(inputs: Path, finished: tuple[Path, Any], tmp_path: Path) -> None:
    folder, result = finished
    for place in (folder, folder / "best"):
        assert run("evaluate", place, "--json").json["test_accuracy"] == result["test_accuracy"]
    assert "test accuracy" in run("evaluate", folder).stdout
    elsewhere = tmp_path / "elsewhere"
    assert run("export", folder, "--out", elsewhere).exit_code == 0
    assert "name them with --data" in run("evaluate", elsewhere).message
    named = run("evaluate", elsewhere, "--data", f"npz:{inputs / 'images.npz'}", "--json").json
    assert named["test_accuracy"] == result["test_accuracy"]


def test_images_are_normalised_as_asked_and_as_recorded(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = f"npz:{inputs / 'images.npz'}"
    normalisation = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.6,0.7")
    result = _search(inputs, tmp_path / "run", *normalisation, "--json").json
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert (recorded["mean"], recorded["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    description = read_description(tmp_path / "run" / "best")
    assert (description.mean, description.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    asked: list[dict[str, Any]] = []

    def noted(*args: Any, **options: Any) -> Any:
        asked.append(options)
        return load_data(*args, **options)

    monkeypatch.setattr("evoprune.api.load_data", noted)
    monkeypatch.chdir(tmp_path / "run" / "best")
    for arguments in ((tmp_path / "run",), (".",), (tmp_path / "run", "--data", images)):
        outcome = run("evaluate", *arguments, "--json")
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.json["test_accuracy"] == result["test_accuracy"]
        assert (asked[-1]["mean"], asked[-1]["std"]) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert "such as 0.4914,0.4822,0.4465, but got '0.5;0.5'" in run("search", "--mean", "0.5;0.5").message


@pytest.mark.parametrize("out", [None, "TRAINED"])
def test_two_finetunings_at_a_time_keep_both_networks(
    finished: tuple[Path, Any], tmp_path: Path, out: str | None
) -> None:
    folder = tmp_path / "RUN"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("finetuned*", "export*"))
    place = None if out is None else tmp_path / out
    inner: list[FinetuneResult] = []
    notes: list[str] = []

    class Meanwhile(SilentObserver):
        def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:  # noqa: ARG002 - when is enough
            if not inner:
                inner.append(evoprune.finetune(folder, epochs=1, batch_size=16, out=place))

        def on_note(self, text: str) -> None:
            notes.append(text)

    outer = evoprune.finetune(folder, epochs=1, batch_size=16, out=place, observer=Meanwhile())
    first = folder / "finetuned" if place is None else place
    second = first.with_name(f"{first.name}-2")
    assert (inner[0].artefact, outer.artefact) == (first, second)
    assert [json.loads((path / "finetune.json").read_text())["artefact"] for path in (first, second)] == [
        str(first),
        str(second),
    ]
    assert f"{first} exists by now: the finetuned network goes to {second}" in notes


def test_finetune_writes_an_artefact_of_its_own(finished: tuple[Path, Any]) -> None:
    folder, result = finished
    outcome = run("finetune", folder, "--epochs", "2", "--batch-size", "16", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    finetuned = outcome.json
    assert finetuned["artefact"] == str(folder / "finetuned")
    assert finetuned["test_accuracy_before"] == result["test_accuracy"]
    assert finetuned["epochs_done"] == 2
    assert len(finetuned["val_accuracy"]) == 2
    assert read_description(folder / "finetuned").finetuned_epochs == 2
    assert run("evaluate", folder / "finetuned", "--json").json["test_accuracy"] == finetuned["test_accuracy"]
    again = run("finetune", folder, "--epochs", "1", "--max-time", "60")
    assert str(folder / "finetuned-2") in again.stdout
    assert f"next: evoprune export {folder / 'finetuned-2'}" in again.stderr
    taken = run("finetune", folder, "--epochs", "1", "--out", folder / "best")
    assert taken.exit_code == 2
    assert "choose another --out" in taken.message


def test_a_picked_network_is_finetuned_in_its_run(inputs: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "RUN", tmp_path / "elsewhere"
    assert _search(inputs, folder, "--mode", "pareto").exit_code == 0
    picked = run("pick", folder, "--budget", "0.45")
    assert f"next: evoprune finetune {folder / 'pick-0.45'}    or: evoprune export" in picked.stderr
    before = (folder / "pick-0.45" / "weights.safetensors").read_bytes()
    outcome = run("finetune", folder / "pick-0.45", "--epochs", "1", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.json["artefact"] == str(folder / "finetuned-pick-0.45")
    assert outcome.json["source"] == str(folder / "pick-0.45")
    description = read_description(folder / "finetuned-pick-0.45")
    assert (
        description.genome == read_description(folder / "pick-0.45").genome != read_description(folder / "best").genome
    )
    figures = run("evaluate", folder / "pick-0.45", "--json").json
    assert outcome.json["test_accuracy_before"] == figures["test_accuracy"]
    assert outcome.json["macs"] == figures["macs"]
    assert (folder / "pick-0.45" / "weights.safetensors").read_bytes() == before
    again = run("finetune", folder / "finetuned-pick-0.45", "--epochs", "1", "--json").json
    assert again["artefact"] == str(folder / "finetuned-pick-0.45-2")
    assert read_description(Path(again["artefact"])).finetuned_epochs == 2
    shutil.copytree(folder / "pick-0.45", elsewhere)
    assert "lies in none; name a run, or an artefact in one" in run("finetune", elsewhere).message
    other = tmp_path / "other"
    write_weights(tmp_path / "weights.safetensors", seed=1)
    assert _search(inputs, other, "--weights", str(tmp_path / "weights.safetensors"), "--budget", "0.5").exit_code == 0
    shutil.copytree(folder / "best", other / "mixed-up")
    refused = run("finetune", other / "mixed-up", "--epochs", "1")
    assert refused.exit_code == 2
    assert "was cut from one of other weights than those of the run" in refused.message
    assert not (other / "finetuned-mixed-up").exists()


def test_export_prints_what_it_wrote(finished: tuple[Path, Any], tmp_path: Path) -> None:
    outcome = run(
        "export", finished[0], "--format", "pt2", "--format", "safetensors", "--out", tmp_path / "x", "--json"
    )
    assert [Path(file["path"]).name for file in outcome.json] == ["model.pt2", "weights.safetensors", "evoprune.json"]
    assert "logits within" in run("export", finished[0], "--format", "pt2", "--out", tmp_path / "y").stdout


def test_an_artefact_is_exported_beside_itself(
    finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("finetuned*", "export*"))
    assert "is there too" not in run("export", folder).stderr
    for name in ("finetuned", "finetuned-2"):
        shutil.copytree(folder / "best", folder / name)
    noted = run("export", folder)
    assert noted.exit_code == 0
    for name in ("finetuned", "finetuned-2"):
        assert f"{folder / name} is there too: evoprune export {folder / name}" in noted.stderr
    outcome = run("export", folder / "finetuned")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    assert (folder / "export-finetuned" / "weights.safetensors").is_file()
    monkeypatch.chdir(folder / "best")
    assert run("export", ".").exit_code == 0
    assert (folder / "export-best" / "weights.safetensors").is_file()


def test_commands_call_no_factory_of_an_artefact_without_consent(
    inputs: Path, finished: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_networks.py").write_text(
        "from pathlib import Path\n"
        "from search_spaces.models import build_model\n"
        "Path('called').touch()\n"
        "def build():\n"
        "    return build_model('vgg16', 10, {'width': 0.0625})\n"
    )
    shutil.copytree(finished[0] / "best", "theirs")
    file = tmp_path / "theirs" / "evoprune.json"
    content = json.loads(file.read_text())
    content["model"] |= {"name": "their_networks:build", "args": {}}
    file.write_text(json.dumps(content))
    commands = (["evaluate", "theirs", "--data", f"npz:{inputs / 'images.npz'}"], ["export", "theirs"])
    for command in commands:
        outcome = run(*command)
        assert outcome.exit_code == 2
        assert "names the factory 'their_networks:build'" in outcome.message
        assert "--trust-factory" in outcome.message
    assert not (tmp_path / "called").exists()
    for command in commands:
        assert run(*command, "--trust-factory").exit_code == 0


def test_what_a_model_prints_is_not_on_stdout_beside_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talking_networks.py").write_text(
        "from search_spaces.models import build_model\n"
        "print('imported')\n"
        "def build(n_classes):\n"
        "    print('building')\n"
        "    return build_model('resnet20', n_classes, {'width': 0.25})\n"
    )
    outcome = run("inspect", "--model", "talking_networks:build", "--input-shape", "3x16x16", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.json["n_genes"] > 0
    assert "imported\nbuilding\n" in outcome.stderr


def test_inspect_lists_groups_frozen_channels_and_the_reachable_range() -> None:
    summary = run("inspect", "--model", "resnet20", "--json").json
    assert summary["macs_dense"] == pytest.approx(40.55e6, rel=1e-3)
    assert sum(group["n_channels"] for group in summary["groups"]) == summary["n_genes"]
    assert summary["frozen"] == [{"name": "linear", "n_channels": 10, "reason": "is an output of the network"}]
    text = run("inspect", "--model", "resnet20", "--protect", "layer3*").stdout
    assert "frozen channels" in text
    assert "reachable" in text


def test_a_drawing_replaces_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "space.svg"
    for model in (MODEL, ["--model", "resnet20"]):
        assert run("inspect", *model, "--drawing", file).exit_code == 0
    root = ElementTree.parse(file).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "resnet20" in file.read_text()


def test_list_shows_every_section() -> None:
    names = run("list", "--json").json
    assert names.keys() >= {"models", "data", "criteria", "fitness", "rungs", "modes"}
    assert list(names["fitness"]) == ["distill", "ladder", "network", "two-step", "wavelet"]
    assert "resnet56" in names["models"]
    assert run("list", "models", "--json").json == {"models": names["models"]}
    assert "imagefolder:PATH" in run("list", "data").stdout


def test_importing_evoprune_does_not_import_ray() -> None:
    program = "import sys, evoprune, evoprune.cli; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_whole_blocks_may_be_removed(inputs: Path, tmp_path: Path) -> None:
    images = f"npz:{inputs / 'images.npz'}"
    outcome = run(
        *("search", "--model", "resnet20", "--model-args", '{"width": 0.25}', "--train-epochs", "1", "--data", images),
        *(*QUICK, "--budget", "0.5", "--block-genes", "--out", tmp_path / "run", "--json"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    description = json.loads((tmp_path / "run" / "best" / "evoprune.json").read_text())
    assert description["space"]["block_genes"] is True
    assert "layer1.1" in description["genome"]["kept_channels"]
    network = evoprune.load(tmp_path / "run" / "best")
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 16))
    assert counter.get_total_flops() == 2 * outcome.json["macs"]
