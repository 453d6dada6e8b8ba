"""Latency from the command line: a table, a search under it, resume with the run's own copy, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evoprune.latency_tables import read_table
from tests.integration.command_line import MODEL, QUICK, Outcome, run

SHAPE = ("--input-shape", "3x16x16")


@pytest.fixture(scope="module")
def measured(inputs: Path) -> dict[str, Any]:
    """Return what `evoprune latency` printed; its times are replaced by a formula, which no load can spoil."""
    options = ("--out", inputs / "latency.json", "--checks", "2", "--threads", "1", "--batch-size", "2")
    outcome = run("latency", *MODEL, *SHAPE, *options, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    content = json.loads((inputs / "latency.json").read_text())
    for table in content["tables"]:
        table["times_ns"] = [[1000.0 + 20.0 * a * b for b in table["second"]] for a in table["first"]]
    content.update(scale=1.0, ns_per_byte=0.1, overhead_ns=5000.0)
    (inputs / "latency.json").write_text(json.dumps(content))
    return dict(outcome.json)


def _search(inputs: Path, out: Path, *options: str | Path) -> Outcome:
    weights, images = inputs / "weights.safetensors", f"npz:{inputs / 'images.npz'}"
    return run("search", *MODEL, "--weights", weights, "--data", images, *QUICK, "--out", out, *options)


def test_the_report_names_the_conditions_and_the_error(inputs: Path, measured: dict[str, Any]) -> None:
    conditions = measured["conditions"]
    assert (conditions["model"], conditions["n_threads"], conditions["batch_size"]) == ("vgg16", 1, 2)
    assert conditions["device_name"]
    assert conditions["torch_version"]
    check = measured["check"]
    assert len(check["predicted_ns"]) == len(check["measured_ns"]) == 2
    errors = [
        abs(predicted - real) / real
        for predicted, real in zip(check["predicted_ns"], check["measured_ns"], strict=True)
    ]
    assert check["median_error"] == pytest.approx(sum(errors) / 2)
    assert check["worst_error"] == pytest.approx(max(errors))
    assert measured["n_shapes"] == len(read_table(inputs / "latency.json").tables)


def test_a_search_holds_a_latency_and_resumes_with_its_own_table(
    inputs: Path, measured: dict[str, Any], tmp_path: Path
) -> None:
    table = tmp_path / "mine.json"
    table.write_text((inputs / "latency.json").read_text())
    options = ("--budget", "latency=0.7", "--budget", "macs=0.9", "--latency-table", table)
    first = _search(inputs, tmp_path / "RUN", *options)
    assert first.exit_code == 0, first.stderr
    assert "latency" in first.stdout
    result = json.loads((tmp_path / "RUN" / "result.json").read_text())
    latency, macs = result["budgets"]
    assert (latency["metric"], latency["unit"], macs["metric"]) == ("latency", "ns", "macs")
    assert 0.5 * latency["limit"] < latency["cost"] <= latency["limit"] == int(0.7 * latency["cost_dense"])
    assert latency["baseline_uniform_l1_cost"] <= latency["limit"]
    assert macs["cost"] <= macs["limit"]
    times = result["latency"]
    assert times["evolved"]["predicted_ns"] == latency["cost"]
    assert times["dense"]["predicted_ns"] == latency["cost_dense"]
    assert times["baseline_uniform_l1"]["predicted_ns"] == latency["baseline_uniform_l1_cost"]
    assert all(times[name]["measured_ns"] > 0 for name in ("dense", "evolved", "baseline_uniform_l1"))
    assert (times["n_threads"], times["batch_size"], times["differences"]) == (1, 2, [])
    assert " measured (" in first.stdout
    config = json.loads((tmp_path / "RUN" / "config.json").read_text())
    assert config["hashes"]["latency_table"] == read_table(table).digest

    table.unlink()  # the run has a copy
    (tmp_path / "RUN" / "result.json").unlink()
    again = run("resume", tmp_path / "RUN", "--json")
    assert again.exit_code == 0, again.stderr
    assert again.json["genome_digest"] == result["genome_digest"]
    assert again.json["budgets"] == result["budgets"]
    assert again.json["latency"]["evolved"]["predicted_ns"] == times["evolved"]["predicted_ns"]

    copy = tmp_path / "RUN" / "latency.json"
    copy.write_text(json.dumps(json.loads(copy.read_text()) | {"overhead_ns": 6000.0}))
    (tmp_path / "RUN" / "result.json").unlink()
    refused = run("resume", tmp_path / "RUN")
    assert refused.exit_code == 2
    assert "these differ: latency_table" in refused.message


def test_the_command_that_searches_is_of_the_network_that_was_measured(tmp_path: Path) -> None:
    options = ("--out", tmp_path / "latency.json", "--checks", "1", "--threads", "1", "--classes", "4")
    outcome = run("latency", *MODEL, *SHAPE, *options)
    assert outcome.exit_code == 0, outcome.stderr
    same = "--model vgg16 --model-args '{\"width\": 0.0625}' --input-shape 3x16x16 --metric latency"
    assert f"for images of 4 classes: `evoprune search {same}" in outcome.stdout


def test_an_absolute_latency(inputs: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    options = ("--metric", "latency", "--latency-table", inputs / "latency.json")
    refused = _search(inputs, tmp_path / "RUN", *options, "--budget", "1us")
    assert refused.exit_code == 2
    assert "of the dense latency (" in refused.message
    refused = _search(inputs, tmp_path / "RUN", *options, "--budget", "2s")
    assert "must not exceed the cost of the dense network, but '2s' is 2 s latency" in refused.message


def test_a_latency_needs_a_table_and_a_table_a_latency(inputs: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    refused = _search(inputs, tmp_path / "RUN", "--metric", "latency")
    assert refused.exit_code == 2
    command = (
        "`evoprune latency --model vgg16 --model-args '{\"width\": 0.0625}' --classes 10 --input-shape 3x16x16 --out "
        "latency.json`"
    )
    assert command in refused.message
    refused = _search(inputs, tmp_path / "RUN", "--latency-table", inputs / "latency.json")
    assert refused.exit_code == 2
    assert "or leave the table out" in refused.message
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize(
    ("content", "rule"),
    [("{", "cannot be read"), ("[]", "holds a list"), ("{}", "its `schema_version` is None")],
)
def test_a_file_that_is_no_table(inputs: Path, tmp_path: Path, content: str, rule: str) -> None:
    (tmp_path / "table.json").write_text(content)
    refused = _search(inputs, tmp_path / "RUN", "--metric", "latency", "--latency-table", tmp_path / "table.json")
    assert refused.exit_code == 2
    assert rule in refused.message


def test_the_table_of_another_network(inputs: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    content = json.loads((inputs / "latency.json").read_text()) | {"network": "another"}
    (tmp_path / "table.json").write_text(json.dumps(content))
    refused = _search(inputs, tmp_path / "RUN", "--metric", "latency", "--latency-table", tmp_path / "table.json")
    assert refused.exit_code == 2
    assert "must be measured for the network that is searched" in refused.message
    assert "--classes 10 --input-shape 3x16x16 --out latency.json`" in refused.message


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [("--dtype", "int8", "one of float32, bfloat16"), ("--threads", "0", "`threads`"), ("--checks", "0", "`--checks`")],
)
def test_measurements_out_of_range(tmp_path: Path, option: str, value: str, rule: str) -> None:
    refused = run("latency", *MODEL, "--out", tmp_path / "latency.json", option, value)
    assert refused.exit_code == 2
    assert rule in refused.message
    assert not (tmp_path / "latency.json").exists()
