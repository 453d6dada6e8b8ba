"""Traced patterns, each made once per test run, and the checks that many tests share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import SearchSpace, count_macs, masked, prune_model
from search_spaces.genome import BoolArray
from search_spaces.verification import relative_difference
from tests.search_spaces.patterns import build_pattern


@functools.cache
def traced(name: str) -> tuple[nn.Module, tuple[Tensor, ...], SearchSpace]:
    """Return the pattern ``name``, its inputs and its space; nobody may change them."""
    model, inputs = build_pattern(name)
    return model, inputs, SearchSpace.trace(model, inputs)


def state_of(model: nn.Module) -> dict[str, object]:
    """Return everything of ``model`` that a search must leave as it is."""
    modules = dict(model.named_modules())
    return {
        "modes": {path: module.training for path, module in modules.items()},
        "hooks": {
            path: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for path, module in modules.items()
        },
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "storages": {name: tensor.data_ptr() for name, tensor in model.state_dict().items()},
        "strides": {name: tensor.stride() for name, tensor in model.state_dict().items()},
        "kinds": {name: (tensor.dtype, tensor.device) for name, tensor in model.state_dict().items()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in model.named_parameters()
        },
        "attributes": {path: sorted(vars(module)) for path, module in modules.items()},
    }


def assert_same_state(before: dict[str, object], after: dict[str, object]) -> None:
    for key in before:
        if key in ("tensors", "gradients"):
            old, new = before[key], after[key]
            assert isinstance(old, dict)
            assert isinstance(new, dict)
            assert old.keys() == new.keys()
            for name, tensor in old.items():
                assert tensor is new[name] is None or torch.equal(tensor, new[name]), (key, name)
        else:
            assert before[key] == after[key], key


def assert_cut_is_right(
    model: nn.Module, inputs: Sequence[Tensor], space: SearchSpace, genomes: BoolArray, tolerance: float = 1e-9
) -> None:
    """Masked = sliced, and predicted costs = recount, for every genome."""
    for genome in genomes:
        with torch.no_grad():
            with masked(model, space, genome) as dense:
                expected = dense(*inputs)
            small = prune_model(model, space, genome)
            actual = small(*inputs)
        assert relative_difference(expected, actual) <= tolerance
        assert count_macs(small, inputs) == space.macs(genome[None])[0]
        assert sum(p.numel() for p in small.parameters()) == space.n_params(genome[None])[0]
        assert type(small) is type(model)


def random_genomes(space: SearchSpace, n: int, seed: int = 0) -> BoolArray:
    """Return ``n`` valid genomes of any cost, the sparsest one first."""
    genomes = space.sample(rng=np.random.default_rng(seed), n=n)
    if space.groups:
        genomes[0] = False
        for group in space.groups:
            genomes[0, group.start : group.start + group.min_keep] = True
    return genomes


def private_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
