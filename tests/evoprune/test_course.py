"""Where a run stands, seen from beside it: live, ended in every way, killed; and the run does not notice."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from evoprune.callbacks import Callback, EvaluationsFinished, GenerationFinished
from evoprune.course import CourseWriter, RunSnapshot, follow, read_snapshot
from evoprune.evaluation_store import EvaluationStore
from evoprune.run_directory import RunDirectory
from evoprune.stopping import MaxEvaluations
from search_spaces.errors import ExecutionError, OptionError, RunDirectoryError
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space
from tests.evoprune.test_runner import KILLED, Recorder, assert_equal_runs, make_run, run, stored


class Pausing(Callback):
    """Stops the search at every event until it is let go, so that it can be looked at."""

    def __init__(self) -> None:
        self.events: list[EvaluationsFinished | GenerationFinished] = []
        self.paused, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        self._pause(event)

    def on_generation(self, event: GenerationFinished) -> None:
        self._pause(event)

    def _pause(self, event: EvaluationsFinished | GenerationFinished) -> None:
        self.events.append(event)
        self.paused.release()
        assert self.go_on.acquire(timeout=60)


def _looks(directory: RunDirectory) -> Iterator[tuple[EvaluationsFinished | GenerationFinished, RunSnapshot]]:
    """Yield every event of a run in another thread with what is seen from here at that moment."""
    pausing = Pausing()
    thread = threading.Thread(target=run, args=(directory, pausing))
    thread.start()
    try:
        while pausing.paused.acquire(timeout=0.05) or thread.is_alive():
            if pausing.events:
                yield pausing.events.pop(), read_snapshot(directory.path)
                pausing.go_on.release()
    finally:
        pausing.go_on.release(1000)
        thread.join()


def test_a_live_run_is_seen_as_it_is_and_does_not_notice(tmp_path: Path) -> None:
    unwatched, watched = make_run(tmp_path / "unwatched"), make_run(tmp_path / "watched")
    _, search = run(unwatched)
    n_looks = 0
    for event, snapshot in _looks(watched):
        n_looks += 1
        assert snapshot.status == "running"
        assert (snapshot.n_evaluations, snapshot.n_cached) == (event.n_evaluations, event.n_cached)
        assert sum(figures.n_evaluations for figures in (snapshot.rungs or {}).values()) == event.n_evaluations
        assert snapshot.elapsed_s >= event.elapsed_s
        if isinstance(event, GenerationFinished):
            assert snapshot.generation == event.generation
            assert snapshot.best_objective == event.best.objective
            assert snapshot.history == search.logbook.select("best")[: event.generation + 1]
        else:
            assert (snapshot.rung, snapshot.role) == (event.rung, event.role)
            assert (snapshot.n_done, snapshot.n_requested) == (event.n_done, event.n_requested)
            assert snapshot.generation == event.generation - 1
    assert n_looks > 20
    assert stored(watched) == stored(unwatched)
    last = read_snapshot(watched.path)
    assert (last.status, last.reason, last.generation) == ("finished", "4 generations", 4)
    assert sorted(path.name for path in watched.path.iterdir()) == sorted(
        path.name for path in unwatched.path.iterdir()
    )


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        run(directory)

    seen = [snapshot.status for snapshot in follow(directory.path, interval_s=0.25, sleep=sleep)]
    assert seen == ["preparing", "finished"]
    assert sleeps == [0.25]


def test_a_reader_of_a_finished_run_leaves_its_folder_as_it_is(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    run(directory)
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    snapshot = read_snapshot(directory.path)
    assert json.loads(json.dumps(snapshot.to_json(), allow_nan=False))["rungs"]["network"]["n_evaluations"] > 0
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_and_one_that_failed(tmp_path: Path) -> None:
    interrupted, failed = make_run(tmp_path / "interrupted"), make_run(tmp_path / "failed")
    run(interrupted, Recorder(interrupt_after=40))
    snapshot = read_snapshot(interrupted.path)
    assert (snapshot.status, snapshot.reason, snapshot.has_ended) == ("interrupted", "stopped by a signal", True)
    evaluator = CountingEvaluator(make_target(tiny_space().n_genes))
    evaluator.evaluate = lambda *_: []  # type: ignore[method-assign]
    with pytest.raises(ExecutionError):
        run(failed, evaluator=evaluator)
    snapshot = read_snapshot(failed.path)
    assert snapshot.status == "failed"
    assert snapshot.reason.startswith("ExecutionError: ")


def test_a_run_that_was_killed_is_told_apart_and_its_course_goes_on_when_resumed(tmp_path: Path) -> None:
    directory, whole = make_run(tmp_path / "run"), make_run(tmp_path / "whole")
    arguments = [sys.executable, "-c", KILLED, str(directory.path)]
    assert subprocess.run(arguments, cwd=Path(__file__).parents[2], check=False).returncode == -signal.SIGKILL
    snapshot = read_snapshot(directory.path)
    remedy = f"its process is gone; continue it with `evoprune resume {directory.path}`"
    assert (snapshot.status, snapshot.reason) == ("killed", remedy)
    assert snapshot.generation >= 0
    assert_equal_runs(run(directory), run(whole))
    first, second = read_snapshot(directory.path), read_snapshot(whole.path)
    assert first.history == second.history
    assert [row["n_evaluations"] for row in first.generations] == [row["n_evaluations"] for row in second.generations]


def test_a_run_that_died_before_its_store_was_made_is_told_from_one_in_preparation(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    later = directory.changed_at() + 3600.0
    assert read_snapshot(directory.path).status == "preparing"  # its process has not come to the lock yet
    with directory.locked():
        assert read_snapshot(directory.path, now=lambda: later).status == "preparing"
    snapshot = read_snapshot(directory.path, now=lambda: later)
    assert (snapshot.status, snapshot.has_ended) == ("killed", True)
    assert f"`evoprune resume {directory.path}`" in snapshot.reason
    EvaluationStore(directory.evaluations_path, tiny_space().n_genes).close()
    later = directory.changed_at() + 3600.0
    assert read_snapshot(directory.path, now=lambda: later).status == "killed"


def _refuse(*_: object) -> None:
    raise PermissionError("it is another user's process")


def test_a_silent_run_on_another_machine_is_taken_for_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(tmp_path / "run")
    run(directory, stop=MaxEvaluations(20))
    with EvaluationStore(directory.evaluations_path, tiny_space().n_genes) as store:
        status = {**store.status(), "status": "running", "host": "elsewhere", "updated_at": 1000.0, "elapsed_s": 50.0}
        store.put_course(status)
    snapshot = read_snapshot(directory.path, now=lambda: 1030.0)
    assert (snapshot.status, snapshot.silent_s, snapshot.elapsed_s) == ("running", 30.0, 80.0)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    monkeypatch.setattr(os, "kill", _refuse)
    assert read_snapshot(directory.path).status == "running"


def test_rows_of_generations_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    run(directory)
    (newest, *_) = sorted(directory.checkpoint_path.iterdir(), reverse=True)
    newest.unlink()
    pausing = Recorder(interrupt_after=1)
    run(directory, pausing)
    assert [row["gen"] for row in read_snapshot(directory.path).generations] == [0, 1, 2, 3]


def test_a_course_that_cannot_be_written_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, recorder = make_run(tmp_path / "run"), Recorder()

    def full(*_: object) -> None:
        raise RunDirectoryError("database or disk is full")

    monkeypatch.setattr(EvaluationStore, "put_course", full)
    outcome, _ = run(directory, recorder)
    assert outcome.status == "finished"
    assert [message.split(":")[0] for message in recorder.warnings] == [
        "callback CourseWriter raised RunDirectoryError"
    ]
    assert read_snapshot(directory.path).status == "preparing"


def test_infinite_figures_become_null(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "e.sqlite", 5) as store:
        store.put_course({"status": "running"}, {"gen": 0, "max": float("inf"), "best": 1.5})
        assert store.generations() == [{"gen": 0, "max": None, "best": 1.5}]
        store.drop_generations_after(-1)
        assert store.generations() == []


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 0.05, float("inf"), float("nan")])
def test_an_interval_must_be_a_tenth_of_a_second_or_longer(tmp_path: Path, interval_s: float) -> None:
    with pytest.raises(OptionError, match=r"`0.1 <= interval` must hold"):
        next(follow(make_run(tmp_path / "run").path, interval_s=interval_s))


def test_no_run_directory_and_a_damaged_store(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"must hold config\.json"):
        read_snapshot(tmp_path)
    directory = make_run(tmp_path / "run")
    directory.evaluations_path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        read_snapshot(directory.path)


def test_an_error_before_the_search_goes_on_leaves_what_was_written(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    run(directory, stop=MaxEvaluations(20))
    before = read_snapshot(directory.path)
    with EvaluationStore(directory.evaluations_path, tiny_space().n_genes) as store:
        CourseWriter(store).on_failure("no checkpoint")
    snapshot = read_snapshot(directory.path)
    assert (snapshot.status, snapshot.reason) == ("failed", "no checkpoint")
    assert (snapshot.generation, snapshot.best_objective) == (before.generation, before.best_objective)
    assert snapshot.elapsed_s == before.elapsed_s > 0
