"""Trained gates: their slopes and mixtures against modules and loops, their descent against Adam written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fitness.criteria import CriterionInput
from fitness.criteria.trained_gates import (
    PruneNet,
    Scop,
    batches,
    gated_logits,
    global_cut,
    mixed_logits,
    norm_scales,
)
from search_spaces.errors import OptionError
from search_spaces.groups import KEPT
from search_spaces.masking import masked
from tests.fitness.networks import images, prepared, program_of
from tests.search_spaces.patterns import Chain, conv_bn

WIRINGS = ["convolution", "coupled, several readers", "flatten to linear", "grouped", "depthwise", "transposed"]


def data_of(name: str, batch_size: int = 10) -> CriterionInput:
    model, program, inputs = program_of(name)
    return CriterionInput(program, inputs, torch.arange(len(inputs)) % 3, model, batch_size=batch_size)


def loss_of(data: CriterionInput, gates: Tensor, part: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        logits = gated_logits(data, gates, part)
    return float(nn.functional.cross_entropy(logits.double(), labels))


@pytest.mark.parametrize("name", WIRINGS)
def test_shut_gates_mask_the_channels(name: str) -> None:
    data = data_of(name)
    rng = np.random.default_rng(0)
    genome = rng.random(data.space.n_genes) < 0.6
    gates = torch.from_numpy(genome).float()
    with torch.no_grad():
        found = gated_logits(data, gates, data.inputs)
        assert data.model is not None
        with masked(data.model, data.space, genome):
            expected = data.model(data.inputs)
    assert torch.allclose(found, expected, atol=1e-4 * max(1.0, float(expected.abs().max())))


def test_prunenet_is_adam_on_the_penalised_loss() -> None:
    """Slopes by central differences, one gate at a time; Adam's two moments written out."""
    data = data_of("convolution")
    criterion = PruneNet(n_steps=3)
    free = np.full(data.space.n_genes, 4.0)
    first, second, weight = np.zeros_like(free), np.zeros_like(free), math.nan
    for step, (part, _, labels) in enumerate(batches(data, "prunenet", 3), start=1):
        gates = 1 / (1 + np.exp(-free))
        slope = np.zeros_like(gates)
        for gene in range(len(gates)):
            moved = [gates.copy(), gates.copy()]
            moved[0][gene] += 1e-2
            moved[1][gene] -= 1e-2
            high, low = (loss_of(data, torch.from_numpy(g).float(), part, labels) for g in moved)
            slope[gene] = (high - low) / 2e-2
        weight = np.abs(slope).mean() if step == 1 else weight
        gradient = (slope + weight) * gates * (1 - gates)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        free -= 0.2 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    scores = criterion.compute(data).scores
    assert scores is not None
    assert np.allclose(scores, 1 / (1 + np.exp(-free)), atol=2e-3)


def test_a_global_cut_keeps_what_lies_above_the_median() -> None:
    data = data_of("coupled, several readers")
    scores = np.random.default_rng(0).random(data.space.n_genes)
    widths = global_cut(data, scores)
    ordered = sorted(scores)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    for index, group in data.groups:
        n_above = sum(score >= middle for score in scores[group.start : group.stop])
        assert widths[index] == max(n_above, 1) / group.size


def test_mixed_channels_are_mixed_before_the_non_linearity() -> None:
    """A chain written out: every convolution's output, batch norm and all, is mixed with that of the knockoffs."""
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 5), conv_bn(5, 4), width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    model, program = prepared(model)  # type: ignore[assignment]
    data = CriterionInput(program, images(6))
    gates = torch.rand(data.space.n_genes, generator=torch.Generator().manual_seed(1))
    knockoffs = images(6, seed=9)
    real, copy = data.inputs, knockoffs
    layers: Any = model.layers
    with torch.no_grad():
        for layer, group in zip(layers, data.space.groups, strict=True):
            share = gates[group.start : group.stop].reshape(1, -1, 1, 1)
            real, copy = layer[1](layer[0](real)), layer[1](layer[0](copy))
            real, copy = torch.relu(share * real + (1 - share) * copy), torch.relu(copy)
        expected = model.head(real.mean((2, 3)))
        assert torch.allclose(mixed_logits(data, gates, data.inputs, knockoffs), expected, atol=1e-5)


