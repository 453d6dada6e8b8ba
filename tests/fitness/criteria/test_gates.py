from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.criteria import CriterionInput
from fitness.criteria.gates import FirstOrderTaylor, GroupFisher
from search_spaces.errors import DataError
from search_spaces.verification import randomise
from tests.fitness.criteria.networks import data_of
from tests.fitness.networks import images, prepared

N_IMAGES = 4
STEP = 1e-5


def gated_chain(model: torch.nn.Module, x: Tensor, gates: list[Tensor]) -> Tensor:
    for layer, gate in zip(model.layers, gates, strict=True):  # type: ignore[union-attr, arg-type]
        x = layer(x) * gate[:, None, None]
    return model.head(x.mean((2, 3)))  # type: ignore[operator]


def gated_residual(model: torch.nn.Module, x: Tensor, gates: list[Tensor]) -> Tensor:
    """A gate stands where a layer reads: at the inner layer and at the classifier, not on the shortcut."""
    outer_gate, inner_gate = gates
    stem = model.stem(x)  # type: ignore[operator]
    inner = model.inner(stem * outer_gate[:, None, None])  # type: ignore[operator]
    end = torch.relu(stem + model.outer(inner * inner_gate[:, None, None]))  # type: ignore[operator]
    return model.head(end.mean((2, 3)) * outer_gate)  # type: ignore[operator]


class Branching(nn.Module):
    """Its first convolution is read as it is, and through a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.plain, self.rectified = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.head((self.plain(stem) + self.rectified(torch.relu(stem))).mean((2, 3)))


class TwoHeads(nn.Module):
    """Its last convolution is read by the second output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.own, self.other = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(6, 5, 3)
        self.head, self.second = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = torch.relu(self.stem(x))
        return self.head(self.own(stem).mean((2, 3))), self.second(self.other(stem).mean((2, 3)))


def gated_first_head(model: torch.nn.Module, x: Tensor, gates: list[Tensor]) -> Tensor:
    assert isinstance(model, TwoHeads)
    stem = torch.relu(model.stem(x)) * gates[0][:, None, None]
    logits: Tensor = model.head(model.own(stem).mean((2, 3)) * gates[1])
    return logits


def gated_branches(model: torch.nn.Module, x: Tensor, gates: list[Tensor]) -> Tensor:
    assert isinstance(model, Branching)
    stem, gate = model.stem(x), gates[0][:, None, None]
    end: Tensor = model.plain(stem * gate) + model.rectified(torch.relu(stem) * gate)
    logits: Tensor = model.head(end.mean((2, 3)) * gates[1])
    return logits


Gated = Callable[[torch.nn.Module, Tensor, list[Tensor]], Tensor]
CASES: list[tuple[str, Gated]] = [("convolution", gated_chain), ("coupled, several readers", gated_residual)]


def by_differences(data: CriterionInput, forward: Gated) -> np.ndarray:
    """Return ``(n, n_genes)`` central differences of each image's cross-entropy by each gate, in float64."""
    assert data.model is not None
    assert data.labels is not None
    model = copy.deepcopy(data.model).double()
    sizes = [group.size for group in data.space.groups]
    result = np.zeros((len(data.inputs), data.space.n_genes))
    for gene in range(data.space.n_genes):
        losses = []
        for sign in (1, -1):
            gates = torch.ones(data.space.n_genes, dtype=torch.float64)
            gates[gene] += sign * STEP
            with torch.no_grad():
                logits = forward(model, data.inputs.double(), list(gates.split(sizes)))
                losses.append(functional.cross_entropy(logits, data.labels, reduction="none").numpy())
        result[:, gene] = (losses[0] - losses[1]) / (2 * STEP)
    return result


@pytest.mark.parametrize(("name", "forward"), CASES)
def test_gradient_is_that_of_a_gate_at_every_reader(name: str, forward: Gated) -> None:
    data = data_of(name, N_IMAGES)
    expected = by_differences(data, forward)
    assert data.gate_gradients == pytest.approx(expected, rel=1e-3, abs=1e-5 * np.abs(expected).max())


def test_a_value_that_is_also_read_through_a_relu_is_not_overwritten() -> None:
    model = Branching()
    randomise(model, seed=3)
    data = CriterionInput(prepared(model)[1], images(N_IMAGES), torch.arange(N_IMAGES) % 3, model)
    expected = by_differences(data, gated_branches)
    assert data.gate_gradients == pytest.approx(expected, rel=1e-3, abs=1e-5 * np.abs(expected).max())


def test_what_the_first_output_does_not_depend_on_has_no_gradient() -> None:
    model = TwoHeads()
    randomise(model, seed=3)
    data = CriterionInput(prepared(model)[1], images(N_IMAGES), torch.arange(N_IMAGES) % 3, model)
    expected = by_differences(data, gated_first_head)
    assert data.gate_gradients == pytest.approx(expected, rel=1e-3, abs=1e-5 * np.abs(expected).max())
    (index,) = (i for i, group in enumerate(data.space.groups) if "other" in group.name)
    group = data.space.groups[index]
    assert not data.gate_gradients[:, group.start : group.stop].any()


@pytest.mark.parametrize(("name", "forward"), CASES)
def test_fisher_and_taylor_are_the_formulas(name: str, forward: Gated) -> None:
    data = data_of(name, N_IMAGES)
    gradients = by_differences(data, forward)
    for gene in range(data.space.n_genes):
        fisher = sum(g**2 for g in gradients[:, gene]) / (2 * N_IMAGES)
        taylor = sum(abs(g) for g in gradients[:, gene]) / N_IMAGES
        assert GroupFisher().compute(data).scores[gene] == pytest.approx(fisher, rel=1e-3, abs=1e-9)  # type: ignore[index]
        assert FirstOrderTaylor().compute(data).scores[gene] == pytest.approx(taylor, rel=1e-3, abs=1e-6)  # type: ignore[index]


def test_batches_do_not_matter() -> None:
    data = data_of("coupled, several readers", N_IMAGES)
    small = CriterionInput(data.program, data.inputs, data.labels, batch_size=3)
    assert small.gate_gradients == pytest.approx(data.gate_gradients, rel=1e-3, abs=1e-6)


def test_predictions_stand_in_for_labels() -> None:
    data = data_of("convolution", N_IMAGES)
    assert data.model is not None
    predicted = data.model(data.inputs).argmax(dim=1)
    unlabelled = CriterionInput(data.program, data.inputs)
    assert torch.equal(unlabelled.target_labels, predicted)
    labelled = CriterionInput(data.program, data.inputs, predicted)
    assert np.array_equal(unlabelled.gate_gradients, labelled.gate_gradients)


def test_label_beyond_the_classes_is_told() -> None:
    data = data_of("convolution", N_IMAGES)
    wrong = CriterionInput(data.program, data.inputs, torch.full((N_IMAGES,), 5))
    with pytest.raises(DataError, match="must lie below 5"):
        GroupFisher().compute(wrong)
