"""`evoprune watch`: what it shows of a run, as people and as programs read it, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from evoprune.cli import watch_command
from evoprune.cli.watch_view import RateMeter, duration, snapshot_line, snapshot_view, sparkline
from evoprune.course import RungFigures, RunSnapshot
from evoprune.run_directory import RunDirectory
from tests.evoprune.test_runner import make_run
from tests.evoprune.test_runner import run as run_tiny
from tests.integration.command_line import run


def _snapshot(**changes: object) -> RunSnapshot:
    rows = tuple({"gen": i, "best": value} for i, value in enumerate((0.8, 0.4, 0.4, 0.1)))
    content = {
        "run": "runs/[a]",
        "status": "running",
        "generation": 3,
        "n_generations": 7,
        "rung": "network",
        "role": "judge",
        "n_done": 4,
        "n_requested": 8,
        "n_evaluations": 90,
        "rungs": {"cheap": RungFigures(60, 6.0), "network": RungFigures(30, 60.0)},
        "best_objective": 0.1,
        "best_rung": "network",
        "generations": rows,
        "elapsed_s": 90.0,
    }
    return RunSnapshot(**{**content, **changes})  # type: ignore[arg-type]


def _shown(snapshot: RunSnapshot) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(snapshot_view(snapshot, RateMeter()))
    return capture.get()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = make_run(tmp_path_factory.mktemp("watch") / "run")
    run_tiny(directory)
    return directory


def test_a_sparkline_spans_least_to_largest() -> None:
    assert sparkline([0.8, 0.4, 0.4, 0.1]) == "█▄▄▁"
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    long = sparkline([float(i) for i in range(1000)], width=16)
    assert len(long) == 16
    assert (long[0], long[-1]) == ("▁", "█")
    assert list(long) == sorted(long)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_running_search() -> None:
    shown = _shown(_snapshot())
    assert "runs/[a]  running" in shown
    assert "3 of 7; judge at network: 4 of 8" in shown
    assert "0.1 (network)  █▄▄▁" in shown
    assert "1 min 30 s, about 1 min 10 s left" in shown  # 4.5 of 8 generations in 90 s
    assert "nothing new" not in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["cheap", "60", "0.667", "0.1"] in rows
    assert ["network", "30", "0.333", "2"] in rows
    assert "nothing new for 2 min 0 s" in _shown(_snapshot(silent_s=120.0))


def test_stages_and_fronts() -> None:
    rows = [{"gen": 0, "best": 0.1, "stage": "32x32"}, {"gen": 1, "best": 0.9, "stage": "16x16"}]
    staged = _snapshot(generations=(*rows, {"gen": 2, "best": 0.5, "stage": "16x16"}), generation=2)
    assert staged.history == [0.9, 0.5]  # objectives of another stage do not compare
    assert "2 of 7, stage 16x16; judge at network: 4 of 8" in _shown(staged)
    assert "hypervolume" not in _shown(staged)
    front = _snapshot(generations=tuple({"gen": i, "hypervolume": value} for i, value in enumerate((0.1, 0.3))))
    assert "hypervolume  0.3  ▁█" in _shown(front)


def test_other_states() -> None:
    assert "preparing" in _shown(RunSnapshot("run", "preparing"))
    ended = _shown(_snapshot(status="finished", reason="7 generations"))
    assert "finished: 7 generations" in ended
    assert "left" not in ended
    early = _shown(_snapshot(generation=-1, generations=(), best_objective=None))
    assert "none yet of 7; judge at network: 4 of 8" in early
    assert snapshot_line(_snapshot(status="killed", reason="its process is gone")) == (
        "killed: its process is gone  generation 3 of 7  90 evaluations  best 0.1"
    )


def test_rates_are_those_of_the_last_half_minute() -> None:
    meter = RateMeter()
    assert meter.rates(_snapshot(elapsed_s=10.0, rungs={"network": RungFigures(20, 1.0)})) == {"network": 2.0}
    assert meter.rates(_snapshot(elapsed_s=20.0, rungs={"network": RungFigures(30, 1.0)})) == {"network": 1.0}
    assert meter.rates(_snapshot(elapsed_s=60.0, rungs={"network": RungFigures(34, 1.0)})) == {"network": 0.1}
    again = {"network": RungFigures(34, 1.0), "cheap": RungFigures(5, 1.0)}
    assert meter.rates(_snapshot(elapsed_s=50.0, rungs=again)) == {"network": 0.68, "cheap": 0.1}


def test_once(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the folder's name may be long, and a table breaks its lines
    outcome = run("watch", finished.path, "--once")
    assert outcome.exit_code == 0
    assert "finished: 4 generations" in outcome.stdout
    assert outcome.stderr == ""
    (line,) = run("watch", finished.path, "--once", "--json").stdout.splitlines()
    figures = json.loads(line)
    assert figures["status"] == "finished"
    assert len(figures["generations"]) == 5
    assert figures["evaluations_per_second"] > 0


def test_a_run_that_has_ended_ends_the_watching(finished: RunDirectory) -> None:
    (line,) = run("watch", finished.path).stdout.splitlines()
    assert line.startswith("finished: 4 generations  generation 4 of 4  ")
    (line,) = run("watch", finished.path, "--json", "--interval", "0.2").stdout.splitlines()
    assert json.loads(line)["generation"] == 4


def test_a_terminal_is_redrawn(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=100, record=True, color_system=None)
    monkeypatch.setattr(watch_command, "stdout_console", lambda: console)
    assert run("watch", finished.path).exit_code == 0
    assert "4 of 4" in console.export_text()


def test_ctrl_c_ends_the_watching_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evoprune.course.follow.__kwdefaults__", {"interval_s": 1.0, "sleep": interrupt})
    outcome = run("watch", make_run(tmp_path / "run").path)
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("preparing")
    assert outcome.stderr == "no longer watching; the run is not affected\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "a run directory must hold config.json"),
        (["nowhere", "--once", "--json"], "a run directory must hold config.json"),
        (["run", "--interval", "0"], "`0.1 <= interval` must hold"),
    ],
)
def test_wrong_use(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(finished.path.parent)
    outcome = run("watch", *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.message
    assert outcome.stdout == ""
