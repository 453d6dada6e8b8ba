"""The evaluation store: round trips, foreign files, concurrent readers, and death in the middle of writing."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from fitness.evaluation import Evaluation
from search_spaces.errors import RunDirectoryError
from search_spaces.genome import genome_digest

N_GENES = 19


def make_record(
    seed: int, rung: str = "network", objective: float | None = None, failure: str = ""
) -> StoredEvaluation:
    rng = np.random.default_rng(seed)
    genome = rng.random(N_GENES) < 0.5
    return StoredEvaluation(
        genome=genome,
        macs=2**40 + seed,
        n_params=seed,
        generation=seed // 4,
        position=seed % 4,
        evaluation=Evaluation(
            digest=genome_digest(genome),
            rung=rung,
            n_images=64,
            objective=rng.random() if objective is None else objective,
            metrics={"kl": rng.random(), "accuracy": 0.5},
            seconds=0.25,
            failure=failure,
        ),
    )


def test_stored_evaluations_come_back_bit_for_bit(tmp_path: Path) -> None:
    records = [make_record(seed) for seed in range(12)]
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES, "space") as store:
        assert store.put_many(records) == 12
    with EvaluationStore(tmp_path / "e.sqlite", read_only=True) as store:
        found = store.get_many([r.evaluation.digest for r in records] + ["unknown"], "network")
        assert len(found) == 12
        for record in records:
            copy = found[record.evaluation.digest]
            assert copy.evaluation == record.evaluation
            assert copy.evaluation.seconds == 0.25
            assert (copy.macs, copy.n_params, copy.generation, copy.position) == (
                record.macs,
                record.n_params,
                record.generation,
                record.position,
            )
            np.testing.assert_array_equal(copy.genome, record.genome)
        assert [r.evaluation.digest for r in store.records()] == [r.evaluation.digest for r in records]
        assert store.get_many([records[0].evaluation.digest], "another") == {}


def test_the_first_evaluation_of_a_genome_at_a_rung_is_the_one_that_stays(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES) as store:
        store.put_many([make_record(1, objective=0.5)])
        assert store.put_many([make_record(1, objective=0.7), make_record(1, rung="distil", objective=0.1)]) == 1
        digest = make_record(1).evaluation.digest
        assert store.get_many([digest], "network")[digest].evaluation.objective == 0.5
        assert store.count_by_rung() == {"network": 1, "distil": 1}
        assert len(store) == 2


def test_an_evaluation_is_replaced_where_that_is_said(tmp_path: Path) -> None:
    digest, other = (make_record(seed).evaluation.digest for seed in (1, 2))
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES) as store:
        store.put_many([make_record(1, objective=0.5), make_record(2, objective=0.5)], since=3)
        store.put_many([make_record(1, objective=0.6)])
        again = [make_record(seed, objective=0.7) for seed in (1, 2)]
        assert store.put_many(again, since=3, instead_of={digest, "unknown"}) == 1
        found = store.get_many([digest, other], "network", since=3)
        assert (found[digest].evaluation.objective, found[other].evaluation.objective) == (0.7, 0.5)
        assert store.get_many([digest], "network")[digest].evaluation.objective == 0.6


def test_a_genome_is_there_once_for_every_network_that_it_is_cut_from(tmp_path: Path) -> None:
    digest = make_record(1).evaluation.digest
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES) as store:
        for since, objective in ((0, 0.5), (3, 0.7), (3, 0.9)):
            store.put_many([make_record(1, objective=objective)], since=since)
        assert len(store) == len(list(store.records())) == 2
        found = [store.get_many([digest], "network", since=since) for since in (0, 3, 4)]
    assert [record[digest].evaluation.objective for record in found[:2]] == [0.5, 0.7]
    assert not found[2]


def test_a_store_whose_rows_name_no_network_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "e.sqlite"
    records = [make_record(seed) for seed in range(8)]  # of generations 0 and 1
    digests = [record.evaluation.digest for record in records]
    with EvaluationStore(path, N_GENES, "space") as store:
        store.put_many(records)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            DROP INDEX evaluations_in_order;
            ALTER TABLE evaluations RENAME TO newer;
            CREATE TABLE evaluations (
                digest TEXT NOT NULL, rung TEXT NOT NULL, generation INTEGER NOT NULL, position INTEGER NOT NULL,
                genome BLOB NOT NULL, macs INTEGER NOT NULL, n_params INTEGER NOT NULL, objective REAL,
                metrics TEXT NOT NULL, n_images INTEGER NOT NULL, seconds REAL NOT NULL, failure TEXT NOT NULL,
                PRIMARY KEY (digest, rung)
            );
            CREATE INDEX evaluations_in_order ON evaluations (generation, rung, position);
            INSERT INTO evaluations SELECT digest, rung, generation, position, genome, macs, n_params, objective,
                metrics, n_images, seconds, failure FROM newer;
            DROP TABLE newer;
        """)

    def assert_complete(store: EvaluationStore) -> None:
        assert [r.evaluation for r in store.records()] == [r.evaluation for r in records]
        assert list(store.get_many(digests, "network")) == list(dict.fromkeys(sorted(digests)))
        assert set(store.get_many(digests, "network", since=1)) == set(digests[4:])

    before = path.read_bytes()
    with EvaluationStore(path, read_only=True) as store:
        assert_complete(store)
    assert path.read_bytes() == before
    for _ in range(2):
        with EvaluationStore(path, N_GENES, "space") as store:
            assert_complete(store)
    with EvaluationStore(path, N_GENES, "space") as store:
        assert store.put_many(records[:4], since=1) == 4
        assert set(store.get_many(digests, "network", since=1)) == set(digests)
        assert len(store) == 12


