"""Every evaluated genome of a run, once per rung, in one SQLite file: the cache of the search and its history.

Where the network that genomes are cut from changes during a run, a genome is there once for each of them: ``since`` is
the first generation of that network.

Beside it, for whoever watches the run, one row per generation and where the search stands now.

The file is written in write-ahead mode, one transaction per call, so that a process that is killed leaves every
finished transaction readable and other processes can read while a run is live. It can be read without evoprune: genomes
are bits packed from the highest bit, metrics are JSON.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fitness.evaluation import Evaluation
from search_spaces.errors import RunDirectoryError
from search_spaces.genome import BoolArray, pack_genome, unpack_genome

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x65767072  # "evpr", the mark by which a foreign SQLite file is told apart
_BUSY_TIMEOUT_S = 30.0
_N_KEYS_PER_QUERY = 500  # below SQLite's oldest limit of 999 bound values

_META_SCHEMA = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);"
#: Of rows that do not say: they hold for whoever asks from their generation on, or from an earlier one.
_ANY_SINCE = -1
_SCHEMA = f"""
CREATE TABLE evaluations (
    digest TEXT NOT NULL,
    rung TEXT NOT NULL,
    generation INTEGER NOT NULL,
    position INTEGER NOT NULL,
    genome BLOB NOT NULL,
    macs INTEGER NOT NULL,
    n_params INTEGER NOT NULL,
    objective REAL,
    metrics TEXT NOT NULL,
    n_images INTEGER NOT NULL,
    seconds REAL NOT NULL,
    failure TEXT NOT NULL,
    since INTEGER NOT NULL DEFAULT {_ANY_SINCE},
    PRIMARY KEY (digest, rung, since)
);
CREATE INDEX evaluations_in_order ON evaluations (generation, rung, position);
"""
#: Additions to version 1, made where they are missing: ``since``, and the tables of the course.
_COURSE_SCHEMA = """
CREATE TABLE IF NOT EXISTS generations (generation INTEGER PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS status (id INTEGER PRIMARY KEY CHECK (id = 1), content TEXT NOT NULL);
"""
_COLUMNS = "digest, rung, generation, position, genome, macs, n_params, objective, metrics, n_images, seconds, failure"
_SINCE_SCHEMA = f"""
BEGIN IMMEDIATE;
ALTER TABLE evaluations RENAME TO without_since;
DROP INDEX IF EXISTS evaluations_in_order;
{_SCHEMA}
INSERT INTO evaluations ({_COLUMNS}) SELECT {_COLUMNS} FROM without_since;
DROP TABLE without_since;
COMMIT;
"""  # noqa: S608 - literals only


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation with the genome it judges and the place in the run where it was first asked for.

    Attributes:
        genome: ``(n_genes,)`` bits, True = keep.
        macs: Multiply-adds of the sliced network.
        n_params: Parameters of the sliced network.
        generation: Generation whose request evaluated the genome.
        position: Row within that request.
        evaluation: What the evaluator said.
    """

    genome: BoolArray
    macs: int
    n_params: int
    generation: int
    position: int
    evaluation: Evaluation


class EvaluationStore:
    """The evaluations of one run in one SQLite file.

    Args:
        path: The file; created unless ``read_only``.
        n_genes: Genes of the search space; None when reading takes it from the file.
        space_fingerprint: Identity of the search space; checked against the file where both are known.
        read_only: Open for reading beside a live run.
        timeout_s: How long to wait where another process holds the file.

    Raises:
        RunDirectoryError: The file is missing, damaged, not a store, of a newer version, or of another search space.
    """

    def __init__(
        self,
        path: Path,
        n_genes: int | None = None,
        space_fingerprint: str | None = None,
        *,
        read_only: bool = False,
        timeout_s: float = _BUSY_TIMEOUT_S,
    ) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self.read_only = read_only
        self._connection = self._connect()
        try:
            with closing(self._connection.execute("SELECT count(*) FROM sqlite_master")) as cursor:
                is_new = cursor.fetchone()[0] == 0
            if is_new and not read_only and n_genes is not None:
                self._create(n_genes, space_fingerprint or "")
            self.n_genes = self._check(n_genes, space_fingerprint)
            if not read_only:
                # Not every file system can hold a write-ahead log; SQLite then keeps its rollback journal, as safe.
                self._connection.execute("PRAGMA journal_mode = WAL").close()
                self._connection.execute("PRAGMA synchronous = NORMAL").close()
                if not self._says_since():
                    self._connection.executescript(_SINCE_SCHEMA)
                self._connection.executescript(_COURSE_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise self._damaged(error) from error
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> EvaluationStore:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def __len__(self) -> int:
        """Return the number of evaluations over all rungs."""
        return sum(self.count_by_rung().values())

    def close(self) -> None:
        """Close the file, and fold the write-ahead log into it where no other process reads; may be called twice."""
        if not self.read_only:
            with suppress(sqlite3.Error):  # a reader is connected (or the store is closed): the log stays beside it
                self._connection.execute("PRAGMA busy_timeout = 0").close()
                self._connection.execute("PRAGMA journal_mode = DELETE").close()
        self._connection.close()

    def get_many(self, digests: Sequence[str], rung: str, *, since: int = 0) -> dict[str, StoredEvaluation]:
        """Return the evaluations at ``rung`` of those ``digests`` that have one, by digest.

        Args:
            digests: Of genomes.
            rung: What judged them.
            since: First generation of the network that they are cut from.

        Raises:
            RunDirectoryError: The file cannot be read.
        """
        holds = "generation >= ?"
        if self._says_since():
            holds = f"(since = ? OR since = {_ANY_SINCE} AND generation >= ?)"
        found: dict[str, StoredEvaluation] = {}
        for start in range(0, len(digests), _N_KEYS_PER_QUERY):
            keys = list(digests[start : start + _N_KEYS_PER_QUERY])
            marks = ", ".join("?" * len(keys))
            where = f"rung = ? AND digest IN ({marks}) AND {holds}"
            sql = f"SELECT {_COLUMNS} FROM evaluations WHERE {where}"  # noqa: S608 - literals and marks only
            for record in self._select(sql, [rung, *keys, *[since] * holds.count("?")]):
                found[record.evaluation.digest] = record
        return found

    def put_many(self, records: Sequence[StoredEvaluation], *, since: int = 0, instead_of: Collection[str] = ()) -> int:
        """Add ``records`` in one transaction and return how many were new.

        Args:
            records: One whose digest, rung and ``since`` are there already is left out.
            since: First generation of the network that their genomes are cut from.
            instead_of: Digests of genomes whose record is replaced if it is there.

        Raises:
            RunDirectoryError: The file cannot be written (full disk, damaged file).
        """
        rows = [(*_to_row(record), since) for record in records]
        marks = ", ".join("?" * 13)
        try:
            with self._connection:
                outdated = [(r.evaluation.digest, r.evaluation.rung, since) for r in records]
                outdated = [key for key in outdated if key[0] in instead_of]
                self._connection.executemany(
                    "DELETE FROM evaluations WHERE digest = ? AND rung = ? AND since = ?", outdated
                ).close()
                before = self._connection.total_changes
                sql = f"INSERT OR IGNORE INTO evaluations ({_COLUMNS}, since) VALUES ({marks})"  # noqa: S608 - marks only
                self._connection.executemany(sql, rows)
            return self._connection.total_changes - before
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def count_by_rung(self) -> dict[str, int]:
        """Return the number of evaluations per rung."""
        rows = self._rows("SELECT rung, count(*) FROM evaluations GROUP BY rung ORDER BY rung")
        return {str(rung): int(n) for rung, n in rows}

    def count_after(self, generation: int) -> int:
        """Return the number of evaluations, over all rungs, that generations after ``generation`` asked for."""
        ((n,),) = self._rows("SELECT count(*) FROM evaluations WHERE generation > ?", (generation,))
        return int(n)

    def seconds_by_rung(self) -> dict[str, float]:
        """Return the seconds that the evaluations of each rung took, added up over all workers."""
        rows = self._rows("SELECT rung, sum(seconds) FROM evaluations GROUP BY rung")
        return {str(rung): float(seconds) for rung, seconds in rows}

    def put_course(self, status: Mapping[str, Any], row: Mapping[str, Any] | None = None) -> None:
        """Replace where the search stands by ``status``, in one transaction with the ``row`` of a finished generation.

        Args:
            status: JSON values.
            row: JSON values with ``gen``, the number of the generation.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        try:
            with self._connection:
                self._connection.execute("INSERT OR REPLACE INTO status VALUES (1, ?)", (_as_json(status),)).close()
                if row is not None:
                    values = (int(row["gen"]), _as_json(row))
                    self._connection.execute("INSERT OR REPLACE INTO generations VALUES (?, ?)", values).close()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def drop_generations_after(self, generation: int) -> None:
        """Remove the rows of generations that a resumed search will make again.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        try:
            with self._connection:
                self._connection.execute("DELETE FROM generations WHERE generation > ?", (generation,)).close()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def status(self) -> dict[str, Any]:
        """Return where the search stands; empty before it has begun."""
        rows = self._rows("SELECT content FROM status") if self._has_course() else []
        return dict(json.loads(rows[0][0])) if rows else {}

    def generations(self) -> list[dict[str, Any]]:
        """Return one row per finished generation, in order."""
        if not self._has_course():
            return []
        return [dict(json.loads(row)) for (row,) in self._rows("SELECT row FROM generations ORDER BY generation")]

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """Let everything read within come from the same moment, whatever another process writes meanwhile."""
        self._connection.execute("BEGIN").close()
        try:
            yield
        finally:
            self._connection.rollback()

    def records(self, rung: str | None = None) -> Iterator[StoredEvaluation]:
        """Yield the evaluations (of one ``rung``) by generation, rung and position: the same order in equal runs."""
        where = "" if rung is None else "WHERE rung = ?"
        order = "ORDER BY generation, rung, position, digest"
        sql = f"SELECT {_COLUMNS} FROM evaluations {where} {order}"  # noqa: S608 - literals only
        yield from self._select(sql, [] if rung is None else [rung])

    def _says_since(self) -> bool:
        """Return whether rows say which network they hold for; those of an older evoprune do not."""
        return bool(self._rows("SELECT 1 FROM pragma_table_info('evaluations') WHERE name = 'since'"))

    def _has_course(self) -> bool:
        """Return whether the file has what :meth:`put_course` writes; one of an older evoprune does not."""
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = 'status'"))

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            with closing(self._connection.execute(sql, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _select(self, sql: str, values: Sequence[Any]) -> Iterator[StoredEvaluation]:
        try:
            with closing(self._connection.execute(sql, values)) as cursor:
                for row in cursor:
                    yield self._from_row(row)
        except (sqlite3.DatabaseError, ValueError) as error:
            raise self._damaged(error) from error

    def _from_row(self, row: Sequence[Any]) -> StoredEvaluation:
        digest, rung, generation, position, genome, macs, n_params, objective, metrics, n_images, seconds, failure = row
        return StoredEvaluation(
            genome=unpack_genome(genome, self.n_genes),
            macs=macs,
            n_params=n_params,
            generation=generation,
            position=position,
            evaluation=Evaluation(
                digest=digest,
                rung=rung,
                n_images=n_images,
                objective=math.inf if objective is None else objective,
                metrics={name: math.nan if value is None else value for name, value in json.loads(metrics).items()},
                seconds=seconds,
                failure=failure,
            ),
        )

    def _connect(self) -> sqlite3.Connection:
        if not self.path.is_file() and (self.read_only or self.path.exists()):
            raise RunDirectoryError(
                f"an evaluation store must be a file, but {str(self.path)!r} is not there; "
                "name a run directory that `evoprune search` has written"
            )
        mode = "ro" if self.read_only else "rwc"
        try:
            connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=self._timeout_s
            )
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        return connection

    def _create(self, n_genes: int, space_fingerprint: str) -> None:
        meta = {"n_genes": str(n_genes), "space_fingerprint": space_fingerprint}
        pairs = [f"('{key}', '{value}')" for key, value in meta.items()]
        rows = "".join(f"INSERT INTO meta VALUES {pair};" for pair in pairs)  # noqa: S608 - numbers and digests only
        marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        self._connection.executescript(f"BEGIN IMMEDIATE; {_META_SCHEMA} {_SCHEMA} {rows} {marks} COMMIT;")

    def _check(self, n_genes: int | None, space_fingerprint: str | None) -> int:
        application_id = self._pragma("application_id")
        version = self._pragma("user_version")
        if application_id != _APPLICATION_ID:
            raise RunDirectoryError(
                f"{str(self.path)!r} must be an evaluation store of evoprune, but it is another SQLite file "
                f"(application id {application_id:#x}); name another run directory"
            )
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"this evoprune reads evaluation stores of version {SCHEMA_VERSION}, but {str(self.path)!r} has "
                f"version {version}; use the evoprune that wrote it (see config.json) or start a new run"
            )
        with closing(self._connection.execute("SELECT key, value FROM meta")) as cursor:
            meta: Mapping[str, str] = dict(cursor.fetchall())
        stored_n_genes, stored_fingerprint = int(meta["n_genes"]), meta["space_fingerprint"]
        if n_genes is not None and n_genes != stored_n_genes:
            raise RunDirectoryError(
                f"{str(self.path)!r} holds genomes of {stored_n_genes} genes, but the search space has {n_genes}; "
                "give the model and options of that run, or start a new one"
            )
        if space_fingerprint and stored_fingerprint and space_fingerprint != stored_fingerprint:
            raise RunDirectoryError(
                f"{str(self.path)!r} belongs to search space {stored_fingerprint[:12]}, but this one is "
                f"{space_fingerprint[:12]}; give the model and options of that run, or start a new one"
            )
        return stored_n_genes

    def _pragma(self, name: str) -> int:
        with closing(self._connection.execute(f"PRAGMA {name}")) as cursor:
            return int(cursor.fetchone()[0])

    def _damaged(self, error: Exception) -> RunDirectoryError:
        return RunDirectoryError(
            f"the evaluation store {str(self.path)!r} cannot be used: {error}; if the disk is not full, the file is "
            "damaged or not a store: restore it from a copy, or start a new run"
        )


def _as_json(value: Mapping[str, Any]) -> str:
    """Return ``value`` as JSON, which has no word for infinity: None in its place."""
    finite = {
        name: None if isinstance(item, float) and not math.isfinite(item) else item for name, item in value.items()
    }
    return json.dumps(finite, allow_nan=False)


def _to_row(record: StoredEvaluation) -> tuple[Any, ...]:
    evaluation = record.evaluation
    metrics = {name: float(value) if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    return (
        evaluation.digest,
        evaluation.rung,
        record.generation,
        record.position,
        pack_genome(record.genome),
        int(record.macs),
        int(record.n_params),
        float(evaluation.objective) if math.isfinite(evaluation.objective) else None,
        json.dumps(metrics, sort_keys=True, allow_nan=False),
        int(evaluation.n_images),
        float(evaluation.seconds),
        evaluation.failure,
    )
