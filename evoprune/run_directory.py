"""The folder that holds everything about one run, readable without evoprune and written so that no crash spoils it.

config.json          resolved options, versions, hashes of weights, data, space and options
evaluations.sqlite   every evaluated genome once per rung
checkpoint/          the last few states of the search
limits.json          when the run ends, where that was changed on resuming it
log.jsonl            one event per line
best/                the pruned network
distilled/           what the next layer is cut from, where layers are distilled in between
result.json          the figures of a finished run
front.csv            the best genomes by quality and cost
random/              what random search judged, where the run is compared with it
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from search_spaces.errors import OptionError, RunDirectoryError

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes on one run are then not noticed
    fcntl = None  # type: ignore[assignment]  # no file locks on this system

SCHEMA_VERSION = 1
#: What a run directory holds of its own, as first parts of paths in it; nothing else is written there.
OWN_NAMES = frozenset(
    {
        *("config.json", "evaluations.sqlite", "evaluations.sqlite-shm", "evaluations.sqlite-wal", "checkpoint"),
        *("limits.json", "log.jsonl", "knowledge.json", "dense.safetensors", "latency.json", "mlflow.json"),
        *("best", "finetuned", "distilled", "random", "result.json", "front.csv", "sensitivity.csv"),
    }
)
_FINETUNED_AGAIN = "finetuned-"
_N_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.05
_RECORDED_DISTRIBUTIONS = ("evoprune", "torch", "torchvision", "numpy", "deap", "ray")


@dataclass(frozen=True)
class RunDirectory:
    """The places of one run; make one with :meth:`create` or :meth:`open_existing`."""

    path: Path

    @property
    def config_path(self) -> Path:
        """Resolved options, versions and hashes."""
        return self.path / "config.json"

    @property
    def evaluations_path(self) -> Path:
        """The evaluation store."""
        return self.path / "evaluations.sqlite"

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the last few states of the search."""
        return self.path / "checkpoint"

    @property
    def knowledge_path(self) -> Path:
        """Which criteria gave first genomes and priors."""
        return self.path / "knowledge.json"

    @property
    def limits_path(self) -> Path:
        """When the run ends, where it was resumed with other limits than it began with."""
        return self.path / "limits.json"

    @property
    def log_path(self) -> Path:
        """One JSON event per line."""
        return self.path / "log.jsonl"

    @property
    def best_path(self) -> Path:
        """Folder of the pruned network."""
        return self.path / "best"

    @property
    def result_path(self) -> Path:
        """Figures of a finished run."""
        return self.path / "result.json"

    @property
    def front_path(self) -> Path:
        """Best genomes by quality and cost."""
        return self.path / "front.csv"

    @property
    def random_path(self) -> Path:
        """Folder of what random search judged, where the run is compared with it."""
        return self.path / "random"

    @staticmethod
    def check_available(path: Path) -> None:
        """Check that :meth:`create` would accept ``path``, and leave nothing behind; for use before long preparations.

        Raises:
            RunDirectoryError: ``path`` is a file or a folder with content, or cannot be written.
        """
        _refuse_existing(path)
        check_folder(path.resolve())

    @classmethod
    def create(cls, path: Path, *, options: Mapping[str, Any], hashes: Mapping[str, str]) -> RunDirectory:
        """Return a new run directory that holds ``config.json``; it appears whole or not at all.

        Args:
            path: Where; missing parents are made, an empty folder is filled and stays the folder that it is.
            options: Resolved options, JSON values only.
            hashes: Content hashes by name (``weights``, ``data``, ``space``); ``options`` is added here.

        Raises:
            RunDirectoryError: ``path`` is a file or a folder with content, or cannot be written.
        """
        _refuse_existing(path)
        config = {
            "schema_version": SCHEMA_VERSION,
            "options": dict(options),
            "hashes": {**hashes, "options": options_hash(options)},
            "versions": library_versions(),
        }
        path = path.resolve()
        staging: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # An existing folder may be a mount point, or where somebody is: it is filled, not replaced.
            is_there = path.is_dir()
            staging = Path(
                tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".tmp", dir=path if is_there else path.parent)
            )
            staging.chmod(0o755)
            (staging / "checkpoint").mkdir()
            write_json(staging / "config.json", config)
            if is_there:
                _fill(path, staging)
            else:
                staging.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            raise _unwritable(path, error) from error
        except BaseException:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        return cls(path)

    @classmethod
    def open_existing(cls, path: Path) -> RunDirectory:
        """Return the run directory at ``path``.

        Raises:
            RunDirectoryError: There is none, or its ``config.json`` is damaged or of another version.
        """
        if not (path / "config.json").is_file():
            raise RunDirectoryError(
                f"a run directory must hold config.json, but {str(path)!r} does not; "
                "name a folder that `evoprune search --out` has written"
            )
        run_directory = cls(path.absolute())
        version = run_directory.read_config().get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"this evoprune reads run directories of version {SCHEMA_VERSION}, but {str(path)!r} has version "
                f"{version}; use the evoprune that wrote it (see `versions` in config.json)"
            )
        return run_directory

    def read_config(self) -> dict[str, Any]:
        """Return ``config.json``: ``options``, ``hashes``, ``versions`` and ``schema_version``.

        Raises:
            RunDirectoryError: The file cannot be read, lacks one of them, or holds something else in its place.
        """
        config = read_json(self.config_path)
        missing = {"options", "hashes", "versions", "schema_version"} - config.keys()
        if missing:
            raise RunDirectoryError(
                f"{str(self.config_path)!r} must hold {', '.join(sorted(missing))}, but does not; "
                "restore it from a copy or start a new run"
            )
        for name in ("options", "hashes", "versions"):
            if not isinstance(config[name], dict):
                raise RunDirectoryError(
                    f"`{name}` in {str(self.config_path)!r} must be a JSON object, but is a "
                    f"{type(config[name]).__name__}; restore it from a copy or start a new run"
                )
        return config

    def check_hashes(self, hashes: Mapping[str, str]) -> None:
        """Check that a resumed run is the run that was started.

        Args:
            hashes: Content hashes found now, by the names given to :meth:`create`. The options are checked here too.

        Raises:
            RunDirectoryError: One differs; the message says which, with both values.
        """
        config = self.read_config()
        found = {**hashes, "options": options_hash(config["options"])}
        differing = [
            f"{name} (recorded {str(recorded)[:12]}, now {found.get(name, 'missing')[:12]})"
            for name, recorded in config["hashes"].items()
            if found.get(name) != recorded
        ]
        if differing:
            raise RunDirectoryError(
                f"a run may only be continued with what it was started with, but in {str(self.path)!r} these differ: "
                f"{', '.join(differing)}; restore them, or start a new run with another --out"
            )

    def append_log(self, event: str, **fields: Any) -> None:
        """Append one line to ``log.jsonl``; a line torn by a crash stays alone on its line.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        line = json.dumps({"event": event, **fields}, allow_nan=False) + "\n"
        try:
            with self.log_path.open("ab+") as file:
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = "\n" + line
                file.write(line.encode())
        except OSError as error:
            raise _unwritable(self.log_path, error) from error

    def read_log(self) -> Iterator[dict[str, Any]]:
        """Yield the events of ``log.jsonl`` in order, without lines torn by a crash; nothing where there is no log."""
        if not self.log_path.is_file():
            return
        with self.log_path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(json.JSONDecodeError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the lock ends with the process, however that dies.

        Raises:
            RunDirectoryError: Another process holds it.
        """
        if fcntl is None:
            yield
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            _lock(descriptor, self.path)
            yield
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Return whether a process holds the run; True where that cannot be told.

        The lock is tried for a moment, which :meth:`locked` waits out.
        """
        if fcntl is None:
            return True
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def changed_at(self) -> float:
        """Return when something appeared or was written in the run's folder last, in seconds since 1970.

        Raises:
            RunDirectoryError: The folder cannot be read.
        """
        times = []
        try:
            times.append(self.path.stat().st_mtime)
            for entry in self.path.iterdir():
                with suppress(FileNotFoundError):
                    times.append(entry.stat().st_mtime)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return max(times)


def options_hash(options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of ``options`` as JSON with sorted keys, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, allow_nan=False).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Return the installed versions of evoprune and the libraries its numbers depend on; absent ones are left out."""
    versions = {}
    for name in _RECORDED_DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON, whole or not at all.

    Raises:
        RunDirectoryError: The file cannot be written.
        ValueError: ``value`` holds NaN or infinity, which JSON has no word for.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, remedy: str = "restore it or start a new run") -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Args:
        path: The file.
        remedy: What helps where it is damaged.

    Raises:
        RunDirectoryError: The file cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{str(path)!r} must hold a JSON object, but cannot be read: {error}; {remedy}"
        ) from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{str(path)!r} must hold a JSON object, but holds a {type(value).__name__}; {remedy}")
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, whole or not at all, and durably.

    Raises:
        RunDirectoryError: The file cannot be written.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def bears_mark(path: Path, mark: str) -> bool:
    """Return whether the text file ``path`` holds ``mark``; False where it cannot be read."""
    try:
        return mark in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def check_folder(path: Path) -> None:
    """Check that the folder ``path``, which need not exist, can be written to, and leave nothing behind.

    Raises:
        RunDirectoryError: It cannot.
    """
    parent = next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".evoprune-", dir=parent)).rmdir()
    except OSError as error:
        raise _unwritable(path, error) from error