def test_failures_and_missing_figures_survive(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES) as store:
        record = make_record(3, objective=math.inf, failure="worker died")
        odd = Evaluation(record.evaluation.digest, "other", 0, math.nan, {"kl": math.inf})
        store.put_many([record, StoredEvaluation(record.genome, 1, 1, 0, 0, odd)])
        first, second = sorted(store.records(), key=lambda r: r.evaluation.rung)
    assert (first.evaluation.objective, first.evaluation.failure) == (math.inf, "worker died")
    assert second.evaluation.failure == "the objective is NaN"
    assert math.isnan(second.evaluation.metrics["kl"])


def test_more_keys_than_one_query_may_hold(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES) as store:
        records = [make_record(seed) for seed in range(1200)]
        store.put_many(records)
        digests = list({r.evaluation.digest for r in records})
        assert len(store.get_many(digests, "network")) == len(digests) == len(store)


def test_a_reader_follows_a_live_writer(tmp_path: Path) -> None:
    path = tmp_path / "e.sqlite"
    with EvaluationStore(path, N_GENES) as store, EvaluationStore(path, read_only=True) as reader:
        assert len(reader) == 0
        store.put_many([make_record(1)])
        assert len(reader) == 1
        with pytest.raises(RunDirectoryError, match="cannot be used"):
            reader.put_many([make_record(2)])


def test_a_closed_store_is_one_file(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "e.sqlite", N_GENES) as store:
        store.put_many([make_record(1)])
    assert [p.name for p in tmp_path.iterdir()] == ["e.sqlite"]


@pytest.mark.parametrize(
    "content", [b"not a database at all, but text of some length" * 40, b"SQLite format 3\0 and rubbish"]
)
def test_a_corrupt_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "e.sqlite"
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        EvaluationStore(path, N_GENES)
    assert path.read_bytes() == content


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE evaluations (x)")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    with pytest.raises(RunDirectoryError, match="another SQLite file"):
        EvaluationStore(path, N_GENES)
    assert path.read_bytes() == content


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.sqlite"
    EvaluationStore(path, N_GENES).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RunDirectoryError, match="has version 99"):
        EvaluationStore(path, N_GENES)


def test_a_store_of_another_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.sqlite"
    EvaluationStore(path, N_GENES, "a" * 64).close()
    with pytest.raises(RunDirectoryError, match="19 genes, but the search space has 20"):
        EvaluationStore(path, 20, "a" * 64)
    with pytest.raises(RunDirectoryError, match="belongs to search space aaaaaaaaaaaa"):
        EvaluationStore(path, N_GENES, "b" * 64)


def test_a_missing_store_is_not_created_by_reading(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is not there"):
        EvaluationStore(tmp_path / "e.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from evoprune.evaluation_store import EvaluationStore
from tests.evoprune.test_evaluation_store import N_GENES, make_record

store = EvaluationStore(Path(sys.argv[1]), N_GENES)
for seed in range(0, 10**6, 2):
    store.put_many([make_record(seed), make_record(seed + 1)])
    print(seed + 2, flush=True)
"""


def test_a_killed_writer_leaves_every_finished_transaction(tmp_path: Path) -> None:
    path = tmp_path / "e.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        n_reported = 0
        while n_reported < 40:
            n_reported = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        n_reported = max([n_reported, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
    with EvaluationStore(path, N_GENES) as store:
        kept = {r.evaluation.digest: r.evaluation for r in store.records()}
    for seed in range(n_reported):
        expected = make_record(seed).evaluation
        assert expected.digest in kept
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
