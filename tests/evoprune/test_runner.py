"""Runs: killed or interrupted anywhere and resumed, they equal the uninterrupted run, evaluations included."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evoprune.answering import answer_request
from evoprune.callbacks import Callback, EvaluationsFinished, GenerationFinished, SearchOutcome, SearchStarted
from evoprune.evaluation_store import EvaluationStore
from evoprune.execution import InProcessExecutor
from evoprune.run_directory import RunDirectory
from evoprune.runner import run_search
from evoprune.search import EvaluationRequest, LadderPlan, Search, SearchConfig
from evoprune.stopping import MaxEvaluations, MaxSeconds, StopRule
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, RunDirectoryError
from search_spaces.genome import BoolArray, genome_digest
from tests.evoprune.fakes import CountingEvaluator, StoppingFake, make_target, tiny_space

LADDER = LadderPlan("network", screen="cheap", elite="dear", screen_factor=2, n_elites=2)
CONFIG = SearchConfig({"macs": 0.5}, LADDER, population_size=8, n_generations=4)


class Death(BaseException):
    """Ends the process, as no error of a callback does."""


class Recorder(Callback):
    """Keeps what it hears; dies or interrupts after a number of evaluations."""

    def __init__(self, crash_after: int | None = None, interrupt_after: int | None = None) -> None:
        self.events: list[Any] = []
        self.warnings: list[str] = []
        self.crash_after = crash_after
        self.interrupt_after = interrupt_after

    def on_start(self, event: SearchStarted) -> None:
        self.events.append(event)

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        self.events.append(event)
        if self.crash_after is not None and event.n_evaluations >= self.crash_after:
            raise Death("the process dies here")
        if self.interrupt_after is not None and event.n_evaluations >= self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)

    def on_generation(self, event: GenerationFinished) -> None:
        self.events.append(event)

    def on_warning(self, message: str) -> None:
        self.warnings.append(message)

    def on_end(self, outcome: SearchOutcome) -> None:
        self.events.append(outcome)


def make_run(path: Path) -> RunDirectory:
    return RunDirectory.create(path, options={}, hashes={"space": tiny_space().fingerprint})


def run(
    directory: RunDirectory,
    *callbacks: Callback,
    evaluator: CountingEvaluator | None = None,
    stop: StopRule | tuple[StopRule, ...] = (),
    config: SearchConfig = CONFIG,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[SearchOutcome, Search]:
    space = tiny_space()
    search = Search(space, config, seed=11)
    evaluator = evaluator or CountingEvaluator(make_target(space.n_genes))
    executor = InProcessExecutor(evaluator, 1, chunk_size=3)
    try:
        with EvaluationStore(directory.evaluations_path, space.n_genes, space.fingerprint) as store:
            outcome = run_search(
                search, executor, store, directory, callbacks=callbacks, stop=stop, should_stop=should_stop
            )
    finally:
        executor.close()
    return outcome, search


def stored(directory: RunDirectory) -> list[tuple[Any, ...]]:
    with EvaluationStore(directory.evaluations_path, read_only=True) as store:
        return [
            (r.evaluation, r.generation, r.position, r.macs, r.n_params, r.genome.tobytes()) for r in store.records()
        ]


def assert_equal_runs(first: tuple[SearchOutcome, Search], second: tuple[SearchOutcome, Search]) -> None:
    for name, array in first[1].state().arrays.items():
        np.testing.assert_array_equal(array, second[1].state().arrays[name], err_msg=name)
    assert first[1].state().data == second[1].state().data
    assert first[0].best is not None
    assert second[0].best is not None
    assert first[0].best.digest == second[0].best.digest
    assert (first[0].n_evaluations, first[0].n_cached) == (second[0].n_evaluations, second[0].n_cached)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, tuple[SearchOutcome, Search]]:
    directory = make_run(tmp_path_factory.mktemp("whole") / "run")
    return directory, run(directory)


def test_a_run_stores_logs_and_saves_what_it_does(whole: tuple[RunDirectory, tuple[SearchOutcome, Search]]) -> None:
    directory, (outcome, search) = whole
    assert (outcome.status, outcome.reason, outcome.generation) == ("finished", "4 generations", 4)
    records = stored(directory)
    assert len(records) == outcome.n_evaluations
    assert outcome.n_cached == 0
    space = tiny_space()
    for _, _, _, macs, n_params, genome in records:
        bits = np.frombuffer(genome, np.bool_)[None]
        assert (macs, n_params) == (space.macs(bits)[0], space.n_params(bits)[0])
    log = list(directory.read_log())
    assert [event["event"] for event in log] == ["started", *["generation"] * 5, "finished"]
    assert [event["best"] for event in log[1:-1]] == search.logbook.select("best")
    assert log[-1]["n_evaluations"] == outcome.n_evaluations
    assert len(list(directory.checkpoint_path.iterdir())) == 3


@pytest.mark.parametrize("crash_after", [1, 8, 11, 20, 33, 34, 60, 70])
def test_a_run_that_died_anywhere_continues_as_if_it_had_not(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]], crash_after: int
) -> None:
    directory = make_run(tmp_path / "run")
    with pytest.raises(Death):
        run(directory, Recorder(crash_after=crash_after))
    n_before = len(stored(directory))
    evaluator = CountingEvaluator(make_target(tiny_space().n_genes))
    resumed = run(directory, evaluator=evaluator)
    assert_equal_runs(resumed, whole[1])
    assert stored(directory) == stored(whole[0])
    assert len(evaluator.seen) == len(stored(directory)) - n_before  # nothing was evaluated again


@pytest.mark.parametrize("interrupt_after", [1, 9, 40])
def test_ctrl_c_ends_in_order_and_the_run_continues(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]], interrupt_after: int
) -> None:
    directory = make_run(tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    recorder = Recorder(interrupt_after=interrupt_after)
    outcome, _ = run(directory, recorder)
    assert (outcome.status, outcome.reason) == ("interrupted", "stopped by a signal")
    assert recorder.events[-1] is outcome
    assert (outcome.best is None) == (interrupt_after == 1)
    assert outcome.n_evaluations == len(stored(directory)) < len(stored(whole[0]))
    assert signal.getsignal(signal.SIGINT) is handler
    assert_equal_runs(run(directory), whole[1])
    assert stored(directory) == stored(whole[0])
    assert [event["event"] for event in directory.read_log() if event["event"] != "generation"] == [
        "started",
        "interrupted",
        "started" if outcome.generation < 0 else "resumed",
        "finished",
    ]


@pytest.mark.parametrize("n_asked", [0, 1, 9])
def test_whoever_is_asked_may_stop_a_run_that_continues(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]], n_asked: int
) -> None:
    directory = make_run(tmp_path / "run")
    answers = iter([False] * n_asked)
    outcome, _ = run(directory, should_stop=lambda: next(answers, True))
    assert (outcome.status, outcome.reason) == ("interrupted", "asked to stop")
    assert len(stored(directory)) < len(stored(whole[0]))
    assert_equal_runs(run(directory), whole[1])


@dataclasses.dataclass
class Breaking(CountingEvaluator):
    """Raises from a call on, as a device that is lost."""

    works_for: int = 0

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        if len(self.seen) >= self.works_for:
            raise RuntimeError("the device is lost")
        return super().evaluate(genomes, rung)


@pytest.mark.parametrize("works_for", [0, 10])  # before the first generation, and after it
def test_a_machine_that_breaks_ends_the_run_and_condemns_no_genome(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]], works_for: int
) -> None:
    directory = make_run(tmp_path / "run")
    with pytest.raises(ExecutionError, match=r"must be run, but all \d+ of generation .*the device is lost.*resume"):
        run(directory, evaluator=Breaking(make_target(tiny_space().n_genes), works_for=works_for))
    outcome, search = run(directory)
    assert outcome.best is not None
    judged = [row for row in stored(directory) if row[0].rung == CONFIG.ladder.judge]
    assert len(judged) == len([row for row in stored(whole[0]) if row[0].rung == CONFIG.ladder.judge])
    assert_equal_runs((outcome, search), whole[1])


class Impatient(Callback):
    """Two Ctrl-C in a row."""

    def on_generation(self, event: GenerationFinished) -> None:  # noqa: ARG002 - when is enough
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_abandons_at_once(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]]
) -> None:
    directory = make_run(tmp_path / "run")
    outcome, _ = run(directory, Impatient())
    assert (outcome.status, outcome.generation) == ("interrupted", 0)
    assert_equal_runs(run(directory), whole[1])


@pytest.mark.parametrize("n_damaged", [1, 2, 3])
def test_damaged_checkpoints_are_passed_over_with_a_warning(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]], n_damaged: int
) -> None:
    directory = make_run(tmp_path / "run")
    run(directory, stop=MaxEvaluations(70))
    for path in sorted(directory.checkpoint_path.iterdir())[-n_damaged:]:
        path.write_bytes(path.read_bytes()[:100])
    evaluator = CountingEvaluator(make_target(tiny_space().n_genes))
    n_before = len(stored(directory))
    _, search = run(directory, evaluator=evaluator)
    np.testing.assert_array_equal(search.state().arrays["genomes"], whole[1][1].state().arrays["genomes"])
    assert stored(directory) == stored(whole[0])
    assert len(evaluator.seen) == len(stored(directory)) - n_before
    warnings = [event["message"] for event in directory.read_log() if event["event"] == "warning"]
    assert len(warnings) == n_damaged
    assert warnings[0].startswith("checkpoint passed over: generation-")


def test_a_finished_run_can_be_given_more_generations(tmp_path: Path) -> None:
    short, long = make_run(tmp_path / "short"), make_run(tmp_path / "long")
    few = SearchConfig({"macs": 0.5}, LADDER, population_size=8, n_generations=2)
    run(short, config=few)
    assert_equal_runs(run(short), run(long))


@pytest.mark.parametrize("since", [0, 3])
def test_what_was_judged_before_the_network_changed_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    directory = make_run(tmp_path / "run")
    first = run(directory)
    before = stored(directory)
    ask = Search.ask
    monkeypatch.setattr(Search, "ask", lambda search: dataclasses.replace(ask(search), since=since))
    evaluator = CountingEvaluator(make_target(tiny_space().n_genes))
    for _ in range(2):  # another network judges all of them anew, once
        shutil.rmtree(directory.checkpoint_path)
        directory.checkpoint_path.mkdir()
        again = run(directory, evaluator=evaluator)
        assert len(evaluator.seen) == (len(before) if since else 0)
        assert_equal_runs(again, first)
        assert stored(directory) == sorted(before * (2 if since else 1), key=before.index)


def test_a_run_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    run(directory, stop=MaxEvaluations(10))
    search = Search(tiny_space(), CONFIG, seed=12)
    executor = InProcessExecutor(CountingEvaluator(make_target(tiny_space().n_genes)), 1)
    with (
        EvaluationStore(directory.evaluations_path, tiny_space().n_genes) as store,
        pytest.raises(RunDirectoryError, match="seed"),
    ):
        run_search(search, executor, store, directory)
    executor.close()


def test_events_add_up(tmp_path: Path) -> None:
    recorder = Recorder()
    outcome, search = run(make_run(tmp_path / "run"), recorder)
    assert isinstance(recorder.events[0], SearchStarted)
    assert recorder.events[-1] is outcome
    generations = [event for event in recorder.events if isinstance(event, GenerationFinished)]
    assert [event.generation for event in generations] == [0, 1, 2, 3, 4]
    assert [event.row for event in generations] == [dict(row) for row in search.logbook]
    chunks = [event for event in recorder.events if isinstance(event, EvaluationsFinished)]
    assert sum(len(event.evaluations) for event in chunks) == outcome.n_evaluations
    assert all(event.n_done <= event.n_requested for event in chunks)
    assert {event.role for event in chunks} == {"screen", "judge", "elite"}


class Failing(Callback):
    """Raises at its first event of one kind, and counts what it still hears."""

    def __init__(self, event: str) -> None:
        self.n_heard = 0
        setattr(self, event, self._fail)

    def _fail(self, event: object) -> None:  # noqa: ARG002 - whatever it hears
        self.n_heard += 1
        raise OSError("no space left for this callback")


@pytest.mark.parametrize("event", ["on_start", "on_evaluations", "on_generation", "on_warning", "on_end"])
def test_a_callback_that_raises_is_dropped_and_the_search_goes_on(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]], event: str
) -> None:
    directory = make_run(tmp_path / "run")
    failing, recorder = Failing(event), Recorder()
    first = Failing("on_start") if event == "on_warning" else Callback()
    assert_equal_runs(run(directory, first, failing, recorder), whole[1])
    assert stored(directory) == stored(whole[0])
    assert failing.n_heard == 1
    expected = (
        "callback Failing raised OSError: no space left for this callback; it hears nothing more, the search goes on"
    )
    warned = [entry["message"] for entry in directory.read_log() if entry["event"] == "warning"]
    assert warned == recorder.warnings == [expected] * (2 if event == "on_warning" else 1)
    assert len([e for e in recorder.events if isinstance(e, GenerationFinished)]) == 5


def test_an_error_that_ends_a_search_is_logged_and_told(tmp_path: Path) -> None:
    class Listening(Recorder):
        def on_failure(self, message: str) -> None:
            self.events.append(message)

    everything = {genome_digest(genome) for genome in Search(tiny_space(), CONFIG, seed=11).ask().genomes}
    evaluator = CountingEvaluator(make_target(tiny_space().n_genes), nan_on=frozenset(everything))
    directory, recorder = make_run(tmp_path / "run"), Listening()
    with pytest.raises(ExecutionError, match="all 8 failed") as caught:
        run(directory, recorder, evaluator=evaluator)
    assert recorder.events[-1] == f"ExecutionError: {caught.value}"
    assert list(directory.read_log())[-1] == {"event": "failed", "reason": recorder.events[-1]}


def test_time_ends_a_search_inside_a_generation_but_never_before_the_first(tmp_path: Path) -> None:
    outcome, _ = run(make_run(tmp_path / "run"), stop=(MaxSeconds(1e-9),))
    assert (outcome.status, outcome.generation) == ("finished", 0)
    assert outcome.best is not None


KILLED = """
import os, signal, sys
from pathlib import Path
from evoprune.answering import answer_request
from evoprune.callbacks import Callback
from evoprune.run_directory import RunDirectory
from tests.evoprune.test_runner import run

