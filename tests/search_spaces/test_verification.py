from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from search_spaces import SearchSpace
from search_spaces.verification import (
    count_macs,
    in_full_precision,
    make_generic,
    output_tensors,
    relative_difference,
)
from tests.search_spaces.patterns import Chain, Residual, ScalesWithWidth, conv


def test_difference_is_relative_to_the_largest_expected_value() -> None:
    assert relative_difference(torch.tensor([4.0, -8.0]), torch.tensor([4.0, -6.0])) == 0.25


def test_the_worst_output_counts() -> None:
    left = {"a": torch.ones(2), "b": [torch.tensor([10.0])]}
    right = {"a": torch.ones(2), "b": [torch.tensor([9.0])]}
    assert relative_difference(left, right) == pytest.approx(0.1)


@pytest.mark.parametrize("other", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.ones(3)])
def test_what_cannot_be_compared_differs(other: torch.Tensor) -> None:
    assert relative_difference(torch.ones(2), other) == float("inf")
    assert relative_difference(other, torch.ones(2)) == float("inf")


def test_outputs_of_any_nesting_are_found() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    assert output_tensors({"x": [one, (two,)], "y": three, "z": None}) == [one, two, three]


def test_weights_stay_where_generic_ones_overflow() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(300)])
    before = model[0].weight.clone()
    make_generic(model, [torch.full((1, 64), 1e37)])
    assert torch.equal(model[0].weight, before)


def test_half_precision_is_verified_in_float32() -> None:
    model = Residual().to(torch.bfloat16)
    inputs = in_full_precision(model, [torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)])
    assert {tensor.dtype for tensor in (*model.parameters(), *inputs)} == {torch.float32}
    space = SearchSpace.trace(Residual().to(torch.bfloat16), torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))
    assert space.n_genes == 10


class Rolled(Chain):
    """Without biases: zeros give zeros, in which nothing that is cut wrongly shows."""

    def __init__(self) -> None:
        super().__init__(conv(3, 8, bias=False), nn.ReLU(), conv(8, 6, bias=False), width=6)
        self.head.bias = None

    def body(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[0](x)).roll(2, 1))


class Standardising(Residual):
    """Zeros have no deviation to divide by."""

    def body(self, x: Tensor) -> Tensor:
        return super().body((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


class Rooted(Residual):
    """Takes no negative numbers."""

    def body(self, x: Tensor) -> Tensor:
        return super().body(x.sqrt())


class Looked(Residual):
    """Takes small numbers that stand for something else."""

    def body(self, x: Tensor) -> Tensor:
        return super().body(x.new_tensor([0.5, 2.0])[x.long()])


class Silent(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


class InPlaceInput(Residual):
    def body(self, x: Tensor) -> Tensor:
        return super().body(x.sub_(0.5))


@pytest.mark.parametrize("kind", [Rolled, Standardising, Rooted, Looked])
def test_zeros_for_an_example_verify_like_any_other(kind: type[Residual]) -> None:
    spaces = [SearchSpace.trace(kind(), image) for image in (torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))]
    assert spaces[0].fingerprint == spaces[1].fingerprint
    assert spaces[0].n_genes == (6 if kind is Rolled else 10)


def test_outputs_that_are_zero_verify_nothing() -> None:
    space = SearchSpace.trace(Silent(), torch.randn(2, 3, 8, 8), block_genes=True)
    assert not space.n_genes
    assert any("cannot be verified: the outputs of the network are all zero" in f.reason for f in space.frozen)


def test_verification_leaves_the_global_generator_alone() -> None:
    model, state = Residual(), torch.get_rng_state()
    SearchSpace.trace(model, torch.zeros(2, 3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_writes_into_its_input_is_verified_and_leaves_the_example_as_it_is() -> None:
    model, image = InPlaceInput(), torch.ones(2, 3, 8, 8)
    assert SearchSpace.trace(model, image).n_genes == 10
    count_macs(model, [image])
    assert (image == 1).all()


class CountsOnWidth(Residual):
    """Makes a product of its own channels that nobody reads: its cost is not one of the layers."""

    def body(self, x: Tensor) -> Tensor:
        x = super().body(x)
        x.mean((2, 3)) @ x.mean((2, 3)).T
        return x


def test_channels_whose_cost_is_not_predicted_stay() -> None:
    space = SearchSpace.trace(CountsOnWidth(), torch.zeros(2, 3, 8, 8))
    assert [group.name for group in space.groups] == ["inner.0"]
    assert any("MACs, parameters) are" in frozen.reason for frozen in space.frozen)


def test_without_verification_a_wrong_group_is_offered() -> None:
    model, image = ScalesWithWidth(), torch.zeros(1, 3, 8, 8)
    assert SearchSpace.trace(model, image, verify=False).n_genes > SearchSpace.trace(model, image).n_genes
