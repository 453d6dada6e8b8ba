from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import nn

from fitness.program import Program
from fitness.wavelet import WaveletAggregation, WaveletEvaluator
from fitness.wavelet_transform import AGGREGATIONS, WaveletOptions, transform
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from tests.fitness.networks import NETWORKS, images, prepared, program_of

LABELS = torch.arange(24) % 3


def some_genomes(program: Program, n: int = 5) -> BoolArray:
    rng = np.random.default_rng(1)
    return program.space.repair(rng.random((n, program.space.n_genes)) < 0.5, rng=rng)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 9), (2, 2)])
def test_transform_is_that_of_pywt_per_map(wavelet: str, level: int, size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(3, 4, *size)).astype(np.float32)
    found = transform(maps, WaveletOptions(wavelet=wavelet, level=level))
    reached = min(level, int(np.log2(min(size))))
    for image in range(3):
        for channel in range(4):
            low, details = maps[image, channel], []
            for _ in range(reached):
                low, bands = pywt.dwt2(low, wavelet, "periodization")
                details.insert(0, bands)
            assert found.low[image, channel] == pytest.approx(low.ravel())
            for band in range(3):
                expected = np.concatenate([level_bands[band].ravel() for level_bands in details])
                assert found.bands[band][image, channel] == pytest.approx(expected)
            energy = [np.square(low).sum(), *(sum(np.square(d[band]).sum() for d in details) for band in range(3))]
            assert found.energies[image, channel] == pytest.approx(energy, rel=1e-5)


@pytest.mark.parametrize("wavelet", ["haar", "db3"])
@pytest.mark.parametrize("level", [1, 2])
def test_parseval(wavelet: str, level: int) -> None:
    maps = np.random.default_rng(0).normal(size=(5, 2, 8, 16)).astype(np.float32)
    found = transform(maps, WaveletOptions(wavelet=wavelet, level=level))
    assert found.energies.sum(axis=-1) == pytest.approx(np.square(maps).sum(axis=(2, 3)), rel=1e-4)


