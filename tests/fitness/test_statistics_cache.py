from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fitness import statistics_cache
from fitness.disk_cache import cached_entry
from fitness.program import Program
from fitness.statistics import DenseStatistics, StatisticsOptions, collect_statistics
from fitness.statistics_cache import cached_statistics, cached_two_step, statistics_key
from tests.fitness.networks import program_of

OPTIONS = StatisticsOptions(n_positions=16)


def assert_equal(one: DenseStatistics, other: DenseStatistics) -> None:
    assert one.n_images == other.n_images
    assert (one.silent, dict(one.unmeasured)) == (other.silent, dict(other.unmeasured))
    for a, b in zip(one.consumers, other.consumers, strict=True):
        assert (a.layer, a.energy, a.n_rows) == (b.layer, b.energy, b.n_rows)
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("column_genes", "genes", "gram"))
        assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("mean", "covariance", "channel_covariance"))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the cache had to answer")

    monkeypatch.setattr(statistics_cache, "collect_statistics", fail)


@pytest.mark.parametrize("name", ["concat", "grouped"])
@pytest.mark.parametrize("max_bytes", [0, 1 << 30])
def test_second_call_reads_what_the_first_gathered(
    name: str, max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, program, inputs = program_of(name)
    options = replace(OPTIONS, max_bytes=max_bytes)
    first = cached_statistics(program, inputs, options, folder=tmp_path)
    assert_equal(first, collect_statistics(program, inputs, options))
    forbid(monkeypatch)
    assert_equal(cached_statistics(program, inputs, options, folder=tmp_path), first)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "other"])
def test_damaged_entry_is_gathered_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, program, inputs = program_of("convolution")
    whole = cached_statistics(program, inputs, OPTIONS, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    elif damage == "other":
        cached_two_step(program, inputs, OPTIONS, folder=tmp_path)
        content = bytearray(next(other for other in tmp_path.iterdir() if other != path).read_bytes())
    path.write_bytes({"truncated": content[:-10], "text": b"no tensors", "empty": b""}.get(damage, content))
    assert_equal(cached_statistics(program, inputs, OPTIONS, folder=tmp_path), whole)
    assert "computed anew" in caplog.text
    caplog.clear()
    assert_equal(cached_statistics(program, inputs, OPTIONS, folder=tmp_path), whole)
    assert not caplog.text


def test_eliminations_are_kept_per_damping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, inputs = program_of("coupled, several readers")
    first = cached_two_step(program, inputs, OPTIONS, damping=1e-2, folder=tmp_path)
    cached_two_step(program, inputs, OPTIONS, damping=1e-3, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr("fitness.two_step.eliminate", None)
    again = cached_two_step(program, inputs, OPTIONS, damping=1e-2, folder=tmp_path)
    assert np.array_equal(again.scores(), first.scores())
    assert all(np.array_equal(again.order(g), first.order(g)) for g in program.space.groups)


def test_key_follows_weights_images_and_options() -> None:
    _, program, inputs = program_of("convolution")
    key = statistics_key(program, inputs, OPTIONS)
    assert key == statistics_key(program, inputs.clone(memory_format=torch.channels_last), OPTIONS)
    other: Program = program_of("no bias")[1]
    keys = {
        key,
        statistics_key(other, inputs, OPTIONS),
        statistics_key(program, inputs + 1, OPTIONS),
        statistics_key(program, inputs.bfloat16(), OPTIONS),
        statistics_key(program, inputs, replace(OPTIONS, seed=1)),
    }
    assert len(keys) == 5


def test_cache_that_cannot_be_written_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, program, inputs = program_of("convolution")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert cached_statistics(program, inputs, OPTIONS, folder=blocked / "cache").consumers
    assert "not kept" in caplog.text


def test_default_folder_is_below_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    _, program, inputs = program_of("convolution")
    cached_statistics(program, inputs, OPTIONS)
    assert len(list((tmp_path / "statistics").iterdir())) == 1


def test_a_result_that_does_not_fit_on_the_disk_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "entry.safetensors"
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        found = cached_entry(path, lambda: {"a": torch.ones(9000)}, lambda tensors: (tensors, {}), lambda t, _: dict(t))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert torch.equal(found["a"], torch.ones(9000))
    assert "is not kept" in caplog.text
    assert not path.exists()
