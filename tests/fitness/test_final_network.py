"""Networks to hand back, several of one dense network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from fitness.final_network import FinalNetworks, final_network
from tests.fitness.test_ladder import OPTIONS, data, setting

Compensation = Literal["sequential", "static", "merge", "recalibrate", "none"]


def assert_equal_networks(a: nn.Module, b: nn.Module) -> None:
    tensors = [network.state_dict() for network in (a, b)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize("compensation", ["sequential", "merge", "recalibrate", "none"])
def test_networks_made_at_the_same_time_are_those_made_alone(compensation: Compensation) -> None:
    model, space, genomes = setting()
    options = replace(OPTIONS, compensation=compensation)
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        together = list(pool.map(FinalNetworks(model, space, data(), options, seed=5), genomes))
    assert len(together) == 4
    for genome, made in zip(genomes, together, strict=True):
        assert_equal_networks(made.network, final_network(model, space, genome, data(), options, seed=5))


class AskedError(Exception):
    pass


@pytest.mark.parametrize("compensation", ["sequential", "recalibrate"])
def test_a_request_to_stop_ends_the_call_before_its_next_layer_or_batch(compensation: Compensation) -> None:
    model, space, genomes = setting()
    options = replace(OPTIONS, compensation=compensation, batch_size=8)
    n_calls = 0

    def stop_at_third() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise AskedError

    networks = FinalNetworks(model, space, data(), options, seed=5, raise_if_stopped=stop_at_third)
    with pytest.raises(AskedError):
        networks(genomes[0])
    assert n_calls == 3
    assert_equal_networks(
        networks(genomes[0]).network, final_network(model, space, genomes[0], data(), options, seed=5)
    )
    assert n_calls > 6