def as_path(given: object, name: str) -> Path:
    """Return the path ``given`` as the argument ``name``.

    Raises:
        OptionError: It is none.
    """
    if not isinstance(given, str | Path):
        raise OptionError(f"`{name}` must be a path, a str or a pathlib.Path, but got {given!r}; pass such a one")
    return Path(given)


def resume_command(run: Path) -> str:
    """Return the command that continues ``run``, as a shell takes it."""
    return f"evoprune resume {shlex.quote(str(run))}"


def run_around(path: Path) -> Path | None:
    """Return the innermost run directory that ``path``, which need not exist, lies in or is; None where it is in none.

    A folder passes for a run where it has ``config.json`` beside an evaluation store or checkpoints.
    """
    path = path.resolve()
    for folder in (path, *path.parents):
        run = RunDirectory(folder)
        if run.config_path.is_file() and (run.evaluations_path.is_file() or run.checkpoint_path.is_dir()):
            return folder
    return None


def is_run_own(path: Path) -> bool:
    """Return whether ``path`` is, or lies in, what a run directory holds of its own.

    Every finetuned network is: ``finetuned``, and ``finetuned-2`` and so on beside it.
    """
    run = run_around(path)
    if run is None:
        return False
    first = path.resolve().relative_to(run).parts[:1]
    return any(name in OWN_NAMES or name.startswith(_FINETUNED_AGAIN) for name in first)