class Killer(Callback):
    def on_evaluations(self, event):
        if event.n_evaluations >= 47:
            os.kill(os.getpid(), signal.SIGKILL)

run(RunDirectory.open_existing(Path(sys.argv[1])), Killer())
"""


def test_a_process_killed_inside_a_generation_loses_nothing(
    tmp_path: Path, whole: tuple[RunDirectory, tuple[SearchOutcome, Search]]
) -> None:
    directory = make_run(tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory.path)], cwd=Path(__file__).parents[2], check=False
    )
    assert result.returncode == -signal.SIGKILL
    assert len(stored(directory)) >= 47
    assert_equal_runs(run(directory), whole[1])
    assert stored(directory) == stored(whole[0])
    json.loads(directory.log_path.read_text().splitlines()[-1])


def test_evaluations_are_counted_at_the_end_of_a_generation(tmp_path: Path) -> None:
    """What a screen has chosen is judged before the search ends."""
    outcome, search = run(make_run(tmp_path / "run"), stop=MaxEvaluations(12))
    assert outcome.reason == "12 evaluations"
    assert outcome.n_evaluations > 12
    assert search.generation == 1
    judged = [
        record[1] for record in stored(RunDirectory.open_existing(tmp_path / "run")) if record[0].rung == "network"
    ]
    assert set(judged) == {0, 1}


def test_time_counts_that_went_into_a_generation_that_did_not_end(tmp_path: Path) -> None:
    """A run that time has ended stays ended, however often it is resumed under the same limit."""
    directory, seconds = make_run(tmp_path / "run"), iter(range(10**6))

    def timed() -> SearchOutcome:
        space = tiny_space()
        executor = InProcessExecutor(CountingEvaluator(make_target(space.n_genes)), 1, chunk_size=1)
        with EvaluationStore(directory.evaluations_path, space.n_genes, space.fingerprint) as store:
            outcome = run_search(
                Search(space, CONFIG, seed=11),
                executor,
                store,
                directory,
                stop=MaxSeconds(60.0),
                clock=lambda: float(next(seconds)),
            )
        executor.close()
        return outcome

    first = timed()
    assert first.reason == "60 s"
    n_stored = len(stored(directory))
    second = timed()
    assert second.reason == "60 s"
    assert first.best is not None
    assert second.best is not None
    assert second.best.digest == first.best.digest
    assert len(stored(directory)) == n_stored
    assert second.elapsed_s >= first.elapsed_s
    assert first.n_evaluations == n_stored
    assert (second.n_evaluations, second.n_cached) == (first.n_evaluations, first.n_cached)


DIES_AT = {
    "log": "evoprune.runner._Session._log_generation",
    "store": "evoprune.course.CourseWriter.on_generation",
}


@pytest.mark.parametrize("place", DIES_AT)
def test_a_generation_that_was_saved_is_logged_though_the_process_died_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Death("the process dies here")

    directory = make_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(DIES_AT[place], die)
        with pytest.raises(Death):
            run(directory)
    run(directory)
    with EvaluationStore(directory.evaluations_path, read_only=True) as store:
        assert [row["gen"] for row in store.generations()] == [0, 1, 2, 3, 4]
    log = [event["gen"] for event in directory.read_log() if event["event"] == "generation"]
    assert log == [0, 1, 2, 3, 4]


STOPPING = dataclasses.replace(CONFIG, ladder=LadderPlan("network"), surrogate_factor=1, n_best=8, n_generations=8)


def test_survivors_are_those_of_a_run_that_stops_no_evaluation(tmp_path: Path) -> None:
    n_genes = tiny_space().n_genes
    whole = run(make_run(tmp_path / "whole"), config=STOPPING)
    evaluator = StoppingFake(make_target(n_genes))
    directory = make_run(tmp_path / "stopped")
    stopped = run(directory, config=STOPPING, evaluator=evaluator)
    assert [row["best"] for row in stopped[1].logbook] == [row["best"] for row in whole[1].logbook]
    first, second = (search.population for _, search in (whole, stopped))
    assert [(i.digest, i.objective) for i in first] == [(i.digest, i.objective) for i in second]
    evaluations = [row[0] for row in stored(directory)]
    assert 0 < sum(e.is_stopped for e in evaluations) < len(evaluations)
    assert evaluator.limits == sorted(evaluator.limits, reverse=True)


@pytest.mark.parametrize("crash_after", [9, 20, 33, 51])
def test_a_run_that_stops_evaluations_is_resumed_exactly(tmp_path: Path, crash_after: int) -> None:
    def evaluator() -> StoppingFake:
        return StoppingFake(make_target(tiny_space().n_genes))

    whole_directory, directory = make_run(tmp_path / "whole"), make_run(tmp_path / "run")
    whole = run(whole_directory, config=STOPPING, evaluator=evaluator())
    with pytest.raises(Death):
        run(directory, Recorder(crash_after), config=STOPPING, evaluator=evaluator())
    assert_equal_runs(whole, run(directory, config=STOPPING, evaluator=evaluator()))
    assert stored(directory) == stored(whole_directory)


def test_what_was_stopped_is_judged_again_for_who_needs_more(tmp_path: Path) -> None:
    space = tiny_space()
    genomes = space.sample(rng=np.random.default_rng(0), n=6, macs_budget=0.5)
    digests = tuple(genome_digest(genome) for genome in genomes)
    evaluator = StoppingFake(make_target(space.n_genes))
    whole = evaluator.evaluate(genomes, "network")
    low, middle, high = (sorted(e.objective for e in whole)[index] for index in (1, 2, 4))
    executor = InProcessExecutor(evaluator, 1)
    with EvaluationStore(tmp_path / "e.sqlite", space.n_genes) as store:

        def ask(limit: float, generation: int = 0) -> tuple[list[Evaluation], int]:
            evaluator.seen.clear()
            request = EvaluationRequest(generation, "network", "judge", genomes, digests, limit=limit)
            answers = answer_request(
                request, space, executor, store, on_known=lambda *_: None, on_chunk=lambda *_: None
            )
            return answers, len(evaluator.seen)

        first, n_first = ask(middle)
        assert (sum(e.is_stopped for e in first), n_first) == (3, 6)
        assert ask(low) == (first, 0)
        again, n_again = ask(high, 1)
        assert [e.is_stopped for e in again] == [e.objective > high for e in whole]
        assert 2 <= n_again <= 3
        assert ask(math.inf, 2)[0] == whole
        assert [record.evaluation.is_whole for record in store.records()] == [True] * 6
    executor.close()
