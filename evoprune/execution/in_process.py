"""Evaluation inside this process: one thread per core on the CPU, one thread on an accelerator."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

import torch

from evoprune.execution.protocol import EvaluatedChunk, collect, evaluate_chunk, split_indices
from evoprune.threads import n_usable_cores, one_thread, torch_threads
from fitness.evaluation import Evaluation, Evaluator
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray


class InProcessExecutor:
    """Evaluates genomes in a pool of threads of this process.

    Every thread computes with one torch thread, so that sums are added in the same order whatever the number of cores:
    float results are those of any other executor on the same kind of processor. torch keeps that setting per thread;
    the calling thread keeps its own.

    Args:
        evaluator: Judges genomes; called from several threads at the same time unless ``n_threads`` is 1.
        n_threads: Genomes evaluated at the same time; by default the cores this process may use, and 1 for an
            accelerator, whose kernels would only queue up behind each other.
        device: Where the evaluator computes.
        chunk_size: Genomes per call of the evaluator; by default an eighth of an equal share, at most 64.

    Raises:
        OptionError: ``n_threads`` or ``chunk_size`` is not positive.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        n_threads: int | None = None,
        *,
        device: str | torch.device = "cpu",
        chunk_size: int | None = None,
    ) -> None:
        for name, value in (("n_threads", n_threads), ("chunk_size", chunk_size)):
            if value is not None and value < 1:
                raise OptionError(f"`{name}` must be at least 1, but got {value}; leave it out for the default")
        if n_threads is None:
            n_threads = n_usable_cores() if torch.device(device).type == "cpu" else 1
        self._evaluator = evaluator
        self._n_threads = n_threads
        self._chunk_size = chunk_size
        self._pool = _start_pool(n_threads)

    @property
    def n_workers(self) -> int:
        """Number of threads."""
        return self._n_threads

    def stream(self, genomes: BoolArray, rung: str, limit: float = math.inf) -> Generator[EvaluatedChunk, None, None]:
        """Yield evaluations of ``genomes`` ``(n, n_genes)`` in chunks as they finish; see :class:`Executor`."""
        chunks = split_indices(len(genomes), self._n_threads, self._chunk_size)
        with one_thread():
            futures = {
                self._pool.submit(evaluate_chunk, self._evaluator, genomes[chunk], rung, limit): chunk
                for chunk in chunks
            }
            try:
                for future in as_completed(futures):
                    yield EvaluatedChunk(futures[future], future.result())
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes``, in order."""
        return collect(self.stream(genomes, rung), len(genomes))

    def close(self) -> None:
        """End the threads after the chunks they are in."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start_pool(n_threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads all run and are set up.

    torch's own number is per thread, but its matrix and convolution libraries follow the number set last anywhere:
    with two, sums are split differently and the last bits change. Hence the caller's number is 1 too while genomes
    are evaluated.
    """
    with torch_threads(torch.get_num_threads()):
        pool = ThreadPoolExecutor(
            n_threads, thread_name_prefix="evoprune", initializer=torch.set_num_threads, initargs=(1,)
        )
        barrier = threading.Barrier(n_threads)
        for future in [pool.submit(barrier.wait) for _ in range(n_threads)]:
            future.result()
    return pool
