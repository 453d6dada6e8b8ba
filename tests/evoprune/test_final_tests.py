"""Networks that are adapted and tested at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from evoprune.final_tests import StopSignal, adapt_and_test
from evoprune.optimisation import accuracy
from evoprune.threads import n_usable_cores
from fitness.final_network import FinalNetwork
from tests.fitness.test_ladder import data

CPU = torch.device("cpu")


class Constant(nn.Module):
    """Answers one class, whatever it sees."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(torch.tensor([self.label]), 10).float().expand(len(x), 10)


def never() -> None:
    pass


def test_every_network_is_tested_by_its_name() -> None:
    networks = {f"always {label}": Constant(label) for label in (0, 1, 9)}
    makers = {name: partial(FinalNetwork, network, (name,)) for name, network in networks.items()}
    n_threads = torch.get_num_threads()
    tested = {t.name: t for t in adapt_and_test(makers, data(), CPU, raise_if_stopped=never, signal=StopSignal())}
    assert tested.keys() == networks.keys()
    for name, network in networks.items():
        assert tested[name].accuracy == accuracy(network, data().test, data(), device=CPU)
        assert tested[name].made == FinalNetwork(network, (name,))
    assert tested["always 0"].accuracy == tested["always 1"].accuracy == 1 / 8  # labels 0 to 7
    assert tested["always 9"].accuracy == 0
    assert torch.get_num_threads() == n_threads


def test_cores_are_shared_out() -> None:
    n_threads: list[int] = []

    def maker() -> FinalNetwork:
        n_threads.append(torch.get_num_threads())
        return FinalNetwork(Constant(0))

    list(adapt_and_test(dict.fromkeys("ab", maker), data(), CPU, raise_if_stopped=never, signal=StopSignal()))
    assert n_threads == [max(1, n_usable_cores() // 2)] * 2


def _endless(signal: StopSignal) -> FinalNetwork:
    while True:
        signal.raise_if_stopped()
        time.sleep(0.01)


class AskedError(Exception):
    pass


@pytest.mark.parametrize("is_asked", [True, False])
def test_whatever_ends_it_ends_what_is_still_computed(is_asked: bool) -> None:
    signal = StopSignal()

    def broken() -> FinalNetwork:
        raise ValueError("broken")

    def ask() -> None:
        raise AskedError

    makers: dict[str, Callable[[], FinalNetwork]] = {"endless": partial(_endless, signal)}
    if not is_asked:
        makers = {"broken": broken, **makers}
    with pytest.raises(AskedError if is_asked else ValueError):
        list(adapt_and_test(makers, data(), CPU, raise_if_stopped=ask if is_asked else never, signal=signal))