@pytest.mark.parametrize("name", WIRINGS)
def test_fully_real_channels_are_the_dense_network(name: str) -> None:
    data = data_of(name)
    gates = torch.ones(data.space.n_genes)
    assert data.model is not None
    with torch.no_grad():
        expected = data.model(data.inputs)
        found = mixed_logits(data, gates, data.inputs, data.inputs.flip(0))
    assert torch.allclose(found, expected, atol=1e-4 * max(1.0, float(expected.abs().max())))


def test_scop_is_adam_on_the_mixed_loss() -> None:
    data = data_of("convolution")
    gates = np.full(data.space.n_genes, 0.5)
    first, second = np.zeros_like(gates), np.zeros_like(gates)
    for step, (part, knockoffs, labels) in enumerate(batches(data, "scop", 3), start=1):
        slope = np.zeros_like(gates)
        for gene in range(len(gates)):
            values = []
            for shift in (3e-3, -3e-3):
                moved = gates.copy()
                moved[gene] += shift
                with torch.no_grad():
                    logits = mixed_logits(data, torch.from_numpy(moved).float(), part, knockoffs).double()
                values.append(float(nn.functional.cross_entropy(logits, labels)))
            slope[gene] = (values[0] - values[1]) / 6e-3
        first, second = 0.5 * first + 0.5 * slope, 0.9 * second + 0.1 * slope**2
        gates -= 0.02 * (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.9**step)) + 1e-8)
    scores = Scop(n_steps=3).compute(data).scores
    assert scores is not None
    felt = np.abs(slope) > 1e-6
    assert felt.sum() > len(felt) / 2
    assert np.allclose(scores[felt], (norm_scales(data) * (2 * gates - 1))[felt], atol=4e-3)


@pytest.mark.parametrize("criterion", [PruneNet(n_steps=2), Scop(n_steps=2)])
def test_a_gate_that_is_never_felt_ranks_last(criterion: PruneNet | Scop) -> None:
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 6), conv_bn(6, 5), width=5)
    made: Any = model.layers[0]
    with torch.no_grad():
        made[1].weight[2] = made[1].bias[2] = 0.0
    _, program = prepared(model)
    scores = criterion.compute(CriterionInput(program, images(12), torch.arange(12) % 5)).scores
    assert scores is not None
    assert scores[:6].argmin() == 2
    assert np.sum(scores[:6] == scores[2]) == 1


def test_batches_cover_all_images_with_another_one_as_knockoff() -> None:
    data = data_of("convolution", batch_size=7)
    found = list(batches(data, "scop", 4))
    assert [len(part) for part, _, _ in found] == [7, 7, 7, 3]
    real, copies = torch.cat([p for p, _, _ in found]), torch.cat([k for _, k, _ in found])
    assert torch.equal(real.roll(-1, 0), copies)
    assert torch.equal(real.flatten(1).sum(1).sort().values, data.inputs.flatten(1).sum(1).sort().values)


def test_scales_are_the_mean_over_the_norms_a_gene_passes() -> None:
    data = data_of("coupled, several readers")
    scales = norm_scales(data)
    tensors = dict(data.model.named_parameters()) if data.model is not None else {}
    for gene in range(data.space.n_genes):
        found = []
        for path, genes in data.space.genes.norm_genes.items():
            found += [abs(float(tensors[f"{path}.weight"][i])) for i in np.flatnonzero(genes == gene)]
        assert KEPT == -1
        assert scales[gene] == pytest.approx(sum(found) / len(found) if found else 1.0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="0 < penalty"):
        PruneNet(penalty=0.0)
    with pytest.raises(OptionError, match="0 < n_steps"):
        Scop(n_steps=0)
