"""Evaluation on long-lived Ray actors, on this machine or on a cluster. The only module that imports Ray."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from evoprune.execution.protocol import (
    EvaluatedChunk,
    Recipe,
    collect,
    evaluate_chunk,
    failed_evaluation,
    split_indices,
)
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, OptionError
from search_spaces.genome import BoolArray, IntArray

_ROUNDING = 1e-9  # of a share of a device
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming behaviour, without its warning
}


class _Worker:
    """The actor: one evaluator, built once."""

    def __init__(self, n_torch_threads: int) -> None:
        torch.set_num_threads(n_torch_threads)

    def placed(self) -> None:
        """Return: a machine has taken this worker in."""

    def build(self, recipe: Recipe, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Build the evaluator, which may gather statistics of a large network first."""
        self._evaluator = recipe.with_arrays(arrays).build()

    def evaluate(self, packed: npt.NDArray[np.uint8], n_genes: int, rung: str, limit: float) -> tuple[Evaluation, ...]:
        """Return one evaluation per row of ``packed``."""
        genomes = np.unpackbits(packed, axis=1, count=n_genes).astype(np.bool_)
        return evaluate_chunk(self._evaluator, genomes, rung, limit)


def workers_per_device(share: float) -> int:
    """Return how many workers fit on one device that each take ``share`` of it, in (0, 1]."""
    return int(1 / share + _ROUNDING)  # 1 // 0.2 is 4


