"""Expected costs by hand: formulas of the layers' shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from search_spaces import SearchSpace, count_macs, prune_model
from tests.search_spaces.patterns import PATTERNS
from tests.search_spaces.spaces import random_genomes, traced

aten = torch.ops.aten


def test_chain_by_hand() -> None:
    _, _, space = traced("chain")
    counts = np.array([[6, 4, 5], [1, 1, 1], [2, 4, 3]])
    a, b, c = counts.T
    assert space.macs_cost(counts).tolist() == (64 * 9 * (3 * a + a * b + b * c) + 5 * c).tolist()
    assert space.params_cost(counts).tolist() == (9 * (3 * a + a * b + b * c) + 2 * (a + b + c) + 5 * c + 5).tolist()


def test_depthwise_by_hand() -> None:
    _, _, space = traced("depthwise")
    counts = np.array([[6, 4], [1, 1], [5, 2]])
    a, b = counts.T
    assert space.macs_cost(counts).tolist() == (64 * (9 * 3 * a + 9 * a + a * b) + 5 * b).tolist()


def test_grouped_by_hand() -> None:
    _, _, space = traced("grouped")
    counts = np.array([[2, 3, 4], [1, 1, 1], [2, 1, 3]])
    a, b, c = 4 * counts[:, 0], 4 * counts[:, 1], counts[:, 2]
    assert space.macs_cost(counts).tolist() == (64 * 9 * (3 * a + a * b // 4 + b * c) + 5 * c).tolist()


class OutputCounter(TorchDispatchMode):
    """Counts the elements that convolutions and matrix products of weights write, whatever module calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = function(*args, **(kwargs or {}))
        if function.overloadpacket in (aten.convolution, aten.addmm, aten.mm, aten.linear):
            self.n_elements += output.numel()
        return output


@pytest.mark.parametrize("name", PATTERNS)
def test_activations_are_what_the_layers_of_the_sliced_network_write(name: str) -> None:
    model, inputs, space = traced(name)
    genomes = np.concatenate([space.all_ones(), random_genomes(space, 4)])
    for genome in genomes:
        small = prune_model(model, space, genome)
        with OutputCounter() as counter:  # with gradients, since attention has a fused path without
            small(*inputs)
        written = 4 * counter.n_elements // inputs[0].shape[0]
        assert space.cost("activation-bytes", genome[None]).tolist() == [written]


def test_activations_by_hand() -> None:
    _, _, space = traced("chain")
    counts = np.array([[6, 4, 5], [1, 1, 1], [2, 4, 3]])
    assert space.costs["activation-bytes"](counts).tolist() == (4 * (64 * counts.sum(axis=1) + 5)).tolist()


@pytest.mark.parametrize("name", PATTERNS)
def test_a_gene_costs_what_falls_with_it(name: str) -> None:
    _, _, space = traced(name)
    lattice = space.lattice
    for cost in space.costs.values():
        prices = cost.gene_prices(lattice.sizes, lattice.min_keep, lattice.step)
        for column in range(len(space.groups)):
            fewer = lattice.sizes[None].copy()
            fewer[0, column] -= 1
            assert prices[column] == pytest.approx(float(cost(lattice.sizes[None])[0] - cost(fewer)[0]))


@pytest.mark.parametrize("name", PATTERNS)
def test_marginals_are_differences_of_costs(name: str) -> None:
    _, _, space = traced(name)
    counts = space.kept_counts(random_genomes(space, 5))
    for cost in space.costs.values():
        rise = cost.marginals(counts, np.full(len(space.groups), 2))
        for column in range(len(space.groups)):
            larger = counts.copy()
            larger[:, column] += 2
            assert np.rint(rise[:, column]).tolist() == (cost(larger) - cost(counts)).tolist()


@pytest.mark.parametrize("name", PATTERNS)
def test_the_dense_cost_is_the_independent_count(name: str) -> None:
    model, inputs, space = traced(name)
    assert space.macs_dense == count_macs(model, inputs)


def test_costs_of_a_population_are_those_of_its_members() -> None:
    _, _, space = traced("channel shuffle")
    genomes = random_genomes(space, 20)
    assert space.macs(genomes).tolist() == [int(space.macs(genome[None])[0]) for genome in genomes]


def test_batch_size_does_not_enter_the_macs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    assert count_macs(model, [torch.zeros(5, 3, 8, 8)]) == count_macs(model, [torch.zeros(1, 3, 8, 8)])
    spaces = [SearchSpace.trace(model, torch.zeros(n, 3, 8, 8)) for n in (1, 2, 5)]
    assert len({space.macs_dense for space in spaces}) == 1
    assert len({space.fingerprint for space in spaces}) == 1


def test_group_shares_name_the_costly_layers() -> None:
    _, _, space = traced("chain")
    shares = space.macs_cost.group_share(space.lattice.sizes)
    terms = np.array([64 * 9 * 18, 64 * 9 * 24, 64 * 9 * 20, 25])
    expected = [terms[:2].sum(), terms[1:3].sum(), terms[2:].sum()] / terms.sum()
    assert np.allclose(shares, expected)