def check_writable(path: Path, kind: str, is_kind: Callable[[Path], bool], *, suffixes: tuple[str, ...] = ()) -> None:
    """Check that a file can be written at ``path``, and leave nothing behind; for use before long work.

    Args:
        path: The file; one that exists is replaced if it is of the kind that is written, or empty.
        kind: What is written, for people.
        is_kind: Whether an existing file is such a one.
        suffixes: Endings of such files, in lower case; any where there are none.

    Raises:
        RunDirectoryError: ``path`` is a folder, lies in one that is missing or cannot be written, has another ending,
            or is a file of another kind or of a run's own.
    """
    if path.is_dir():
        raise RunDirectoryError(f"{str(path)!r} must be a file, but is a folder; name a file in it")
    if suffixes and path.suffix.lower() not in suffixes:
        raise RunDirectoryError(
            f"the name of {kind} ends in {' or '.join(suffixes)}, but got {str(path)!r}; name another file"
        )
    if is_run_own(path):
        raise RunDirectoryError(
            f"{kind} must not take the place of what a run holds of its own, but {str(path)!r} is such a place; name "
            "another file"
        )
    if path.is_file() and path.stat().st_size and not is_kind(path):
        raise RunDirectoryError(
            f"{kind} replaces nothing but another one, but {str(path)!r} is something else; name another file"
        )
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.absolute().parent)
        os.close(descriptor)
        Path(temporary).unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _lock(descriptor: int, path: Path) -> None:
    """Lock the open folder ``path``; more than one attempt, since a reader may be trying the lock for a moment.

    Raises:
        RunDirectoryError: Another process holds it.
    """
    for attempt in range(_N_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_S)
        if not _is_refused(descriptor):
            return
    raise RunDirectoryError(
        f"one process at a time may work on a run, but another one works on {str(path)!r}; "
        "wait for it, stop it, or choose another --out"
    )


def _is_refused(descriptor: int) -> bool:
    """Lock the open folder and return False, or True where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _fill(path: Path, staging: Path) -> None:
    """Move what is in ``staging`` to ``path``, the folder around it, ``config.json`` last, which makes it a run.

    Raises:
        OSError: Something else is in ``path`` by now, or it cannot be written; nothing is moved then.
    """
    if any(entry != staging for entry in path.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    names = sorted((entry.name for entry in staging.iterdir()), key=lambda name: name == "config.json")
    moved: list[Path] = []
    try:
        for name in names:
            (staging / name).rename(path / name)
            moved.append(path / name)
    except BaseException:
        for entry in moved:
            entry.rename(staging / entry.name)
        raise
    staging.rmdir()
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """Make a rename durable; a system that cannot open folders does without."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refuse_existing(path: Path) -> None:
    try:
        is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        is_run = is_taken and (path / "config.json").is_file()
    except OSError as error:
        raise _unwritable(path, error) from error
    if is_run:
        raise RunDirectoryError(
            f"a new run needs a folder of its own, but {str(path)!r} holds a run; "
            f"continue it with `{resume_command(path)}`, or choose another --out"
        )
    if is_taken:
        raise RunDirectoryError(
            f"a new run needs a folder of its own, but {str(path)!r} exists and is not an empty folder; "
            "choose another --out"
        )


def _unwritable(path: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"{str(path)!r} must be writable, but {error.strerror or error}; choose another place or free some space"
    )