class RayExecutor:
    """Evaluates genomes on ``n_workers`` Ray actors.

    The arrays of the recipe are put into the object store once and shared by the workers of a machine; genomes travel
    as packed bits. A worker that dies is replaced, and its chunk is tried again genome by genome: one that kills
    ``max_deaths`` workers on its own is quarantined as a failed evaluation, and the others go on. Ray's own restarts
    (``max_restarts``, ``max_task_retries``) stay off: they repeat the whole chunk and cannot tell which genome is to
    blame.

    Args:
        recipe: Builds the evaluator on each worker.
        n_workers: Number of actors.
        address: A cluster to join (``auto``, ``ray://host:port``, ``host:port``); None starts one on this machine.
        n_cpus_per_worker: Cores that Ray reserves per actor.
        n_gpus_per_worker: Accelerators, or a share of one, that Ray reserves per actor.
        chunk_size: Genomes per task; by default an eighth of an equal share, at most 64.
        max_deaths: Workers that one genome may kill on its own.
        start_timeout_s: Seconds in which a machine must take the workers in; building an evaluator takes its time.

    Raises:
        OptionError: A number is out of its range.
        ExecutionError: The cluster cannot be reached, cannot place the workers, or their evaluator cannot be built.
    """

    def __init__(
        self,
        recipe: Recipe,
        n_workers: int,
        *,
        address: str | None = None,
        n_cpus_per_worker: float = 1,
        n_gpus_per_worker: float = 0,
        chunk_size: int | None = None,
        max_deaths: int = 2,
        start_timeout_s: float = 120.0,
    ) -> None:
        if n_workers < 1 or max_deaths < 1 or (chunk_size is not None and chunk_size < 1):
            raise OptionError(
                "`n_workers`, `max_deaths` and `chunk_size` must be at least 1, but got "
                f"{n_workers}, {max_deaths} and {chunk_size}"
            )
        self._n_workers = n_workers
        self._chunk_size = chunk_size
        self._max_deaths = max_deaths
        self._start_timeout_s = start_timeout_s
        self._resources = {"CPU": float(n_cpus_per_worker), "GPU": float(n_gpus_per_worker)}
        self._workers: list[Any] = []
        self._placed: dict[int, Any] = {}  # of replacements
        self._owns_cluster = not ray.is_initialized()
        if self._owns_cluster:
            _connect(address, n_cpus=n_workers * n_cpus_per_worker)
        try:
            self._check_resources()
            self._start(recipe)
        except BaseException:
            self.close()
            raise

    @property
    def n_workers(self) -> int:
        """Number of actors."""
        return self._n_workers

    def renew(self, recipe: Recipe) -> None:
        """Evaluate by another ``recipe`` from now on: on new actors in the same cluster.

        Raises:
            ExecutionError: Its evaluator cannot be built.
        """
        for worker in self._workers:
            ray.kill(worker)
        self._start(recipe)

    def stream(self, genomes: BoolArray, rung: str, limit: float = math.inf) -> Generator[EvaluatedChunk, None, None]:
        """Yield evaluations of ``genomes`` ``(n, n_genes)`` in chunks as they finish; see :class:`Executor`."""
        packed, n_genes = np.packbits(genomes, axis=1), genomes.shape[1]
        waiting = deque(split_indices(len(genomes), self._n_workers, self._chunk_size))
        n_deaths: Counter[int] = Counter()
        idle = list(range(self._n_workers))
        tasks: dict[Any, tuple[int, IntArray | None]] = {}  # None: a replacement that comes up
        while waiting or any(indices is not None for _, indices in tasks.values()):
            while waiting and idle:
                worker, indices = idle.pop(0), waiting.popleft()
                task = self._workers[worker].evaluate.remote(packed[indices], n_genes, rung, limit)
                tasks[task] = (worker, indices)
            task = self._wait_for_one(tasks)
            worker, submitted = tasks.pop(task)
            try:
                result = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                raise ExecutionError(f"a worker failed: {error.cause}") from error
            except ray.exceptions.RayError as error:
                if submitted is None:
                    raise _not_started(error) from error
                self._workers[worker], self._placed[worker], built = self._start_worker()
                tasks[built] = (worker, None)
                n_deaths.update(submitted.tolist() if len(submitted) == 1 else [])
                if len(submitted) > 1:
                    waiting.extend(submitted[i : i + 1] for i in range(len(submitted)))
                elif n_deaths[int(submitted[0])] < self._max_deaths:
                    waiting.append(submitted)
                else:
                    yield EvaluatedChunk(submitted, (self._quarantined(genomes[submitted[0]], rung),))
                continue
            idle.append(worker)
            if submitted is not None:
                yield EvaluatedChunk(submitted, result)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes``, in order."""
        return collect(self.stream(genomes, rung), len(genomes))

    def close(self) -> None:
        """End the actors, and the cluster where this executor started or joined it."""
        if ray.is_initialized():
            for worker in self._workers:
                ray.kill(worker)
            if self._owns_cluster:
                ray.shutdown()
        self._workers = []

    def _start(self, recipe: Recipe) -> None:
        self._recipe = ray.put(recipe.with_arrays({}))
        self._arrays = ray.put({name: np.asarray(array) for name, array in recipe.arrays.items()})
        started = [self._start_worker() for _ in range(self._n_workers)]
        self._workers = [worker for worker, _, _ in started]
        self._wait_until_ready([placed for _, placed, _ in started], [built for _, _, built in started])

    def _quarantined(self, genome: BoolArray, rung: str) -> Evaluation:
        return failed_evaluation(genome, rung, f"quarantined: it killed its worker {self._max_deaths} times")

    def _start_worker(self) -> tuple[Any, Any, Any]:
        """Return a worker, and what tells that it has a place and that its evaluator is built."""
        actor = ray.remote(_Worker).options(
            num_cpus=self._resources["CPU"], num_gpus=self._resources["GPU"], max_restarts=0, max_task_retries=0
        )
        worker = actor.remote(1)
        return worker, worker.placed.remote(), worker.build.remote(self._recipe, self._arrays)

    def _wait_for_one(self, tasks: Mapping[Any, tuple[int, IntArray | None]]) -> Any:
        """Return a finished task; where only replacements are awaited, one must have a place in time."""
        if all(indices is None for _, indices in tasks.values()):
            awaited = [self._placed[worker] for worker, _ in tasks.values()]
            if not ray.wait(awaited, num_returns=1, timeout=self._start_timeout_s)[0]:
                raise ExecutionError(
                    f"a worker that died must be replaced, but none came up within {self._start_timeout_s:g} s; "
                    "check the cluster with `ray status`, then continue with `evoprune resume`"
                )
        return ray.wait(list(tasks), num_returns=1)[0][0]

    def _check_resources(self) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n_fitting = sum(self._n_fitting(node) for node in nodes)
        if n_fitting < self._n_workers:
            has = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in self._resources)
            needs = " and ".join(f"{amount:g} {kind}" for kind, amount in self._resources.items() if amount)
            raise ExecutionError(
                f"the cluster must be able to place all workers, but {n_fitting} of {self._n_workers} fit: each needs "
                f"{needs}, and the cluster has {has} on {len(nodes)} node(s); lower `--workers` to {n_fitting}, or add "
                "nodes"
            )

    def _n_fitting(self, node: Mapping[str, float]) -> int:
        cpu, gpu = self._resources["CPU"], self._resources["GPU"]
        limits = [node.get("CPU", 0.0) // cpu] if cpu else []
        if gpu:
            n_gpus = node.get("GPU", 0.0)
            # A share never spans two devices.
            limits.append(n_gpus // gpu if gpu >= 1 else n_gpus * workers_per_device(gpu))
        return int(min(limits, default=float(self._n_workers)))

    def _wait_until_ready(self, placed: Sequence[Any], built: Sequence[Any]) -> None:
        done, pending = ray.wait(list(placed), num_returns=len(placed), timeout=self._start_timeout_s)
        try:
            ray.get(done)
            if not pending:
                ray.get(list(built))
        except ray.exceptions.RayError as error:
            raise _not_started(error) from error
        if pending:
            raise ExecutionError(
                f"{len(placed)} workers must start, but {len(pending)} did not within {self._start_timeout_s:g} s; the "
                "cluster is busy: wait, or lower `--workers`"
            )


def _connect(address: str | None, n_cpus: float) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", num_cpus=max(1, int(np.ceil(n_cpus))), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises many kinds, a bare Exception among them where a machine is too busy
        reason = str(error).rstrip(". ")
        if address is None:
            raise ExecutionError(
                f"Ray must start on this machine, but {reason}; if the machine is busy, continue later with `evoprune "
                "resume`, or leave `--workers` out"
            ) from error
        raise ExecutionError(
            f"a Ray cluster must be reachable at {address!r}, but {reason}; check `--address`, or leave `--workers` out"
        ) from error


def _not_started(error: Exception) -> ExecutionError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return ExecutionError(
        f"every worker must be able to build its evaluator, but one could not: {reason}; "
        "on a cluster, check that evoprune and the same versions are installed on all nodes"
    )
