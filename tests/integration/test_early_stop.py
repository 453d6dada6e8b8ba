"""Candidates that are sure not to survive are given up: repeatable, resumable, and never part of what is handed out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evoprune
from evoprune.evaluation_store import EvaluationStore
from evoprune.interruption import InterruptedRunError
from tests.integration.command_line import run, small_search, write_images
from tests.integration.test_interruption import _CtrlC, _same_run

N_IMAGES = 1536
N_GENERATIONS = 3


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the options of a search whose candidates take six batches each."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(1)
    many = rng.integers(0, 256, (N_IMAGES, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(N_IMAGES, dtype=np.uint8)[:, None] % 10
    images = write_images(folder / "many.npz", val_images=many, val_labels=labels)
    return small_search(folder) | {
        "data": f"npz:{images}",
        "fitness": "network",
        "compensation": "none",
        "fitness_images": "heldout",
        "n_fitness_images": N_IMAGES,
        "population_size": 10,
        "n_generations": N_GENERATIONS,
        "budget": "0.5",
    }


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "RUN"
    evoprune.search(**options, out=folder)
    return folder


def test_the_result_counts_them_and_no_figure_that_is_handed_out_is_theirs(whole: Path, tmp_path: Path) -> None:
    figures = json.loads((whole / "result.json").read_text())["rungs"]["network"]
    assert figures["n_images"] == N_IMAGES
    with EvaluationStore(whole / "evaluations.sqlite", read_only=True) as store:
        evaluations = [record.evaluation for record in store.records("network")]
    stopped = {e.digest: e for e in evaluations if e.is_stopped}
    assert figures["n_stopped"] == len(stopped) > 0
    assert all(e.n_images < N_IMAGES and e.n_images % 256 == 0 for e in stopped.values())
    with (whole / "front.csv").open() as file:
        assert not stopped.keys() & {row["genome_digest"] for row in csv.DictReader(file)}
    picked = run("pick", whole, "--budget", "0.5", "--out", tmp_path / "picked", "--json")
    assert picked.exit_code == 0, picked.stderr
    assert picked.json["genome_digest"] not in stopped
    again = run("resume", whole)
    assert f"network: {len(evaluations)} ({len(stopped)} stopped early)" in " ".join(again.stdout.split())


def test_a_run_that_is_interrupted_anywhere_ends_as_the_uninterrupted_one(
    options: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    for generation in range(N_GENERATIONS + 1):
        folder = tmp_path / f"stopped-in-{generation}"
        with pytest.raises(InterruptedRunError):
            evoprune.search(**options, out=folder, observer=_CtrlC("generations", generation + 0.1))
        evoprune.resume(folder)
        _same_run(folder, whole)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_stop_where_one_does(options: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    evoprune.search(**options, out=tmp_path / "RUN", workers=2)
    _same_run(tmp_path / "RUN", whole)
