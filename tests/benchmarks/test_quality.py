"""The benchmarks of quality: their tables say what their rows hold, and an interrupted one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import one_shot, priors
from benchmarks.plots import line_chart
from benchmarks.priors import NEITHER, RANDOM_SEARCH, Arm, Results, arms_of, summary
from search_spaces.errors import UnknownNameError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path / "cache"))


def make_row(criterion: str, role: str, seed: int, best: list[float]) -> dict[str, Any]:
    return {
        "network": "net",
        "budget": 0.5,
        "n_evaluations": 4,
        "population": 2,
        "fitness": "merge",
        "n_images": 8,
        "criterion": criterion,
        "role": role,
        "seed": seed,
        "best": best,
        "shipped": best[-1] / 2,
    }


ROWS = [
    *(make_row(NEITHER, NEITHER, seed, [9.0, 8.0, 7.0, 6.0 + seed]) for seed in range(3)),
    *(make_row(RANDOM_SEARCH, RANDOM_SEARCH, seed, [9.0, 9.0, 9.0, 8.0]) for seed in range(3)),
    *(make_row("l1", "both", seed, [5.0, 4.0, 3.0, 6.5]) for seed in range(3)),
]


def test_the_table_compares_seed_by_seed() -> None:
    lines = summary(ROWS).splitlines()
    assert lines[2] == "| *neither* |  | 8 | 7 | 7 (6 to 8) |  | 3.5 |"
    assert lines[4] == "| l1 | both | 4 | 3 | 6.5 (6.5 to 6.5) | 2 of 3 | 3.25 |"


def test_the_chart_is_an_svg_with_a_line_per_name() -> None:
    root = ElementTree.fromstring(line_chart("a < b", "x", "y", {"one": [3.0, 2.0, 1.0], "two": [float("inf"), 2.0]}))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len((line.get("points") or "").split()) for line in lines] == [3, 1]
    heights = [float(point.split(",")[1]) for point in (lines[0].get("points") or "").split()]
    assert heights == sorted(heights)  # smaller values lie lower, where y is larger


def test_an_arm_asks_criteria_for_its_role_alone() -> None:
    assert Arm("l1", "seeds").choice().seeds == ("l1",)
    assert Arm("l1", "seeds").choice().priors == ()
    assert Arm("l1", "prior").choice().seeds == ()
    assert Arm("l1", "both").choice().priors == ("l1",)
    assert not Arm(NEITHER, NEITHER).choice().seeds
    assert len(arms_of(["l1", "l2"])) == 2 + 2 * 3
    assert arms_of(["l1"], ["both"])[2:] == [Arm("l1", "both")]
    assert arms_of(["shapley"])[2:] == [Arm("shapley", "prior")]  # it proposes no first genomes


def test_a_line_that_was_cut_off_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Results(path).add({"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    results = Results(path)
    assert results.rows == [{"a": 1}]
    results.add({"a": 3})
    assert Results(path).rows == [{"a": 1}, {"a": 3}]


def test_a_misspelt_criterion_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'l3'"):
        priors.main(["--smoke", "--criteria", "l3"])
    with pytest.raises(UnknownNameError, match="unknown role 'seed'"):
        priors.main(["--smoke", "--roles", "seed"])


def test_the_search_benchmark_repeats_itself_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, docs = tmp_path / "first.jsonl", tmp_path / "again.jsonl", tmp_path / "priors.md"
    assert priors.main(["--smoke", "--criteria", "l1", "--out", str(first), "--docs", str(docs)]) == 0
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [row["role"] for row in rows] == [RANDOM_SEARCH, NEITHER, "seeds", "prior", "both"]
    for row in rows:
        assert len(row["best"]) == row["n_evaluations"] == 12
        assert row["best"] == sorted(row["best"], reverse=True)
    assert "priors-resnet20.svg" in docs.read_text()
    assert (tmp_path / "priors-resnet20.svg").is_file()
    lines = first.read_text().splitlines(keepends=True)
    again.write_text("".join(lines[:3]))
    assert priors.main(["--smoke", "--criteria", "l1", "--out", str(again)]) == 0
    best = [[json.loads(line)["best"] for line in path.read_text().splitlines()] for path in (first, again)]
    assert best[0] == best[1]
    capsys.readouterr()


def test_rules_meet_the_budget_and_the_peer_ranks_the_same_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    out, docs = tmp_path / "rows.jsonl", tmp_path / "one_shot.md"
    assert one_shot.main(["--smoke", "--criteria", "l2,bn-gamma", "--out", str(out), "--docs", str(docs)]) == 0
    rows = {row["rule"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"l2", "l2, Torch-Pruning", "bn-gamma", "bn-gamma, own widths", "bn-gamma, Torch-Pruning"}
    assert all(row["macs"] <= 0.5 and 0 <= row["sequential"] <= 1 for row in rows.values())
    macs = rows["l2"]["macs"]  # equal widths, but for the last channels that fill the budget
    assert rows["l2, Torch-Pruning"]["macs"] == pytest.approx(macs, abs=0.01)
    assert "| l2, Torch-Pruning |" in docs.read_text()
    capsys.readouterr()
