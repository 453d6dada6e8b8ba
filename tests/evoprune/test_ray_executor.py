"""The Ray executor on a real local cluster: equal to in-process, deaths, quarantine, interrupts."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evoprune.evaluation_store import EvaluationStore
from evoprune.execution import InProcessExecutor
from evoprune.execution.protocol import collect
from evoprune.run_directory import RunDirectory
from evoprune.runner import run_search
from evoprune.search import LadderPlan, Search, SearchConfig
from search_spaces.errors import ExecutionError
from search_spaces.genome import BoolArray, genome_digest
from tests.evoprune.fakes import FakeRecipe, make_target, tiny_space

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and child processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

N_GENES = 37
GENOMES: BoolArray = np.random.default_rng(0).random((23, N_GENES)) < 0.5
RECIPE = FakeRecipe({"target": make_target(N_GENES)})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all tests; executors that find one running do not end it."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_evaluations_of_the_in_process_executor() -> None:
    from evoprune.execution.ray_executor import RayExecutor

    bad = frozenset([genome_digest(GENOMES[4])])
    recipe = FakeRecipe(RECIPE.arrays, raise_on=bad)
    local = InProcessExecutor(recipe.build(), 2)
    remote = RayExecutor(recipe, 2)
    for rung in ("cheap", "network"):
        expected = local.evaluate(GENOMES, rung)
        received = remote.evaluate(GENOMES, rung)
        assert received == expected
        assert received[4].failure.startswith("ArithmeticError")
    assert remote.evaluate(GENOMES[:0], "network") == []
    local.close()
    remote.close()


@pytest.mark.usefixtures("cluster")
def test_workers_are_told_the_limit() -> None:
    from evoprune.execution.ray_executor import RayExecutor

    recipe = FakeRecipe(RECIPE.arrays, stops=True)
    local, remote = InProcessExecutor(recipe.build(), 2), RayExecutor(recipe, 2)
    expected, received = (
        collect(executor.stream(GENOMES, "network", 0.7), len(GENOMES)) for executor in (local, remote)
    )
    assert received == expected
    assert 0 < sum(evaluation.is_stopped for evaluation in received) < len(GENOMES)
    local.close()
    remote.close()


@pytest.mark.usefixtures("cluster")
def test_a_genome_that_kills_its_worker_is_quarantined_and_the_others_go_on() -> None:
    from evoprune.execution.ray_executor import RayExecutor

    bad = genome_digest(GENOMES[5])
    remote = RayExecutor(FakeRecipe(RECIPE.arrays, exit_on=frozenset([bad])), 2, chunk_size=3)
    evaluations = remote.evaluate(GENOMES[:9], "network")
    assert [e.digest for e in evaluations] == [genome_digest(g) for g in GENOMES[:9]]
    assert [e.digest for e in evaluations if e.failure] == [bad]
    assert evaluations[5].objective == math.inf
    assert evaluations[5].failure == "quarantined: it killed its worker 2 times"
    assert not any(e.failure for e in remote.evaluate(GENOMES[10:], "network"))
    remote.close()


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_fit_are_refused_with_the_number_that_fits() -> None:
    from evoprune.execution.ray_executor import RayExecutor

    with pytest.raises(ExecutionError, match=r"2 of 3 fit.*lower `--workers` to 2"):
        RayExecutor(RECIPE, 3)
    with pytest.raises(ExecutionError, match=r"0 of 1 fit: each needs 1 CPU and 64 GPU"):
        RayExecutor(RECIPE, 1, n_gpus_per_worker=64)


@pytest.mark.parametrize("n_devices", [1, 2, 3])
@pytest.mark.parametrize("n_workers", range(1, 13))
def test_workers_share_devices_and_all_of_them_fit(n_workers: int, n_devices: int) -> None:
    from evoprune.execution.ray_executor import workers_per_device
    from evoprune.session import gpu_share

    share = gpu_share(n_workers, n_devices)
    assert n_devices * workers_per_device(share) >= n_workers
    assert share == 1 or workers_per_device(share) == -(-n_workers // n_devices)


@pytest.mark.usefixtures("cluster")
def test_a_recipe_that_cannot_be_built_is_an_error() -> None:
    from evoprune.execution.ray_executor import RayExecutor

    with pytest.raises(ExecutionError, match="no evaluator can be built from this recipe"):
        RayExecutor(FakeRecipe(RECIPE.arrays, broken=True), 1)


@pytest.mark.usefixtures("cluster")
def test_a_search_on_ray_is_the_search_in_process(tmp_path: Path) -> None:
    from evoprune.execution.ray_executor import RayExecutor

    space = tiny_space()
    config = SearchConfig({"macs": 0.5}, LadderPlan("network", elite="dear"), population_size=8, n_generations=3)
    recipe = FakeRecipe({"target": make_target(space.n_genes)})
    states, records = [], []
    for n_workers in (0, 1, 2):
        executor = RayExecutor(recipe, n_workers) if n_workers else InProcessExecutor(recipe.build(), 2)
        search = Search(space, config, seed=3)
        run = RunDirectory.create(tmp_path / str(len(states)), options={}, hashes={})
        with EvaluationStore(run.evaluations_path, space.n_genes) as store:
            run_search(search, executor, store, run)
            records.append([(r.evaluation, r.generation, r.position) for r in store.records()])
        executor.close()
        states.append(search.state())
    for state, evaluations in zip(states, records, strict=True):
        assert evaluations == records[0]
        assert state.data == states[0].data
        for name, array in state.arrays.items():
            np.testing.assert_array_equal(array, states[0].arrays[name])


@pytest.mark.usefixtures("cluster")
def test_workers_that_a_busy_cluster_does_not_start_in_time_are_an_error() -> None:
    from evoprune.execution.ray_executor import RayExecutor

    first = RayExecutor(RECIPE, 2)
    with pytest.raises(ExecutionError, match=r"1 workers must start, but 1 did not within 0\.5 s; the cluster is busy"):
        RayExecutor(RECIPE, 1, start_timeout_s=0.5)
    assert not any(e.failure for e in first.evaluate(GENOMES, "network"))
    first.close()


INTERRUPTED = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from evoprune.execution.ray_executor import RayExecutor
from tests.evoprune.test_ray_executor import GENOMES, RECIPE

executor = RayExecutor(RECIPE, 2)
try:
    print("started", flush=True)
    while True:
        executor.evaluate(GENOMES, "network")
except KeyboardInterrupt:
    executor.close()
    print("closed", flush=True)
"""


def test_an_interrupt_ends_in_order() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (0, "closed\n"), errors
    assert errors == ""


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (
            None,
            r"Ray must start on this machine, but The current node timed out during startup; if the machine is busy",
        ),
        ("head:6379", "a Ray cluster must be reachable at 'head:6379', but The current node timed out during startup;"),
    ],
)
def test_a_cluster_that_does_not_come_up_is_told_whatever_ray_raises(
    monkeypatch: pytest.MonkeyPatch, address: str | None, told: str
) -> None:
    import ray

    from evoprune.execution.ray_executor import RayExecutor

    def start(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does, with no class of its own

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(ExecutionError, match=told):
        RayExecutor(RECIPE, 1, address=address)
