"""Where a run stands: written into the evaluation store while it runs, read from there by whoever watches.

Reading needs SQLite alone, takes no lock that a search would wait for, and is safe at any moment. Only before there is
anything to read is the lock of the run tried, for a moment that a search which begins waits out.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evoprune.callbacks import Callback, EvaluationsFinished, GenerationFinished, SearchOutcome, SearchStarted
from evoprune.evaluation_store import EvaluationStore
from evoprune.run_directory import RunDirectory, resume_command
from evoprune.search import comparable_rows
from search_spaces.errors import OptionError

_READ_TIMEOUT_S = 5.0
_SILENCE_OF_THE_DEAD_S = 10.0
"""Between the making of a run directory and its lock there is less: only then a run that nobody holds has died."""
LEAST_INTERVAL_S = 0.1
INTERRUPTED = "interrupted"
#: Why a run is not going on. ``killed``: its process is gone without a word.
ENDED = ("finished", INTERRUPTED, "failed", "killed")


class CourseWriter(Callback):
    """Keeps the course of a search in its evaluation store.

    Args:
        store: Where to; open for writing.
        now: Seconds since 1970.
    """

    def __init__(self, store: EvaluationStore, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now
        self._status: dict[str, Any] = {}

    def on_start(self, event: SearchStarted) -> None:
        """Write sizes, and which process runs the search."""
        self._store.drop_generations_after(event.generation)
        self._status = self._store.status() if event.generation >= 0 else {}
        self._write(
            status="running",
            reason="",
            pid=os.getpid(),
            host=platform.node(),
            n_generations=event.n_generations,
            population_size=event.population_size,
            n_workers=event.n_workers,
            generation=event.generation,
            elapsed_s=event.elapsed_s,
        )

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        """Write how far the request is."""
        self._write(
            rung=event.rung,
            role=event.role,
            n_done=event.n_done,
            n_requested=event.n_requested,
            n_evaluations=event.n_evaluations,
            n_cached=event.n_cached,
            elapsed_s=event.elapsed_s,
        )

    def on_generation(self, event: GenerationFinished) -> None:
        """Write the row of the generation."""
        row = {**event.row, "gen": event.generation, "n_evaluations": event.n_evaluations, "elapsed_s": event.elapsed_s}
        self._write(
            row,
            generation=event.generation,
            best_objective=event.best.objective,
            best_rung=event.best.rung,
            best_digest=event.best.digest,
            n_evaluations=event.n_evaluations,
            n_cached=event.n_cached,
            elapsed_s=event.elapsed_s,
        )

    def on_end(self, outcome: SearchOutcome) -> None:
        """Write how the session ended."""
        self._write(status=outcome.status, reason=outcome.reason, elapsed_s=outcome.elapsed_s)

    def on_failure(self, message: str) -> None:
        """Write the error, beside what was written before."""
        self._status = self._status or self._store.status()
        self._write(status="failed", reason=message)

    def _write(self, row: Mapping[str, Any] | None = None, **changes: Any) -> None:
        self._status |= {**changes, "updated_at": self._now()}
        self._store.put_course(self._status, row)


@dataclass(frozen=True)
class RungFigures:
    """The evaluations of one rung: how many, and the seconds they took, added up over all workers."""

    n_evaluations: int
    seconds: float


@dataclass(frozen=True)
class RunSnapshot:
    """Where a run stands.

    Attributes:
        run: The run directory.
        status: ``preparing`` before the first request, ``running``, or one of :data:`ENDED`.
        reason: Why it ended.
        generation: The last finished generation; -1 before the first.
        n_generations: The last planned one; None where that is not known yet.
        n_workers: Genomes evaluated at the same time.
        rung: Rung of the request in the making.
        role: ``screen``, ``judge`` or ``elite``.
        n_done: Genomes of that request that are done.
        n_requested: Genomes of that request.
        n_evaluations: Evaluations of the whole run.
        n_cached: Requested evaluations that an earlier generation had made.
        rungs: Evaluations by rung.
        best_objective: The best one so far; None before generation 0 is judged.
        best_rung: The rung that it is a number of.
        best_digest: Identity of the best genome.
        generations: One row per finished generation, as in ``log.jsonl``.
        elapsed_s: Seconds of work, those since the last sign of life of a running search included.
        silent_s: Seconds since that sign.
    """

    run: str
    status: str
    reason: str = ""
    generation: int = -1
    n_generations: int | None = None
    n_workers: int = 0
    rung: str = ""
    role: str = ""
    n_done: int = 0
    n_requested: int = 0
    n_evaluations: int = 0
    n_cached: int = 0
    rungs: Mapping[str, RungFigures] | None = None
    best_objective: float | None = None
    best_rung: str = ""
    best_digest: str = ""
    generations: tuple[Mapping[str, Any], ...] = ()
    elapsed_s: float = 0.0
    silent_s: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether the run is not going on."""
        return self.status in ENDED

    @property
    def history(self) -> list[float]:
        """The best objective of the judge rung after each generation of the present stage that has one."""
        return self._figures("best")

    @property
    def hypervolumes(self) -> list[float]:
        """The hypervolume after each generation, larger = better; empty where the search is not for a front."""
        return self._figures("hypervolume")

    @property
    def stage(self) -> str:
        """The stage of the last finished generation; empty where the search has none."""
        return str(self.generations[-1].get("stage") or "") if self.generations else ""

    @property
    def evaluations_per_second(self) -> float:
        """Evaluations of the whole run per second of work; 0 before the first."""
        return self.n_evaluations / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def _figures(self, name: str) -> list[float]:
        return [float(row[name]) for row in comparable_rows(self.generations) if row.get(name) is not None]

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot as JSON values."""
        rungs = {
            name: {**asdict(figures), "per_second": figures.n_evaluations / self.elapsed_s if self.elapsed_s else 0.0}
            for name, figures in (self.rungs or {}).items()
        }
        return {**asdict(self), "rungs": rungs, "evaluations_per_second": self.evaluations_per_second}


def read_snapshot(run: str | Path, *, now: Callable[[], float] = time.time) -> RunSnapshot:
    """Return where the run in the directory ``run`` stands.

    Args:
        run: A run directory, live or not; only its ``config.json`` and its evaluation store are looked at, and before
            the first request whether a process holds it, and its log.
        now: Seconds since 1970.

    Raises:
        RunDirectoryError: ``run`` is no run directory, or its store is damaged.
    """
    directory = RunDirectory.open_existing(Path(run))
    path = directory.evaluations_path
    if not path.is_file() or not path.stat().st_size:  # it is being made
        return _before_requests(directory, {}, now())
    with (
        EvaluationStore(path, read_only=True, timeout_s=_READ_TIMEOUT_S) as store,
        store.one_moment(),
    ):
        content, generations = store.status(), tuple(store.generations())
        seconds = store.seconds_by_rung()
        rungs = {rung: RungFigures(n, seconds[rung]) for rung, n in store.count_by_rung().items()}
    if not content:
        return _before_requests(directory, rungs, now())
    silent_s = max(now() - float(content.pop("updated_at")), 0.0)
    pid, host = int(content.pop("pid", 0)), content.pop("host", "")
    if content.get("status") == "running":
        if host == platform.node() and not _is_alive(pid):
            content |= {"status": "killed", "reason": _of_killed(directory)}
        else:
            content["elapsed_s"] += silent_s
    known = {name: value for name, value in content.items() if name in RunSnapshot.__dataclass_fields__}
    return RunSnapshot(
        **{"status": "preparing", **known, "run": str(directory.path)},
        rungs=rungs,
        generations=generations,
        silent_s=silent_s,
    )


def follow(
    run: str | Path, *, interval_s: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[RunSnapshot]:
    """Yield where ``run`` stands every ``interval_s`` seconds; the last snapshot is that of a run that has ended.

    Raises:
        OptionError: ``interval_s`` is too short.
        RunDirectoryError: As :func:`read_snapshot`.
    """
    if not LEAST_INTERVAL_S <= interval_s < float("inf"):
        raise OptionError(
            f"`{LEAST_INTERVAL_S:g} <= interval` must hold for the seconds between two looks at a run, but got "
            f"{interval_s:g}; leave it out for one second"
        )
    while True:
        snapshot = read_snapshot(run)
        yield snapshot
        if snapshot.has_ended:
            return
        sleep(interval_s)


def _before_requests(directory: RunDirectory, rungs: Mapping[str, RungFigures], now: float) -> RunSnapshot:
    """Return where a run stands that has not written its course: in preparation, stopped there, or dead."""
    run = str(directory.path)
    if directory.is_held():
        return RunSnapshot(run, "preparing", rungs=rungs)
    *_, last = ({}, *directory.read_log())
    if last.get("event") == INTERRUPTED:
        return RunSnapshot(run, INTERRUPTED, str(last.get("reason", "")), rungs=rungs)
    if now - directory.changed_at() < _SILENCE_OF_THE_DEAD_S:
        return RunSnapshot(run, "preparing", rungs=rungs)
    return RunSnapshot(run, "killed", _of_killed(directory), rungs=rungs)


def _of_killed(directory: RunDirectory) -> str:
    return f"its process is gone; continue it with `{resume_command(directory.path)}`"


def _is_alive(pid: int) -> bool:
    """Return whether a process of this machine has the number ``pid``; True where that cannot be asked harmlessly."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
