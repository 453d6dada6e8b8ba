"""Candidates per second in stages: the benchmark runs, and its figures follow from the seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.stage_throughput import main, ratio, table


def test_the_ratio_weighs_stages_equally() -> None:
    seconds = {"global": [3.0, 5.0], "staged, one": [3.0, 3.0, 3.0], "staged, two": [1.0]}
    assert ratio(seconds) == 4.0 / 2.0
    lines = table(seconds).splitlines()
    assert "| global | 4.000 | 0.25 | 2 |" in lines
    assert lines[-1] == "`staged` judges 2.00 times as many candidates per second as `global`."


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    assert main(["--smoke", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert next(iter(document["seconds"])) == "global"
    assert len(document["seconds"]) == 1 + 6  # stages of VGG-16
    assert all(1 <= len(values) <= 3 for values in document["seconds"].values())
    assert document["ratio"] == pytest.approx(ratio(document["seconds"]))
    assert f"{document['ratio']:.2f} times as many" in capsys.readouterr().out
