"""The user's network comes back as it was, whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import SearchSpace, masked, prune_model
from search_spaces.errors import GenomeShapeError, TraceError
from tests.search_spaces.patterns import Residual, build_pattern
from tests.search_spaces.spaces import assert_same_state, random_genomes, state_of, traced


class Fragile(Residual):
    """Raises on demand, half-way through its forward."""

    def body(self, x: Tensor) -> Tensor:
        self.stem(x)
        raise RuntimeError("broken on purpose")


def used_network(kind: type[nn.Module] = Residual, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network in training mode with hooks, gradients, a frozen layer and channels-last weights."""
    model = kind().to(dtype=dtype, memory_format=torch.channels_last)
    model.train()
    model.stem.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.inner.requires_grad_(False)
    model.outer.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tracing_leaves_everything_as_it_was(dtype: torch.dtype) -> None:
    model = used_network(dtype=dtype)
    before = state_of(model)
    SearchSpace.trace(model, torch.zeros(1, 3, 8, 8, dtype=dtype))
    assert_same_state(before, state_of(model))


def test_tracing_a_network_that_raises_leaves_it_as_it_was() -> None:
    model = used_network(Fragile)
    before = state_of(model)
    with pytest.raises(TraceError, match="broken on purpose"):
        SearchSpace.trace(model, torch.zeros(1, 3, 8, 8))
    assert_same_state(before, state_of(model))


def test_masking_is_undone_when_the_forward_raises() -> None:
    _, _, space = traced("residual")
    model = used_network(Fragile, torch.float64)
    before = state_of(model)
    with (
        pytest.raises(RuntimeError, match="broken on purpose"),
        masked(model, space, random_genomes(space, 1)[0]) as dense,
    ):
        dense(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert_same_state(before, state_of(model))


def test_masking_changes_weights_inside_the_block_only() -> None:
    model, inputs, space = traced("residual")
    genome = random_genomes(space, 1)[0]
    before = state_of(model)
    with torch.no_grad(), masked(model, space, genome) as dense:
        assert dense is model
        assert not torch.equal(model.head.weight, before["tensors"]["head.weight"])  # type: ignore[index]
        model(*inputs)
    assert_same_state(before, state_of(model))


def test_the_cut_network_keeps_mode_dtype_layout_and_flags_but_shares_nothing() -> None:
    _, _, space = traced("residual")
    model = used_network(dtype=torch.float64)
    small = prune_model(model, space, random_genomes(space, 3)[2])
    modules = dict(model.named_modules())
    for path, module in small.named_modules():
        assert module.training == modules[path].training
    parameters = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.grad is None
        assert parameter.requires_grad == parameters[name].requires_grad
        assert parameter.data_ptr() != parameters[name].data_ptr()
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
    assert len(small.outer._forward_hooks) == 1


def test_attributes_of_the_cut_network_fit_its_weights() -> None:
    model, _, space = traced("transposed grouped")
    small = prune_model(model, space, random_genomes(space, 1)[0])
    transposed = small.layers[1]
    assert (transposed.in_channels, transposed.out_channels, transposed.groups) == (2, 2, 2)
    assert small.layers[2].num_features == 2
    assert (small.head.in_features, small.head.out_features) == (1, 5)


def test_tied_weights_stay_tied() -> None:
    model, _, space = traced("tied weights")
    small = prune_model(model, space, random_genomes(space, 1)[0])
    assert small.one.weight is small.two.weight


def test_a_genome_that_empties_a_group_is_refused() -> None:
    model, _, space = traced("residual")
    genome = np.zeros(space.n_genes, np.bool_)
    with pytest.raises(GenomeShapeError, match=r"fewer in stem\.0, inner\.0; pass it through space\.repair"):
        prune_model(model, space, genome)


def test_masking_refuses_a_genome_of_another_space() -> None:
    model, _, space = traced("residual")
    with pytest.raises(GenomeShapeError), masked(model, space, np.ones(3, np.bool_)):
        pass


def test_the_cut_network_can_be_trained() -> None:
    model, inputs, space = traced("squeeze and excitation")
    small = prune_model(model, space, random_genomes(space, 2)[1]).train()
    small(inputs[0].repeat(2, 1, 1, 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_cut_network_can_be_traced_and_cut_again() -> None:
    model, inputs, space = traced("grouped")
    once = prune_model(model, space, random_genomes(space, 3)[2])
    again = SearchSpace.trace(once, inputs)
    assert again.macs_dense == space.macs(random_genomes(space, 3)[2:])[0]


def test_two_traces_agree() -> None:
    model, inputs = build_pattern("channel shuffle")
    first, second = (SearchSpace.trace(model, inputs) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.groups == second.groups
