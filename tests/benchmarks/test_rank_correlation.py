"""The benchmark of the rungs: it runs, it goes on where it was, and its figures are what they are called."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.rank_correlation import correlation, main, summarise


def test_it_runs_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path / "cache"))
    out, docs = tmp_path / "out", tmp_path / "table.md"
    assert main(["--smoke", "--genomes", "1", "--out", str(out)]) == 0
    path = out / "rank_correlation-resnet20.jsonl"
    (first,) = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open("a") as file:
        file.write(json.dumps(first)[:40])  # a write that was cut off
    capsys.readouterr()
    assert main(["--smoke", "--genomes", "2", "--out", str(out), "--docs", str(docs)]) == 0
    assert "resnet20 1/2" not in capsys.readouterr().out
    _, cut_off, second = path.read_text().splitlines()
    assert cut_off == json.dumps(first)[:40]
    rows = [first, json.loads(second)]
    assert [row["index"] for row in rows] == [0, 1]
    assert not any("failure" in figures for row in rows for figures in row["rungs"].values())
    assert set(rows[0]["truth"]) == {"cross_entropy", "error", "finetuned_cross_entropy", "finetuned_error"}
    for label in ("E1", "E2", "wavelet", "network as sliced", "network, 4 images", "as shipped", "distilled, 2 steps"):
        assert f"| {label} |" in docs.read_text()


def test_rows_of_other_settings_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path / "cache"))
    command = ["--smoke", "--genomes", "1", "--out", str(tmp_path)]
    for further in ([], ["--truth-images", "8"], ["--truth-images", "8"], ["--test-images", "4"]):
        assert main([*command, *further]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rank_correlation-resnet20.jsonl").read_text().splitlines()]
    assert [row["setting"]["truth_images"] for row in rows] == [24, 8, 24]
    assert rows[2]["truth"]["error"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert rows[0]["rungs"]["E1"]["objective"] == rows[1]["rungs"]["E1"]["objective"]
    assert rows[0]["truth"] != rows[1]["truth"]


def test_correlations_are_within_budgets() -> None:
    """One budget is ranked right and one the wrong way round; over both together the larger budget would rule."""
    figures, truths, budgets = (
        [1.0, 2.0, 3.0, 11.0, 12.0, 13.0],
        [1.0, 2.0, 3.0, 13.0, 12.0, 11.0],
        [0.7] * 3 + [0.3] * 3,
    )
    assert correlation(figures[:3], truths[:3], budgets[:3]) == pytest.approx(1.0)
    assert correlation(figures, truths, budgets) == pytest.approx(0.0)
    assert math.isnan(correlation([1.0, 1.0], [1.0, 2.0], [0.5, 0.5]))


def test_a_genome_that_a_rung_failed_on_is_left_out_and_counted() -> None:
    rows = [
        {
            "kind": "random",
            "budget": 0.5,
            "rungs": {"E1": {"objective": value, "seconds": 1.0} if value else {"failure": "NaN", "seconds": 9.0}},
            "truth": {"error": value, "cross_entropy": -value},
        }
        for value in (0.0, 1.0, 2.0, 3.0)
    ]
    (entry,) = summarise(rows)
    assert (entry["n_failed"], entry["seconds"]) == (1, 1.0)
    assert entry["all: error"] == pytest.approx(1.0)
    assert entry["random: cross_entropy"] == pytest.approx(-1.0)
    assert math.isnan(entry["near greedy: error"])
