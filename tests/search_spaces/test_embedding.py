"""A cut network in the dense shapes again: it computes the same, and cut again it is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search_spaces import prune_model
from search_spaces.errors import GenomeShapeError
from search_spaces.surgery import embed_model, named_tensors
from search_spaces.verification import randomise, relative_difference
from tests.search_spaces.patterns import PATTERNS
from tests.search_spaces.spaces import assert_same_state, random_genomes, state_of, traced


@pytest.mark.parametrize("name", PATTERNS)
def test_it_computes_what_the_cut_network_does_and_gives_its_slices_back(name: str) -> None:
    model, inputs, space = traced(name)
    before = state_of(model)
    for genome in random_genomes(space, 3):
        small = prune_model(model, space, genome)
        randomise(small, seed=8)  # as a training would leave it
        small.double().eval()
        whole = embed_model(small, model, space, genome)
        assert {n: t.shape for n, t in named_tensors(whole).items()} == {
            n: t.shape for n, t in named_tensors(model).items()
        }
        with torch.no_grad():
            assert relative_difference(small(*inputs), whole(*inputs)) < 1e-9
        again = named_tensors(prune_model(whole, space, genome))
        assert all(torch.equal(again[name], tensor) for name, tensor in named_tensors(small).items())
    assert_same_state(state_of(model), before)


def test_a_network_of_another_genome_is_refused() -> None:
    model, _, space = traced("chain")
    one, other = space.all_ones(2)
    one[0] = other[:2] = False
    with pytest.raises(GenomeShapeError, match=r"the genome leaves \(4, .* the network has \(5, .* pruned by"):
        embed_model(prune_model(model, space, one), model, space, other)
    assert not np.array_equal(one, other)
