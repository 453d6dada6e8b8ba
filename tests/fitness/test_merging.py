"""Merging against a least-squares fit per dropped channel, written in loops, and where it must be exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fitness.data import load_data
from fitness.final_network import final_network
from fitness.folding import FoldedLayer, keep_mask
from fitness.merging import (
    MERGE_RULES,
    InputMoments,
    MergeCompensation,
    MergeOptions,
    gene_rows,
    input_moments,
    replacements,
)
from fitness.options import FitnessOptions
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.errors import GenomeShapeError, OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from tests.fitness.networks import NETWORKS, images, prepared, program_of
from tests.search_spaces.patterns import Chain, conv, conv_bn

FLAT = ["convolution", "no bias", "dilated and strided", "grouped", "linear", "concat of itself", "option-A shortcut"]


def output(program: Program, tensors: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = program.run(tensors, [inputs])[program.outputs[0]]
    return result


def some_genome(program: Program, seed: int = 0) -> BoolArray:
    rng = np.random.default_rng(seed)
    return program.space.repair(rng.random((1, program.space.n_genes)) < 0.6, rng=rng)[0]


def with_duplicates(*, batch_norm: bool) -> Program:
    """Return a chain whose channel 4 equals channel 1, and channel 5 is a third of channel 2."""
    torch.manual_seed(0)
    first = conv_bn(3, 6) if batch_norm else nn.Sequential(conv(3, 6, bias=False), nn.Identity(), nn.ReLU())
    model = Chain(first, conv_bn(6, 5), conv(5, 4), width=4)
    made: Any = model.layers[0]
    parts = [made[0].weight, *([made[1].weight, made[1].bias] if batch_norm else [])]
    with torch.no_grad():
        if batch_norm:
            made[1].weight.uniform_(0.5, 1.5)
            made[1].bias.normal_()
        for part in parts:
            part[4] = part[1]
        parts[-1 if batch_norm else 0][5] = parts[-1 if batch_norm else 0][2] / 3
        if batch_norm:
            parts[0][5], parts[1][5] = parts[0][2], parts[1][2] / 3
    return prepared(model)[1]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_merging_duplicates_leaves_the_logits_unchanged(batch_norm: bool) -> None:
    program, inputs = with_duplicates(batch_norm=batch_norm), images(24)
    genome = program.space.all_ones()[0]
    dense = output(program, program.slice(genome), inputs)
    genome[[4, 5]] = False
    merged = output(program, MergeCompensation(program, inputs)(genome), inputs)
    plain = output(program, program.slice(genome), inputs)
    assert torch.allclose(merged, dense, atol=1e-5)
    assert not torch.allclose(plain, dense, atol=1e-2)


def test_the_published_sum_is_exact_for_duplicates_only() -> None:
    program, inputs = with_duplicates(batch_norm=True), images(24)
    merge = MergeCompensation(program, inputs, MergeOptions(rule="sum"))
    genome = program.space.all_ones()[0]
    dense = output(program, program.slice(genome), inputs)
    partners = np.full(program.space.n_genes, -1)
    partners[4] = 1
    genome[4] = False
    assert torch.allclose(output(program, merge(genome, partners=partners), inputs), dense, atol=1e-5)
    genome[5] = False
    assert not torch.allclose(output(program, merge(genome), inputs), dense, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_network_is_left_alone(name: str) -> None:
    _, program, inputs = program_of(name)
    tensors = MergeCompensation(program, inputs)(program.space.all_ones()[0])
    for layer in program.layers.values():
        assert torch.equal(tensors.weights[layer.name], layer.weight)
        assert torch.equal(tensors.biases[layer.name], layer.bias)


def maps_of(program: Program, layer: FoldedLayer, inputs: Tensor) -> Tensor:
    """Return the dense input of a layer as ``(n, groups, channels per group, places)``."""
    seen: list[Tensor] = []
    name = next(s.operation.args[0].name for s in program.steps if s.layer is not None and s.layer.name == layer.name)

    def record(found: FoldedLayer, values: dict[str, Any]) -> None:
        if found.name == layer.name:
            seen.append(values[name].clone())

    dense = program.slice(program.space.all_ones()[0])
    with torch.no_grad():
        program.run(dense, [inputs], on_layer=record)
    value = seen[0] if layer.kernel else seen[0].unsqueeze(-1)
    assert value.ndim >= 3
    groups = layer.record.groups
    return value.double().reshape(len(value), groups, value.shape[1] // groups, -1)


@pytest.mark.parametrize("name", FLAT)
def test_weights_equal_the_brute_force_merge(name: str) -> None:
    """Every dropped gene is fitted to every kept one by least squares; the best fit is carried out slice by slice."""
    _, program, inputs = program_of(name)
    genome = some_genome(program)
    tensors = MergeCompensation(program, inputs, MergeOptions(batch_size=7))(genome)
    checked = 0
    for layer in program.layers.values():
        if layer.in_genes is None or layer.record.is_transposed or layer.is_shared:
            continue
        maps = maps_of(program, layer, inputs)
        weight, bias = layer.weight.double().clone(), layer.bias.double().clone()
        genes = sorted({int(g) for g in layer.in_genes if g >= 0})
        rows = {g: maps[:, :, np.flatnonzero(layer.in_genes == g)].movedim(2, 0).flatten() for g in genes}
        for gone in (g for g in genes if not genome[g]):
            best = (np.inf, -1, 0.0, 0.0)
            for other in (g for g in genes if genome[g]):
                columns = [rows[other]] + ([torch.ones_like(rows[other])] if layer.has_bias else [])
                fit = torch.linalg.lstsq(torch.stack(columns, 1), rows[gone][:, None], driver="gelsd").solution[:, 0]
                error = float((torch.stack(columns, 1) @ fit - rows[gone]).square().sum())
                if error < best[0] * (1 - 1e-9):
                    best = (error, other, float(fit[0]), float(fit[1]) if layer.has_bias else 0.0)
            _, other, scale, shift = best
            for source, target in zip(
                np.flatnonzero(layer.in_genes == gone), np.flatnonzero(layer.in_genes == other), strict=True
            ):
                weight[:, target] += scale * layer.weight[:, source].double()
                bias += shift * layer.weight[:, source].double().reshape(len(bias), -1).sum(1)
            checked += 1
        keep_out = torch.from_numpy(keep_mask(layer.out_genes, genome))
        keep_in = torch.from_numpy(keep_mask(layer.in_genes, genome))
        assert torch.allclose(tensors.weights[layer.name].double(), weight[keep_out][:, keep_in], atol=1e-4)
        assert torch.allclose(tensors.biases[layer.name].double(), bias[keep_out], atol=1e-4)
    assert checked > 0


@pytest.mark.parametrize("rule", MERGE_RULES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_partner_is_the_one_that_leaves_least_error(rule: str, has_bias: bool) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(1.0, 1.0, (5, 400))
    rows[3] = 0.8 * rows[1] + 0.2 * rng.normal(size=400)
    rows[4] = 2.0  # constant
    moments = InputMoments(np.arange(5), np.arange(5)[:, None], rows.mean(axis=1), rows @ rows.T / 400)
    is_kept = np.array([True, True, True, False, True])
    found = replacements(moments, is_kept, rule=rule, has_bias=has_bias)

    def error(index: int) -> float:
        scale, shift = 1.0, 0.0
        if rule == "regression":
            columns = np.stack([rows[index], np.ones(400)][: 1 + has_bias], axis=1)
            scale, shift = (*np.linalg.lstsq(columns, rows[3], rcond=None)[0], 0.0)[:2]
        elif has_bias:
            shift = rows[3].mean() - rows[index].mean()
        return float(np.square(scale * rows[index] + shift - rows[3]).sum())

    candidates = [0, 1, 2] if has_bias else [0, 1, 2, 4]
    assert found.partner[0] == min(candidates, key=error) == 1
    residual = rows[3] - found.scale[0] * rows[1] - found.shift[0]
    assert np.square(residual).sum() == pytest.approx(error(1), rel=1e-6)


def test_a_dropped_channel_like_no_other_leaves_its_mean_in_the_bias() -> None:
    rows = np.stack([np.full(50, 3.0), np.linspace(0, 1, 50)])
    moments = InputMoments(np.arange(2), np.arange(2)[:, None], rows.mean(axis=1), rows @ rows.T / 50)
    found = replacements(moments, np.array([True, False]), rule="regression", has_bias=True)
    assert found.partner[0] == -1
    assert found.scale[0] == 0
    assert found.shift[0] == pytest.approx(0.5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "transposed" not in name])
def test_candidates_come_nearer_to_the_dense_network(name: str) -> None:
    _, program, inputs = program_of(name)
    dense = output(program, program.slice(program.space.all_ones()[0]), inputs)
    merge = MergeCompensation(program, inputs)
    merged = plain = 0.0
    for seed in range(6):
        genome = some_genome(program, seed)
        plain += float((output(program, program.slice(genome), inputs) - dense).square().sum())
        merged += float((output(program, merge(genome), inputs) - dense).square().sum())
    assert merged <= plain


def test_moments_do_not_depend_on_the_batch_size() -> None:
    _, program, inputs = program_of("convolution")
    whole, parts = input_moments(program, inputs, 24), input_moments(program, inputs, 5)
    assert list(whole) == list(parts)
    for name, expected in whole.items():
        for one, other in zip(expected, parts[name], strict=True):
            assert np.allclose(one.second, other.second, rtol=1e-6)
            assert np.allclose(one.mean, other.mean, rtol=1e-6)


@pytest.mark.parametrize("name", ["convolution", "linear", "grouped"])
def test_an_image_that_is_not_finite_is_left_out(name: str) -> None:
    _, program, inputs = program_of(name)
    lost = torch.cat([inputs[:3], torch.full_like(inputs[:1], torch.inf), inputs[3:]])
    found, expected = (input_moments(program, part, 16) for part in (lost, inputs))
    assert expected
    for layer, parts in expected.items():
        for one, other in zip(parts, found[layer], strict=True):
            np.testing.assert_allclose(other.mean, one.mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(other.second, one.second, rtol=1e-5, atol=1e-6)


def test_rows_of_a_gene_are_its_channels() -> None:
    _, program, _ = program_of("concat of itself")
    layer = next(item for item in program.layers.values() if item.in_genes is not None and len(item.in_genes) == 8)
    value = torch.arange(2 * 8 * 3 * 3, dtype=torch.float32).reshape(2, 8, 3, 3)
    rows = gene_rows(layer, value, np.array([[0, 4], [1, 5]]))
    assert torch.equal(rows[1], value[:, [1, 5]].double().flatten())


def test_the_network_that_is_handed_back_is_the_merged_one() -> None:
    torch.manual_seed(0)
    model = Chain(nn.Sequential(conv(3, 6), nn.ReLU()), conv(6, 4), width=4).eval()
    made: Any = model.layers[0]
    with torch.no_grad():
        made[0].weight[4], made[0].bias[4] = made[0].weight[1], made[0].bias[1]
    space = SearchSpace.trace(model, torch.zeros(1, 3, 32, 32))
    genome = space.all_ones()[0]
    genome[4] = False
    options = FitnessOptions(compensation="merge", final_calibration_images=50)
    small = final_network(model, space, genome, load_data("digits", seed=0), options)
    example = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(small(example), model(example), atol=1e-5)


def test_misuse_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'regression'"):
        MergeOptions(rule="regresion")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batch_size >= 1"):
        MergeOptions(batch_size=0)
    _, program, inputs = program_of("convolution")
    merge = MergeCompensation(program, inputs)
    with pytest.raises(GenomeShapeError, match="partners must be"):
        merge(program.space.all_ones()[0], partners=np.zeros(3, np.int64))
