"""Widths before bits, restarts, local search and block toggles from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command_line import MODEL, run, write_images, write_weights

SIZE = [
    "--population",
    "4",
    "--generations",
    "2",
    "--n-fitness-images",
    "8",
    "--n-calibration-images",
    "8",
    "--seed",
    "3",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_weights(folder / "vgg16.safetensors")
    write_weights(folder / "resnet20.safetensors", name="resnet20", width=0.25)
    write_images(folder / "images.npz")
    return folder


def search(inputs: Path, out: Path, *further: str, weights: str = "vgg16") -> Any:
    where = ["--weights", str(inputs / f"{weights}.safetensors"), "--data", f"npz:{inputs / 'images.npz'}"]
    return run("search", *where, *SIZE, "--budget", "0.5", "--out", out, "--json", *further)


def rows(folder: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "generation"]


def test_local_search_restarts_and_width_phases_run_and_are_recorded(inputs: Path, tmp_path: Path) -> None:
    options = ["--width-phase", "0.5", "--restart", "--local-search"]
    outcome = search(inputs, tmp_path / "RUN", *MODEL, *options)
    assert outcome.exit_code == 0, outcome.stderr
    recorded = json.loads((tmp_path / "RUN" / "config.json").read_text())["options"]
    assert (recorded["width_phase"], recorded["restart"], recorded["local_search"]) == (1, True, True)
    assert all(0 < row["share_mutate_local"] < 1 for row in rows(tmp_path / "RUN"))


def test_blocks_are_toggled_where_there_are_any(inputs: Path, tmp_path: Path) -> None:
    network = ["--model", "resnet20", "--model-args", '{"width": 0.25}', "--fitness", "network"]
    outcome = search(inputs, tmp_path / "RUN", *network, "--block-genes", weights="resnet20")
    assert outcome.exit_code == 0, outcome.stderr
    assert all(row["share_mutate_block"] > 0 for row in rows(tmp_path / "RUN"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width-phase", "half"], "`--width-phase` must be a count >= 0 or a share in (0, 1), but got 'half'"),
        (["--width-phase", "1.5"], "--width-phase"),
        (["--width-phase", "-1"], "--width-phase"),
        (["--local-search", "--mode", "random"], "`--local-search` is of the modes global and pareto"),
        (["--restart", "--mode", "uniform-l1"], "`restart` is of the modes global and pareto"),
    ],
)
def test_options_that_make_no_sense_are_refused(inputs: Path, tmp_path: Path, options: list[str], message: str) -> None:
    outcome = search(inputs, tmp_path / "RUN", *MODEL, *options)
    assert outcome.exit_code == 2
    assert message in outcome.message
    assert not (tmp_path / "RUN").exists()
