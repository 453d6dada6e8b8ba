"""Runs a search: looks up what is known, evaluates the rest, stores, saves, tells, and stops cleanly.

Every finished chunk of evaluations is stored at once and every finished generation is saved. A run that is killed at
any moment therefore continues with nothing lost but the chunks in flight, and ends as the uninterrupted run does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from evoprune.answering import answer_request
from evoprune.callbacks import (
    Callback,
    EvaluationsFinished,
    GenerationFinished,
    Listeners,
    SearchOutcome,
    SearchStarted,
)
from evoprune.checkpoint import CheckpointFolder
from evoprune.course import CourseWriter
from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from evoprune.execution.protocol import Executor
from evoprune.interruption import first_interrupt_sets
from evoprune.run_directory import RunDirectory
from evoprune.search import EvaluationRequest, SearchState, Strategy, comparable_rows
from evoprune.stopping import AnyOf, Progress, StopRule
from fitness.evaluation import Evaluation
from search_spaces.errors import RunDirectoryError

_BY_SIGNAL = "stopped by a signal"


def run_search(
    search: Strategy,
    executor: Executor,
    store: EvaluationStore,
    run_directory: RunDirectory,
    *,
    callbacks: Sequence[Callback] = (),
    stop: StopRule | Sequence[StopRule] = (),
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> SearchOutcome:
    """Run ``search`` to its end, from the last checkpoint of ``run_directory`` where there is one.

    The first Ctrl-C lets the chunk in flight end, the second abandons it (threads of this process end theirs first);
    either way the outcome is ``interrupted`` and the run can be continued by the same call.

    Args:
        search: A new search; it is restored from the checkpoint.
        executor: Where genomes are evaluated; stays open.
        store: Evaluations of this run; stays open.
        run_directory: Where checkpoints and the log go.
        callbacks: Told in order; one that raises is dropped with a warning.
        stop: Rules besides the end of the search itself. A search that is not complete yet when one applies goes on,
            but leaves out what it can.
        should_stop: Asked after every chunk; True interrupts the run as Ctrl-C does.
        clock: Seconds that only grow.

    Raises:
        ExecutionError: Workers cannot be had, or the whole initial population failed.
        RunDirectoryError: The run directory cannot be written, or its checkpoint belongs to another search.
    """
    extra = (stop,) if not isinstance(stop, Sequence) else tuple(stop)
    return _Session(search, executor, store, run_directory, tuple(callbacks), AnyOf(extra), should_stop, clock).run()


class _Stopped(Exception):  # noqa: N818 - not an error
    """Ends a session in the middle of a generation."""

    def __init__(self, status: Literal["finished", "interrupted"], reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class _Session:
    """One process's share of a run."""

    def __init__(
        self,
        search: Strategy,
        executor: Executor,
        store: EvaluationStore,
        run_directory: RunDirectory,
        callbacks: tuple[Callback, ...],
        rules: AnyOf,
        should_stop: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._search = search
        self._executor = executor
        self._store = store
        self._run_directory = run_directory
        self._listeners = Listeners(
            (CourseWriter(store), *callbacks), lambda message: run_directory.append_log("warning", message=message)
        )
        self._rules = rules
        self._urgent_rules = rules.urgent_part()
        self._should_stop = should_stop
        self._clock = clock
        self._checkpoints = CheckpointFolder(run_directory.checkpoint_path)
        self._n_evaluations = 0
        self._n_cached = 0
        self._n_saved = 0  # evaluations up to the last checkpoint
        self._counted: set[tuple[str, str, int]] = set()  # those since then: a probe may be asked for again
        self._n_cached_before = 0
        self._elapsed_before_s = 0.0
        self._started_at = clock()
        self._is_interrupted = threading.Event()

    @property
    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + self._clock() - self._started_at

    def run(self) -> SearchOutcome:
        status: Literal["finished", "interrupted"] = "finished"
        with first_interrupt_sets(self._is_interrupted):
            try:
                self._restore()
                self._announce()
                self._check_interruption()
                has_ended = True  # a generation: checkpoints are made there
                while (reason := self._stop_reason(has_ended)) is None:
                    has_ended = self._step()
                    self._check_stop()
            except _Stopped as stopped:
                status, reason = stopped.status, stopped.reason
            except KeyboardInterrupt:
                status, reason = "interrupted", _BY_SIGNAL
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                with suppress(RunDirectoryError):  # it may be what failed
                    self._run_directory.append_log("failed", reason=message)
                self._listeners.failure(message)
                raise
        # Those of a generation that an earlier session began count, too, where this one did not ask for them again.
        n_begun = self._store.count_after(self._search.generation)
        outcome = SearchOutcome(
            status,
            reason,
            self._search.best,
            self._search.generation,
            max(self._n_evaluations, self._n_saved + n_begun),
            max(self._n_cached, self._n_cached_before),
            self._elapsed_s,
        )
        self._run_directory.append_log(
            status,
            reason=reason,
            generation=outcome.generation,
            n_evaluations=outcome.n_evaluations,
            n_cached=outcome.n_cached,
            elapsed_s=round(outcome.elapsed_s, 3),
        )
        self._listeners.end(outcome)
        return outcome

    def _step(self) -> bool:
        """Answer one request of the search; save where that ends a generation, and return whether it did."""
        request = self._search.ask()
        if not self._search.tell(self._evaluate(request)):
            return False
        self._save()
        self._log_generation()
        self._listeners.generation(self._generation_event())
        return True

    def _log_generation(self) -> None:
        self._run_directory.append_log(
            "generation",
            **self._search.logbook[-1],
            n_evaluations=self._n_evaluations,
            n_cached=self._n_cached,
            elapsed_s=round(self._elapsed_s, 3),
        )

    def _generation_event(self) -> GenerationFinished:
        best = self._search.best
        assert best is not None
        row = dict(self._search.logbook[-1])
        return GenerationFinished(
            self._search.generation, row, best, self._n_evaluations, self._n_cached, self._elapsed_s
        )

    def _evaluate(self, request: EvaluationRequest) -> list[Evaluation]:
        """Return the evaluations of ``request``, from the store or the executor, and store the new ones."""

        def count(digests: Sequence[str]) -> None:
            new = {(digest, request.rung, request.since) for digest in digests} - self._counted
            self._n_evaluations += len(new)
            self._n_cached += len(digests) - len(new)
            self._counted |= new

        def on_known(records: Sequence[StoredEvaluation]) -> None:
            # What a killed session stored for this very request counts as evaluated, as in the run that was not killed.
            begun = [record.evaluation.digest for record in records if record.generation == request.generation]
            self._n_cached += len(records) - len(begun)
            count(begun)
            self._report(request, tuple(record.evaluation for record in records), len(records))

        def on_chunk(evaluations: tuple[Evaluation, ...], n_done: int) -> None:
            count([evaluation.digest for evaluation in evaluations])
            self._report(request, evaluations, n_done)
            self._check_stop()

        return answer_request(
            request, self._search.space, self._executor, self._store, on_known=on_known, on_chunk=on_chunk
        )

    def _report(self, request: EvaluationRequest, evaluations: tuple[Evaluation, ...], n_done: int) -> None:
        event = EvaluationsFinished(
            request.generation,
            request.rung,
            request.role,
            evaluations,
            n_done,
            len(request.digests),
            self._n_evaluations,
            self._n_cached,
            self._elapsed_s,
        )
        self._listeners.evaluations(event)

    def _check_interruption(self) -> None:
        if self._is_interrupted.is_set():
            raise _Stopped("interrupted", _BY_SIGNAL)
        if self._should_stop():
            raise _Stopped("interrupted", "asked to stop")

    def _check_stop(self) -> None:
        self._check_interruption()
        if self._search.is_complete:
            reason = self._urgent_rules.reason(self._progress())
            if reason is not None:
                raise _Stopped("finished", reason)

    def _stop_reason(self, has_ended: bool) -> str | None:
        """Return why the search ends where a generation ``has_ended``; never before there is a network to hand back."""
        search = self._search
        if search.is_finished:
            return f"{search.n_generations} generations"
        reason = self._rules.reason(self._progress()) if has_ended and search.generation >= 0 else None
        if reason is not None and not search.is_complete:
            search.hurry()
            return None
        return reason

    def _progress(self) -> Progress:
        return Progress(
            self._search.generation,
            self._n_evaluations,
            self._elapsed_s,
            comparable_rows(self._search.logbook),
            self._search.is_complete,
        )

    # ------------------------------------------------------------------ beginning and saving

    def _announce(self) -> None:
        search = self._search
        event = SearchStarted(
            self._run_directory.path,
            search.n_generations,
            search.population_size,
            self._executor.n_workers,
            search.generation,
            self._elapsed_before_s,
        )
        self._run_directory.append_log(
            "started" if search.generation < 0 else "resumed",
            generation=search.generation,
            seed=search.seed,
            n_workers=event.n_workers,
        )
        self._listeners.start(event)
        self._catch_up()

    def _catch_up(self) -> None:
        """Write the row of the restored generation where a session ended between its checkpoint and the row."""
        generation = self._search.generation
        if generation < 0 or any(int(row["gen"]) == generation for row in self._store.generations()):
            return
        logged = self._run_directory.read_log()
        if not any(event.get("event") == "generation" and event.get("gen") == generation for event in logged):
            self._log_generation()
        self._listeners.generation(self._generation_event())

    def _restore(self) -> None:
        checkpoint, skipped = self._checkpoints.load_latest()
        for reason in skipped:
            self._listeners.warning(f"checkpoint passed over: {reason}")
        # Work on a generation that did not end has taken its time, too.
        status = self._store.status()
        self._elapsed_before_s = float(status.get("elapsed_s", 0.0))
        self._n_cached_before = int(status.get("n_cached", 0))
        if checkpoint is None:
            return
        self._search.restore(SearchState(checkpoint.arrays, checkpoint.data["search"]))
        self._n_evaluations = self._n_saved = int(checkpoint.data["n_evaluations"])
        self._n_cached = int(checkpoint.data["n_cached"])
        self._elapsed_before_s = max(self._elapsed_before_s, float(checkpoint.data["elapsed_s"]))

    def _save(self) -> None:
        self._n_saved = self._n_evaluations
        self._counted.clear()
        state = self._search.state()
        data = {
            "search": dict(state.data),
            "n_evaluations": self._n_evaluations,
            "n_cached": self._n_cached,
            "elapsed_s": self._elapsed_s,
        }
        self._checkpoints.save(self._search.generation, state.arrays, data)
