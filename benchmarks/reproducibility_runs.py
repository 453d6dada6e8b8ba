"""Runs of the command line in processes of their own, some of them killed; none of their processes stays behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

_POLL_S = 0.01
_N_LOG_LINES = 5
_GONE = ("Z", "X")  # states of processes that only wait for their parent to notice


class CommandError(RuntimeError):
    """A command that should have ended well did not, or left processes behind."""


class CommandLine:
    """Runs ``evoprune`` as a user would.

    Args:
        log: File that takes what the commands print.
        environment: Variables that are set for them beside those of this process.
        timeout_s: After which a command that has not ended is killed.
        grace_s: In which processes of an ended command must be gone.
    """

    def __init__(
        self, log: Path, environment: Mapping[str, str], *, timeout_s: float = 1200.0, grace_s: float = 30.0
    ) -> None:
        self._log = log
        self._environment = {**os.environ, **environment}
        self._timeout_s = timeout_s
        self._grace_s = grace_s

    def run(self, arguments: Sequence[str]) -> float:
        """Run a command to its end and return its seconds.

        Raises:
            CommandError: It ended with another exit code than 0, took too long, or left processes behind.
        """
        started = time.monotonic()
        self._until(arguments, run=None, generation=0)
        return time.monotonic() - started

    def run_and_kill(self, arguments: Sequence[str], run: Path, generation: int) -> bool:
        """Run a command, and kill it with all its processes once ``run`` holds an evaluation of ``generation``.

        Returns:
            Whether it was killed; else it ended before.

        Raises:
            CommandError: As for :meth:`run`.
        """
        return self._until(arguments, run=run, generation=generation)

    def _until(self, arguments: Sequence[str], *, run: Path | None, generation: int) -> bool:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "evoprune", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        is_killed = False
        deadline = time.monotonic() + self._timeout_s
        try:
            while process.poll() is None and time.monotonic() < deadline and not is_killed:
                time.sleep(_POLL_S)
                is_killed = run is not None and latest_generation(run) >= generation
        finally:
            is_over = process.poll() is not None
            if not is_over:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            left = end_session(process.pid, self._grace_s)
        command = f"`evoprune {' '.join(arguments)}`"
        if left:
            raise CommandError(f"{command} left {len(left)} processes behind, which were killed: {left}")
        if is_over:
            if process.returncode:
                raise CommandError(f"{command} ended with {process.returncode}: {self._last_lines()}")
            return False
        if not is_killed:
            raise CommandError(f"{command} did not end within {self._timeout_s:g} s: {self._last_lines()}")
        return True

    def _last_lines(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-_N_LOG_LINES:] if line.strip())


def latest_generation(run: Path) -> int:
    """Return the latest generation of which ``run``, which may be live, holds an evaluation; -1 where there is none."""
    file = run / "evaluations.sqlite"
    if file.is_file():
        with (
            suppress(sqlite3.DatabaseError),  # its tables are being made
            closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection,
        ):
            (latest,) = connection.execute("SELECT max(generation) FROM evaluations").fetchone()
            return -1 if latest is None else int(latest)
    return -1


def end_session(session: int, grace_s: float) -> list[int]:
    """Wait until no process of ``session`` lives, kill those that still do after ``grace_s``, and return these."""
    deadline = time.monotonic() + grace_s
    while (members := session_members(session)) and time.monotonic() < deadline:
        time.sleep(_POLL_S * 10)
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return members


def session_members(session: int) -> list[int]:
    """Return the living processes of ``session``, whoever their parents are; none where there is no ``/proc``."""
    members = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, _, _, its_session = file.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in _GONE:
                members.append(int(file.parent.name))
    return sorted(members)
