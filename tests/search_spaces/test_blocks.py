"""Genes that remove residual blocks as a whole."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torchvision.models import get_model

from search_spaces import SearchSpace, masked, prune_model
from search_spaces.models import build_model
from search_spaces.verification import randomise
from tests.search_spaces.patterns import Net, conv, conv_bn
from tests.search_spaces.spaces import assert_cut_is_right, assert_same_state, state_of


class SiluBlocks(Net):
    """An in-place activation at the head of each branch would change the shortcut if identity stood before it."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem = conv_bn(3, 6)
        self.one, self.norm, self.two = conv(6, 4), nn.BatchNorm2d(4), conv(4, 6)
        self.activation = nn.SiLU(inplace=True)

    def body(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        return self.activation(x + self.two(self.activation(self.norm(self.one(x)))))


class ScaledGated(Net):
    """Functional parts behind the last module: a gate and a scale."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.inner, self.gate = conv_bn(3, 6), conv_bn(6, 6), nn.Conv2d(6, 6, 1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.inner(x)
        return x + self.scale * (y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))


class ReadElsewhere(Net):
    """The branch's inside is also read by the classifier."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.inner, self.outer = conv_bn(3, 6), conv_bn(6, 4), conv(4, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.inner(x)
        return torch.cat([x + self.outer(y), y], 1)


class CalledInTwoBranches(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.shared = conv_bn(3, 6), conv_bn(6, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.shared(x)
        return F.relu(x) + self.shared(F.relu(x))


class TwoConvolutionsSummed(Net):
    """A sum of two layers, none of which is an identity."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.left, self.right = conv_bn(3, 5), conv(5, 6), conv(5, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.left(x) + self.right(x)


class BroadcastSum(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.context = conv_bn(3, 6), nn.Conv2d(6, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.context(x.mean((2, 3), keepdim=True))


@functools.cache
def traced(name: str) -> tuple[nn.Module, tuple[Tensor, ...], SearchSpace]:
    model = {
        "resnet20": lambda: build_model("resnet20"),
        "resnet18": lambda: get_model("resnet18", weights=None),
        "mobilenet_v2": lambda: get_model("mobilenet_v2", weights=None),
        "silu": SiluBlocks,
        "gated": ScaledGated,
    }[name]()
    randomise(model, seed=2)
    size = {"resnet18": 64, "mobilenet_v2": 64}.get(name, 32)
    inputs = (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)
    model = model.double().eval()
    return model, inputs, SearchSpace.trace(model, inputs, block_genes=True)


BLOCKS = {
    # every block of resnet20 whose shortcut is the identity: all but the first of stages two and three
    "resnet20": 3 + 2 + 2,
    "resnet18": 2 + 1 + 1 + 1,
    "mobilenet_v2": 1 + 2 + 3 + 2 + 2,
    "silu": 1,
    "gated": 1,
}
names = pytest.mark.parametrize("name", BLOCKS)


def genomes_without_blocks(space: SearchSpace, n: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    genomes = space.sample(rng=rng, n=n)
    genomes[:, space.n_genes - len(space.blocks) :] = rng.random((n, len(space.blocks))) < 0.5
    genomes[0, space.n_genes - len(space.blocks) :] = False
    return genomes


@names
def test_every_block_with_an_identity_shortcut_has_a_gene_at_the_end(name: str) -> None:
    _, _, space = traced(name)
    blocks = [group for group in space.groups if group.kind == "block"]
    assert len(blocks) == len(space.blocks) == BLOCKS[name]
    assert blocks == list(space.groups[-len(blocks) :])
    assert [group.start for group in blocks] == list(range(space.n_genes - len(blocks), space.n_genes))
    assert {(group.size, group.min_keep, group.step) for group in blocks} == {(1, 0, 1)}


@names
def test_masked_equals_cut_at_the_predicted_cost(name: str) -> None:
    model, inputs, space = traced(name)
    assert_cut_is_right(model, inputs, space, genomes_without_blocks(space, 6))


@names
def test_a_removed_block_passes_the_shortcut_on(name: str) -> None:
    model, inputs, space = traced(name)
    genome = space.all_ones()[0]
    genome[-1] = False
    before = state_of(model)
    entered: list[Tensor] = []
    with torch.no_grad(), masked(model, space, genome) as dense:
        handle = dense.get_submodule(space.blocks[-1].modules[-1]).register_forward_hook(
            lambda _module, _inputs, output: entered.append(output.clone())
        )
        dense(*inputs)
        handle.remove()
    assert float(entered[0].abs().max()) == 0
    assert_same_state(before, state_of(model))


@names
def test_repair_keeps_the_inside_of_removed_blocks_whole(name: str) -> None:
    _, _, space = traced(name)
    genomes = genomes_without_blocks(space, 12)
    low = space.macs_range[0] / space.macs_dense
    for options in ({}, {"macs_budget": 0.5 * (1 + low)}, {"params_budget": 0.6}):
        fixed = space.repair(genomes, rng=np.random.default_rng(0), **options)
        counts = space.kept_counts(fixed)
        owner = space.lattice.owner
        for column in np.flatnonzero(owner >= 0):
            gone = counts[:, owner[column]] == 0
            assert (counts[gone, column] == space.groups[column].size).all()
        assert np.array_equal(space.repair(fixed, rng=np.random.default_rng(1), **options), fixed)
        if "macs_budget" in options:
            assert (space.macs(fixed) <= options["macs_budget"] * space.macs_dense).all()


def test_samples_keep_most_blocks() -> None:
    _, _, space = traced("resnet18")
    genomes = space.sample(rng=np.random.default_rng(0), n=300, macs_budget=0.5)
    kept = genomes[:, space.n_genes - len(space.blocks) :].mean()
    assert 0.8 < kept < 0.97


def test_blocks_reach_lower_costs() -> None:
    model, inputs, space = traced("resnet18")
    plain = SearchSpace.trace(model, inputs)
    assert space.macs_range[0] < plain.macs_range[0]
    assert space.macs_dense == plain.macs_dense
    assert space.groups[: len(plain.groups)] == plain.groups


def test_block_names_are_module_paths() -> None:
    _, _, space = traced("resnet18")
    assert [block.name for block in space.blocks] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert space.blocks[0].layers == ("layer1.0.conv1", "layer1.0.conv2")


def test_removed_blocks_leave_no_parameters() -> None:
    model, _, space = traced("resnet20")
    genome = space.all_ones()[0]
    genome[-len(space.blocks) :] = False
    small = prune_model(model, space, genome)
    remaining = {name for name, _ in small.named_parameters()}
    assert remaining == {n for n, _ in model.named_parameters()} - {p for b in space.blocks for p in b.parameters}


@pytest.mark.parametrize("kind", [ReadElsewhere, CalledInTwoBranches, TwoConvolutionsSummed, BroadcastSum])
def test_other_sums_offer_no_block(kind: type[nn.Module]) -> None:
    model = kind().double().eval()
    space = SearchSpace.trace(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), block_genes=True)
    assert space.blocks == ()
    assert all(group.kind == "channel" for group in space.groups)


def test_protected_blocks_have_no_gene() -> None:
    model, inputs, _ = traced("resnet18")
    space = SearchSpace.trace(model, inputs, block_genes=True, protect=["layer1.*"])
    assert [block.name for block in space.blocks] == ["layer2.1", "layer3.1", "layer4.1"]


class PoolingBetween(Net):
    """A functional part of the branch that cannot take the shortcut's shape: verification finds it."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.up, self.down = conv_bn(3, 6), conv(6, 24, 1), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.down(F.avg_pool2d(F.pixel_shuffle(self.up(x), 2), 2))


def test_a_block_that_cannot_be_removed_says_why() -> None:
    model = PoolingBetween().double().eval()
    space = SearchSpace.trace(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), block_genes=True)
    assert space.blocks == ()
    assert any(frozen.reason.startswith("block stays: the cut network does not run") for frozen in space.frozen)