def test_haar_level_one_is_the_formula() -> None:
    a, b, c, d = 1.0, 2.0, 5.0, -3.0
    found = transform(np.array([[a, b], [c, d]], np.float32), WaveletOptions())
    assert found.low == pytest.approx([(a + b + c + d) / 2])
    assert np.abs(found.high) == pytest.approx(np.abs([(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]))


@pytest.mark.parametrize("size", [(1, 1), (1, 8)])
def test_small_maps_are_left_as_they_are(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    found = transform(maps, WaveletOptions())
    assert np.array_equal(found.low, maps.reshape(2, 3, -1))
    assert found.high.shape == (2, 3, 0)
    assert found.energies[..., 1:].sum() == 0


def maps_of(program: Program, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Return what the layer after each group's root reads, for chains of convolutions."""
    layers = list(program.layer_order())
    names = {step.layer.name: step.operation.args[0].name for step in program.steps if step.layer}
    values: dict[str, Any] = {}

    def keep(layer: Any, env: Any) -> None:
        values[layer.name] = env[names[layer.name]].clone()

    program.run(program.slice(program.space.all_ones()[0]), [inputs], on_layer=keep)
    found = {}
    for group, reader in zip(program.space.groups, layers[1:], strict=False):
        value = values[reader.name]
        found[group.name] = (value if value.ndim == 4 else value[:, :, None, None]).numpy()
    return found


def slow_terms(maps: np.ndarray, kept: np.ndarray, rule: str) -> tuple[float, float]:
    """Return representative and discriminative term by loops over images, channels and coefficients."""
    n_images, n_channels = maps.shape[:2]
    rows = []
    for image in range(n_images):
        for channel in range(n_channels):
            if min(maps.shape[2:]) >= 2:
                low, details = pywt.dwt2(maps[image, channel], "haar", "periodization")
                rows.append([low.ravel(), *(band.ravel() for band in details)])
            else:
                rows.append([maps[image, channel].ravel(), *[np.zeros(0)] * 3])
    table = [rows[image * n_channels : (image + 1) * n_channels] for image in range(n_images)]

    def aggregate(image: int, channels: np.ndarray) -> np.ndarray:
        parts = []
        for band in range(4):
            stack = np.stack([table[image][c][band] for c in channels]).astype(np.float64)
            if rule == "energy":
                parts.append(np.array([np.square(stack).sum(axis=1).mean()]))
            elif rule == "mean" or band == 0:
                parts.append(stack.mean(axis=0))
            else:
                parts.append(np.array([max(column, key=abs) for column in stack.T]))
        return np.concatenate(parts)

    everything, chosen = np.arange(n_channels), np.flatnonzero(kept)
    losses = []
    for image in range(n_images):
        whole = aggregate(image, everything)
        losses.append(np.square(aggregate(image, chosen) - whole).sum() / (np.square(whole).sum() + 1e-12))
    labels = LABELS.numpy()

    def ratio(channels: np.ndarray) -> float:
        vectors = np.array(
            [
                np.concatenate([[np.square(b, dtype=np.float64).sum() for b in table[i][c]] for c in channels])
                for i in range(n_images)
            ]
        )
        between = within = 0.0
        for label in np.unique(labels):
            members = vectors[labels == label]
            between += len(members) * np.square(members.mean(0) - vectors.mean(0)).sum()
            within += np.square(members - members.mean(0)).sum()
        return between / within

    return 1 - float(np.mean(losses)), ratio(chosen) / ratio(everything)


@pytest.mark.parametrize("rule", AGGREGATIONS)
def test_rules_are_those_of_loops(rule: Any) -> None:
    _, program, inputs = program_of("convolution")
    aggregation = WaveletAggregation(program, inputs, LABELS, WaveletOptions(rule=rule, batch_size=7))
    maps = maps_of(program, inputs)
    genomes = some_genomes(program)
    assert len(aggregation.groups) == len(program.space.groups)
    for entry in aggregation.groups:
        kept = genomes[:, entry.group.start : entry.group.stop].astype(np.float64)
        expected = np.array([slow_terms(maps[entry.group.name], row, rule) for row in kept])
        assert entry.representation(kept) == pytest.approx(expected[:, 0], rel=1e-3, abs=1e-4)
        assert entry.discrimination(kept) == pytest.approx(expected[:, 1], rel=1e-3)


@pytest.mark.parametrize("rule", AGGREGATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_network_is_perfect_and_terms_add_up(name: str, rule: Any) -> None:
    _, program, inputs = program_of(name)
    options = WaveletOptions(rule=rule, discrimination=0.25, saving=2.0)
    aggregation = WaveletAggregation(program, inputs, LABELS, options)
    assert {entry.group.name for entry in aggregation.groups} == {group.name for group in program.space.groups}
    ones = program.space.all_ones()
    representation, discrimination = aggregation.stage_terms(ones)
    assert representation == pytest.approx(np.ones_like(representation), abs=1e-5)
    assert discrimination == pytest.approx(np.ones_like(discrimination))
    genomes = some_genomes(program)
    representation, discrimination = aggregation.stage_terms(genomes)
    assert (representation <= 1).all()
    spared = 1 - program.space.macs(genomes) / program.space.macs_dense
    expected = representation + 0.25 * discrimination + 2.0 * spared[:, None]
    assert aggregation.stage_fitness(genomes) == pytest.approx(expected)
    assert aggregation.fitness(genomes) == pytest.approx(expected.mean(axis=1))
    assert np.isfinite(aggregation.scores()).all()
    assert (aggregation.scores() >= 0).all()


def test_stages_are_resolutions() -> None:
    _, program, inputs = program_of("option-A shortcut")
    aggregation = WaveletAggregation(program, inputs)
    names = [[program.space.groups[index].name for index in stage] for stage in aggregation.stages]
    assert sum(len(stage) for stage in aggregation.stages) == len(program.space.groups)
    assert len(names) == 2


def test_a_stage_without_maps_counts_in_no_mean() -> None:
    _, program, inputs = program_of("transposed")
    aggregation = WaveletAggregation(program, inputs, LABELS)
    whole = program.space.all_ones()
    expected = aggregation.fitness(whole)
    assert len(aggregation.stages) > 1
    aggregation.groups = [entry for entry in aggregation.groups if entry.stage == 0]
    assert aggregation.groups
    assert aggregation.fitness(whole) == pytest.approx(expected)
    (evaluation,) = WaveletEvaluator(aggregation).evaluate(whole, "wavelet")
    assert evaluation.metrics["representation"] == pytest.approx(1)
    aggregation.groups = []
    assert aggregation.fitness(whole) == pytest.approx(0)
    assert WaveletEvaluator(aggregation).evaluate(whole, "wavelet")[0].metrics["representation"] == 0


def test_evaluator_follows_its_contract() -> None:
    _, program, inputs = program_of("coupled, several readers")
    evaluator = WaveletEvaluator(WaveletAggregation(program, inputs, LABELS))
    genomes = some_genomes(program)
    together = evaluator.evaluate(genomes, "wavelet")
    assert together == [evaluator.evaluate(genome[None], "wavelet")[0] for genome in genomes]
    assert [e.objective for e in together] == (-evaluator.aggregation.fitness(genomes)).tolist()
    assert {e.rung for e in together} == {"wavelet"}
    assert {e.n_images for e in together} == {0}
    with pytest.raises(UnknownNameError, match="valid: wavelet"):
        evaluator.evaluate(genomes, "wavelets")


@pytest.mark.parametrize("rule", AGGREGATIONS)
@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_zero_and_broken_images(rule: Any, fill: float, caplog: pytest.LogCaptureFixture) -> None:
    _, program, inputs = program_of("convolution")
    genomes = some_genomes(program)
    bad = torch.cat([inputs, torch.full_like(inputs[:3], fill)])
    labels = torch.cat([LABELS, LABELS[:3]])
    options = WaveletOptions(rule=rule)
    fitness = WaveletAggregation(program, bad, labels, options).fitness(genomes)
    assert np.isfinite(fitness).all()
    if np.isnan(fill):
        assert "not finite" in caplog.text
        assert fitness == pytest.approx(WaveletAggregation(program, inputs, LABELS, options).fitness(genomes), abs=1e-5)
    nothing = WaveletAggregation(program, torch.full_like(inputs, fill), LABELS, options)
    assert np.isfinite(nothing.fitness(genomes)).all()
    assert np.isfinite(nothing.scores()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_bounds_the_images_which_are_held_in_float32(dtype: torch.dtype) -> None:
    _, program, inputs = program_of("convolution")
    options = WaveletOptions(max_bytes=6 * 64 * 4 * 5, batch_size=2)
    aggregation = WaveletAggregation(program, inputs.to(dtype), LABELS, options)
    assert aggregation.groups[0].n_images == 5
    assert np.isfinite(aggregation.fitness(some_genomes(program))).all()


class Tiles(nn.Module):
    """Four tiles of every image go through the first layers, as images of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tiles = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        y = self.last(self.second(self.first(tiles).relu()).relu()).mean((2, 3)).unflatten(0, (-1, 4)).mean(1)
        value: torch.Tensor = self.head(self.hidden(y).relu())
        return value


@pytest.mark.parametrize("max_bytes", [1, 1 << 26])
def test_classes_are_not_compared_where_images_have_several_maps(
    max_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    _, program = prepared(Tiles())
    labels = torch.arange(32) % 3
    aggregation = WaveletAggregation(program, images(32), labels, WaveletOptions(max_bytes=max_bytes, batch_size=10))
    terms = {entry.group.name: entry for entry in aggregation.groups}
    for name in ("first", "second"):
        assert not terms[name].between.any()
        assert f"{name}: classes are not compared" in caplog.text
    assert "hidden:" not in caplog.text
    assert np.isfinite(aggregation.fitness(some_genomes(program))).all()
    if max_bytes > 1:
        assert terms["first"].n_images == 4 * 32
        assert terms["hidden"].between.any()


def test_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="unknown wavelet 'harr'; did you mean 'haar'"):
        WaveletOptions(wavelet="harr")
    with pytest.raises(UnknownNameError, match="signal extension mode"):
        WaveletOptions(mode="periodic-ish")
    with pytest.raises(UnknownNameError, match="valid: energy, maxabs, mean"):
        WaveletOptions(rule="max")  # type: ignore[arg-type]
    for keyword in ("level", "discrimination", "saving", "max_bytes", "batch_size"):
        with pytest.raises(OptionError, match=keyword):
            WaveletOptions(**{keyword: -1})
