"""Several networks are adapted and tested at the same time, each with an equal share of the cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import nn

from evoprune.optimisation import accuracy
from evoprune.threads import n_usable_cores, torch_threads
from fitness.data import ImageData
from fitness.final_network import FinalNetwork

_POLL_S = 0.5


@dataclass(frozen=True)
class TestedNetwork:
    """A network with its test accuracy.

    Attributes:
        name: What it was asked for by.
        made: It, with the layers that keep their weights.
        accuracy: Share of the test images that it gets right.
    """

    __test__ = False  # not a test, whatever pytest takes from its name

    name: str
    made: FinalNetwork
    accuracy: float


class StopSignal:
    """Tells threads that nobody waits for what they compute."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Let every thread that asks from now on end."""
        self._event.set()

    def raise_if_stopped(self) -> None:
        """End the thread that calls, where the signal is set."""
        if self._event.is_set():
            raise _NobodyWaitsError


class _NobodyWaitsError(Exception):
    """Ends a thread; nobody sees it."""


def adapt_and_test(
    makers: Mapping[str, Callable[[], FinalNetwork]],
    data: ImageData,
    device: torch.device,
    *,
    raise_if_stopped: Callable[[], None],
    signal: StopSignal,
) -> Iterator[TestedNetwork]:
    """Yield the networks of ``makers``, with their test accuracies, as they get ready; the first ones are begun first.

    On an accelerator there is one at a time, with as many threads as torch has: kernels would only queue up.

    Args:
        makers: What makes a network, by its name; each may be called on another thread.
        data: The test images are read here.
        device: Where networks are tested; afterwards they are on the CPU.
        raise_if_stopped: Called on this thread about twice a second; an error that it raises is raised here, and ends
            all that is being computed.
        signal: Is set when this ends, whatever the reason; makers should heed it.
    """
    n_workers, n_threads = 1, torch.get_num_threads()
    if device.type == "cpu":
        n_workers = max(1, min(n_usable_cores(), len(makers)))
        n_threads = max(1, n_usable_cores() // n_workers)

    def tested(name: str) -> TestedNetwork:
        made = makers[name]()
        return TestedNetwork(name, made, _test_accuracy(made.network, data, device, signal.raise_if_stopped))

    with (
        torch_threads(n_threads),
        ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(n_threads,)) as pool,
    ):
        pending = {pool.submit(tested, name) for name in makers}
        try:
            while pending:
                raise_if_stopped()
                done, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            signal.set()
            for future in pending:
                future.cancel()


def _test_accuracy(
    network: nn.Module, data: ImageData, device: torch.device, raise_if_stopped: Callable[[], None]
) -> float:
    """Return the share of test images that ``network``, which stays on the CPU, gets right on ``device``."""
    try:
        return accuracy(network.to(device), data.test, data, device=device, raise_if_stopped=raise_if_stopped)
    finally:
        network.to(torch.device("cpu"))
