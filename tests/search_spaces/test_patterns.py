"""What must hold for every wiring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search_spaces import masked, prune_model
from search_spaces.verification import relative_difference
from tests.search_spaces.patterns import PATTERNS
from tests.search_spaces.spaces import assert_cut_is_right, assert_same_state, random_genomes, state_of, traced

names = pytest.mark.parametrize("name", PATTERNS)


@names
def test_offers_all_that_can_be_cut_and_nothing_else(name: str) -> None:
    _, _, space = traced(name)
    assert space.n_genes == PATTERNS[name].n_genes
    reason = PATTERNS[name].reason
    if reason is not None:
        assert any(reason in frozen.reason for frozen in space.frozen)
    assert all(frozen.reason and frozen.n_channels > 0 for frozen in space.frozen)


@names
def test_masked_network_equals_cut_network_at_the_predicted_cost(name: str) -> None:
    model, inputs, space = traced(name)
    assert_cut_is_right(model, inputs, space, random_genomes(space, 6))


@names
def test_keeping_everything_changes_nothing(name: str) -> None:
    model, inputs, space = traced(name)
    genome = space.all_ones()[0]
    with torch.no_grad():
        dense = model(*inputs)
        with masked(model, space, genome) as same:
            assert relative_difference(dense, same(*inputs)) == 0
        small = prune_model(model, space, genome)
        assert relative_difference(dense, small(*inputs)) == 0
    assert small.state_dict().keys() == model.state_dict().keys()
    assert space.macs(genome[None])[0] == space.macs_dense
    assert space.n_params(genome[None])[0] == sum(p.numel() for p in model.parameters())


@names
def test_cost_falls_when_a_bit_falls(name: str) -> None:
    _, _, space = traced(name)
    genomes = random_genomes(space, 4)
    for gene in range(space.n_genes):
        kept = genomes[genomes[:, gene]]
        fallen = kept.copy()
        fallen[:, gene] = False
        assert (space.n_params(fallen) < space.n_params(kept)).all()
        assert (space.macs(fallen) <= space.macs(kept)).all()


@names
def test_leaves_the_model_as_it_is(name: str) -> None:
    model, _, space = traced(name)
    before = state_of(model)
    prune_model(model, space, random_genomes(space, 1)[0])
    assert_same_state(before, state_of(model))


@names
def test_groups_tile_the_genome(name: str) -> None:
    _, _, space = traced(name)
    covered = np.concatenate([np.arange(g.start, g.stop) for g in space.groups] or [np.empty(0)])
    assert covered.tolist() == list(range(space.n_genes))
    assert len({group.name for group in space.groups}) == len(space.groups)
