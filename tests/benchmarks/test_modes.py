"""The comparison of modes: it runs, goes on where it was stopped, and its figures are those of its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.modes import main, planned_generations, tasks_of
from benchmarks.modes_methods import DEAP_EA, GREEDY, OPEN_ENDED, Course, Setting, Task
from benchmarks.modes_page import value_at, write_page
from search_spaces.errors import OptionError

SETTING = {
    "evaluations": 20,
    "seconds": 4.0,
    "population": 4,
    "images": 8,
    "calibration_images": 8,
    "check_images": 8,
    "compensation": "none",
}


def _row(method: str, *steps: tuple[int, float, float], seed: int = 0, protocol: str = "both", **more: Any) -> Any:
    return {
        "task": {"network": "net", "budget": 0.5, "seed": seed, "method": method, "protocol": protocol},
        "setting": SETTING,
        "versions": {"torch": "2"},
        "steps": [list(step) for step in steps],
        "n_evaluations": more.get("n_evaluations", 40),
        "seconds": more.get("seconds", 8.0),
        "check": more.get("check", {"objective": 2.0, "accuracy": 0.75}),
    }


@pytest.fixture
def rows() -> list[Any]:
    return [
        _row(GREEDY, (1, 0.1, 1.0), n_evaluations=1, seconds=0.1, check={"objective": 4.0, "accuracy": 0.5}),
        _row("global", (1, 0.2, 2.0), (10, 2.0, 0.8), (18, 5.0, 0.6), (30, 6.0, 0.4)),
        _row("random", (1, 0.2, 2.0), (4, 1.0, 0.7), seconds=20.0),
        _row("staged", (2, 0.2, 0.9), protocol="evaluations", seconds=4.0),
        _row("staged", (2, 0.2, 0.5), protocol="seconds", seconds=4.0),
    ]


def test_values_are_those_of_their_moment(rows: list[Any]) -> None:
    assert value_at(rows[1], evaluations=20) == 0.6
    assert value_at(rows[1], seconds=4.0) == 0.8
    assert value_at(rows[3], evaluations=1) is None
    assert value_at(rows[0], seconds=0.01) == 1.0  # one genome is there from the start


def test_tables_hold_ratios_and_verdicts_name_where_global_loses(rows: list[Any]) -> None:
    text = write_page(rows, SETTING, None)
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert cells["global"] == ["0.600", "0.800", "0.500", "75.0%", "5"]
    assert cells["staged"] == ["0.900", "0.500", "0.500", "75.0%", "10"]
    assert "* after 20 evaluations, `global` beats `greedy` in 1 of 1 cases (medians)." in text
    assert "* after 20 evaluations, `global` beats `random` in 1 of 1 cases (medians)." in text
    assert "* after 4 s, `global` beats `random` in 0 of 1 cases (medians); not at net at 0.5." in text
    assert "`staged` has 2.00 times as many candidates judged per second as `global`" in text


def test_medians_over_seeds_are_ratios_within_each_seed(rows: list[Any]) -> None:
    more = [_row(GREEDY, (1, 0.1, 10.0), seed=1, n_evaluations=1), _row("global", (1, 0.1, 2.0), seed=1)]
    assert "0.400 (0.200 to 0.600)" in write_page([*rows, *more], SETTING, None)


def test_only_genomes_within_the_budget_improve_a_course() -> None:
    course = Course([])
    judged = ((5.0, True), (1.0, False), (float("inf"), True), (6.0, True), (4.0, True))
    for genome, (objective, is_feasible) in zip("abcde", judged, strict=True):
        course.add(genome, objective, 0.5 * course.n_evaluations, is_feasible=is_feasible)  # type: ignore[arg-type]
    assert course.steps == [(1, 0.0, 5.0), (5, 2.0, 4.0)]
    assert course.n_evaluations == 5
    assert (course.winner(), course.winner(evaluations=4), course.winner(seconds=-1.0)) == ("e", "a", None)


def test_a_core_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match=r"`--core` must be one of \[.*\], but got 4096"):
        main(["--smoke", "--core", "4096"])


def test_planned_seconds_become_generations_at_the_measured_rate() -> None:
    setting = Setting(evaluations=24, seconds=10.0, population=4, images=8, calibration_images=8, check_images=8)
    by_evaluations, by_seconds = tasks_of("net", 0.5, 0, ["staged"])
    results: Any = type("Rows", (), {"rows": {by_evaluations: {"n_generations": 6, "seconds": 3.0}}})
    assert planned_generations(by_evaluations, setting, results) == 24 // 4 - 1
    assert planned_generations(by_seconds, setting, results) == 6 * 10 // 3
    assert [task.protocol for task in tasks_of("net", 0.5, 0, [GREEDY, "global", DEAP_EA])] == ["both"] * 3


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(OptionError, match="methods are greedy, eaMuPlusLambda and the modes"):
        main(["--smoke", "--methods", "gready"])


@pytest.mark.slow
def test_smoke_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "modes.jsonl", tmp_path / "docs" / "page.md"
    assert main(["--smoke", "--out", str(out), "--docs", str(page)]) == 0
    lines = out.read_text().splitlines()
    tasks = [Task(**json.loads(line)["task"]) for line in lines]
    assert {GREEDY, "global", DEAP_EA} <= {task.method for task in tasks}
    for line in map(json.loads, lines):
        objectives = [step[2] for step in line["steps"]]
        assert objectives == sorted(objectives, reverse=True)
        assert line["n_evaluations"] >= (12 if line["task"]["method"] in OPEN_ENDED else 1)
    (plot,) = (tmp_path / "docs").glob("*.svg")
    ElementTree.parse(plot)
    assert page.read_text().startswith("# Ways of searching, compared\n")

    out.write_text("\n".join([*lines[:-1], lines[-1][:40]]))  # stopped while a line was written
    capsys.readouterr()
    assert main(["--smoke", "--out", str(out)]) == 0
    ran = [line for line in capsys.readouterr().out.splitlines() if " seed 0 " in line]
    assert len(ran) == 1
    assert f"{tasks[-1].method} ({tasks[-1].protocol})" in ran[0]
    assert len(out.read_text().splitlines()) >= len(lines)
