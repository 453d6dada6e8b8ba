"""Wavelet channel aggregation: how well the kept channels' feature maps stand for all of them, in the wavelet domain.

Each calibration feature map is decomposed once. A genome is then judged without a forward pass: the aggregate of the
kept channels' coefficients is compared with that of all channels (representative term), the classes' separation in
sub-band energy with that of all channels (discriminative term), and the saved MACs are added.

References:
    Genetic wavelet channel search, Front. Comput. Neurosci. 15:760554, 2021. Its text was not readable: every formula
    here is our reconstruction from the abstract.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pywt
import torch
from torch import Tensor

from fitness.evaluation import Evaluation, evaluations_without_images
from fitness.exact_sums import exactly_summable
from fitness.program import FoldedLayer, Program
from search_spaces import SearchSpace
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.groups import ChannelGroup

WAVELET_RUNG = "wavelet"
AGGREGATIONS = {
    "mean": "mean of every coefficient over the kept channels",
    "maxabs": "mean of the approximation, largest coefficient of the details; saturates with few channels",
    "energy": "mean energy of every sub-band over the kept channels",
}
_LOGGER = logging.getLogger(__name__)
_BANDS = 4
_EPSILON = 1e-12


@dataclass(frozen=True)
class WaveletOptions:
    """How feature maps are decomposed and compared.

    Attributes:
        wavelet: A discrete wavelet that PyWavelets knows.
        level: Levels of the transform; fewer where a map is too small, none below 2 x 2.
        mode: How PyWavelets extends a map; ``periodization`` gives the fewest coefficients.
        rule: A name of :data:`AGGREGATIONS`.
        discrimination: Weight of the discriminative term, at least 0.
        saving: Weight of the saved share of MACs, at least 0.
        max_bytes: Memory of one group's coefficients; fewer images are used where it does not suffice.
        batch_size: Images per forward pass.
    """

    wavelet: str = "haar"
    level: int = 1
    mode: str = "periodization"
    rule: Literal["mean", "maxabs", "energy"] = "mean"
    discrimination: float = 0.5
    saving: float = 1.0
    max_bytes: int = 1 << 28
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            UnknownNameError: There is no such wavelet, mode or rule.
            OptionError: A number is out of range.
        """
        for kind, name, valid in (
            ("wavelet", self.wavelet, pywt.wavelist(kind="discrete")),
            ("signal extension mode", self.mode, pywt.Modes.modes),
            ("aggregation rule", self.rule, AGGREGATIONS),
        ):
            if name not in valid:
                raise UnknownNameError(kind, name, valid)
        for rule, holds, value in (
            ("level >= 1", self.level >= 1, self.level),
            ("0 <= discrimination < inf", 0 <= self.discrimination < np.inf, self.discrimination),
            ("0 <= saving < inf", 0 <= self.saving < np.inf, self.saving),
            ("max_bytes >= 1", self.max_bytes >= 1, self.max_bytes),
            ("batch_size >= 1", self.batch_size >= 1, self.batch_size),
        ):
            if not holds:
                raise OptionError(f"`{rule}` must hold, but got {value}")


@dataclass(frozen=True)
class Coefficients:
    """The transform of a stack of maps.

    Attributes:
        low: ``(..., n_low)`` approximation at the coarsest level.
        bands: Horizontal, vertical and diagonal details, ``(..., n_high)`` each, all levels side by side; none where
            the maps are smaller than 2 x 2.
    """

    low: npt.NDArray[np.float32]
    bands: tuple[npt.NDArray[np.float32], ...]

    @property
    def high(self) -> npt.NDArray[np.float32]:
        """``(..., n)`` all details."""
        return np.concatenate(self.bands, axis=-1) if self.bands else self.low[..., :0]

    @property
    def energies(self) -> FloatArray:
        """``(..., 4)`` energy of each sub-band: approximation, horizontal, vertical, diagonal."""
        parts = [*(self.low, *self.bands), *[self.low[..., :0]] * (_BANDS - 1 - len(self.bands))]
        return np.stack([np.square(part, dtype=np.float64).sum(axis=-1) for part in parts], axis=-1)


def transform(maps: npt.NDArray[np.float32], options: WaveletOptions) -> Coefficients:
    """Return the two-dimensional wavelet transform of every map of ``maps`` ``(..., height, width)`` at once."""
    smallest = min(maps.shape[-2:])
    level = min(options.level, int(np.log2(smallest))) if smallest else 0
    low, details = maps, []
    for _ in range(level):
        low, level_bands = pywt.dwt2(low, options.wavelet, mode=options.mode, axes=(-2, -1))
        details.append([_flat(band) for band in level_bands])
    bands = tuple(np.concatenate(parts, axis=-1) for parts in zip(*reversed(details), strict=True))
    return Coefficients(_flat(low), bands)


def _flat(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return maps.reshape(*maps.shape[:-2], maps.shape[-2] * maps.shape[-1])


@dataclass(frozen=True)
class _QuadraticForm:
    """``w^T S w`` for ``w = m / |K| - 1 / C``: squared distance of a mean over kept channels from that over all."""

    matrix: FloatArray
    row_sums: FloatArray
    total: float

    @classmethod
    def of(cls, vectors: npt.NDArray[Any], norms: FloatArray) -> _QuadraticForm:
        """Return the form of ``vectors`` ``(n_images, c, n)``, each image divided by its entry of ``norms``."""
        n_images, n_channels = vectors.shape[:2]
        matrix = np.zeros((n_channels, n_channels))
        for image, norm in zip(vectors, norms, strict=True):
            matrix += (image @ image.T).astype(np.float64) / norm
        matrix = exactly_summable(matrix / max(n_images, 1))
        return cls(matrix, exactly_summable(matrix.sum(axis=1)), float(matrix.sum()))

    def __call__(self, kept: FloatArray) -> FloatArray:
        """Return the distance ``(n,)`` for 0/1 rows ``kept`` ``(n, c)``."""
        n_channels = kept.shape[1]
        count = np.maximum(kept.sum(axis=1), 1)
        own = ((kept @ self.matrix) * kept).sum(axis=1) / count**2
        cross = (kept @ self.row_sums) / (count * n_channels)
        return np.asarray(np.maximum(own - 2 * cross + self.total / n_channels**2, 0.0))


@dataclass(frozen=True)
class _LargestDetails:
    """Details of every channel, for the rule that keeps the largest: ``(n_images, c, n)``."""

    high: npt.NDArray[np.float32]
    whole: npt.NDArray[np.float32]
    norms: FloatArray

    def __call__(self, kept: FloatArray) -> FloatArray:
        distances = np.zeros(len(kept))
        if not len(self.high):
            return distances
        for index, row in enumerate(kept.astype(np.bool_)):
            own = _largest(self.high[:, row]) if row.any() else np.zeros_like(self.whole)
            distances[index] = np.mean(np.square(own - self.whole, dtype=np.float64).sum(axis=1) / self.norms)
        return distances


@dataclass(frozen=True)
class GroupWavelets:
    """What is kept of one group's feature maps.

    Attributes:
        group: The channel group.
        stage: Index of its stage.
        distances: Terms of the squared distance from the aggregate of all channels, relative to its energy.
        between: ``(size,)`` scatter of the class means of each channel's sub-band energies; zero without labels.
        within: ``(size,)`` scatter within the classes.
        detail_share: ``(size,)`` mean share of a channel's energy that lies in its details; 1 where maps are too small
            to have any, 0 for a map without energy.
        n_images: Images that the figures rest on.
    """

    group: ChannelGroup
    stage: int
    distances: tuple[_QuadraticForm | _LargestDetails, ...]
    between: FloatArray
    within: FloatArray
    detail_share: FloatArray
    n_images: int

    def representation(self, kept: FloatArray) -> FloatArray:
        """Return ``1 - |Q_K - Q_all|^2 / |Q_all|^2`` ``(n,)``, the mean over images; 1 is perfect."""
        distance = np.zeros(len(kept))
        for term in self.distances:
            distance += term(kept)
        return np.asarray(1.0 - distance)

    def discrimination(self, kept: FloatArray) -> FloatArray:
        """Return between-class over within-class scatter ``(n,)``, relative to all channels'; 0 without labels."""
        whole = float(self.between.sum()) / (float(self.within.sum()) + _EPSILON)
        if not whole > 0:
            return np.zeros(len(kept))
        return np.asarray((kept @ self.between) / (kept @ self.within + _EPSILON) / whole)


class WaveletAggregation:
    """Wavelet fitness of one network. Larger is better; reconstruction, see the module."""

    def __init__(
        self,
        program: Program,
        inputs: Tensor,
        labels: Tensor | None = None,
        options: WaveletOptions = WaveletOptions(),
    ) -> None:
        """Run the dense network once and decompose the maps that each group's first consumer reads.

        Args:
            program: The folded network.
            inputs: ``(n, ...)`` calibration images, in the dtype that the network is run in.
            labels: ``(n,)`` classes; the discriminative term is 0 without.
            options: How to decompose and compare.
        """
        self.space: SearchSpace = program.space
        self.options = options
        self.n_images = len(inputs)
        self.stages = _stages(program)
        stage_of = {group: stage for stage, members in enumerate(self.stages) for group in members}
        classes = None if labels is None else labels.cpu().numpy().astype(np.int64)
        collected = _collect_maps(program, inputs, options)
        self.groups = [
            _summarise(group, stage_of[index], collected[index], classes, options)
            for index, group in enumerate(self.space.groups)
            if index in collected
        ]

    def stage_terms(self, genomes: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Return representative and discriminative term per stage, ``(n, n_stages)`` each: the mean over its groups."""
        self.space.check_genomes(genomes)
        shape = (len(genomes), len(self.stages))
        representation, discrimination, count = np.zeros(shape), np.zeros(shape), np.zeros(len(self.stages))
        for entry in self.groups:
            kept = genomes[:, entry.group.start : entry.group.stop].astype(np.float64)
            representation[:, entry.stage] += entry.representation(kept)
            discrimination[:, entry.stage] += entry.discrimination(kept)
            count[entry.stage] += 1
        count = np.maximum(count, 1)
        return representation / count, discrimination / count

    def saving(self, genomes: BoolArray) -> FloatArray:
        """Return the share of the dense MACs that each genome saves, ``(n,)``."""
        return np.asarray(1.0 - self.space.macs(genomes) / max(self.space.macs_dense, 1))

    def stage_fitness(self, genomes: BoolArray) -> FloatArray:
        """Return ``Rep + a Disc + b Spar`` per stage, ``(n, n_stages)``, larger = better, for a search by stages."""
        representation, discrimination = self.stage_terms(genomes)
        value = representation + self.options.discrimination * discrimination
        return np.asarray(value + self.options.saving * self.saving(genomes)[:, None])

    def fitness(self, genomes: BoolArray) -> FloatArray:
        """Return the mean over stages of :meth:`stage_fitness`, ``(n,)``, larger = better."""
        values = self.stage_fitness(genomes)
        return np.asarray(values.mean(axis=1)) if values.shape[1] else self.options.saving * self.saving(genomes)

    def scores(self) -> FloatArray:
        """Return how wanted each gene is, ``(n_genes,)``, larger = more: detail share times Fisher ratio, ours."""
        scores = np.zeros(self.space.n_genes)
        for entry in self.groups:
            has_classes = entry.between.any()
            fisher = entry.between / (entry.within + _EPSILON) if has_classes else np.ones(entry.group.size)
            scores[entry.group.start : entry.group.stop] = entry.detail_share * fisher
        return scores


class WaveletEvaluator:
    """Judges genomes by :class:`WaveletAggregation`; no image is passed forward. The objective is minus the fitness."""

    def __init__(self, aggregation: WaveletAggregation) -> None:
        """Judge by ``aggregation``."""
        self.aggregation = aggregation

    @property
    def rungs(self) -> Sequence[str]:
        """The one rung of this evaluator."""
        return (WAVELET_RUNG,)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes`` ``(n, n_genes)``, in order.

        Raises:
            UnknownNameError: There is no such rung.
        """
        if rung not in self.rungs:
            raise UnknownNameError("rung", rung, self.rungs)
        started = time.perf_counter()
        fitness = self.aggregation.fitness(genomes)
        representation, discrimination = (terms.mean(axis=1) for terms in self.aggregation.stage_terms(genomes))
        saving = self.aggregation.saving(genomes)
        metrics = [
            {"representation": float(own), "discrimination": float(apart), "saving": float(saved)}
            for own, apart, saved in zip(representation, discrimination, saving, strict=True)
        ]
        return evaluations_without_images(genomes, rung, -fitness, metrics, time.perf_counter() - started)


def _largest(high: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest coefficient by magnitude over channels of ``(n_images, c, n)``; ties go to the first."""
    if not high.size:
        return high[:, 0]
    places = np.abs(high).argmax(axis=1)[:, None]
    return np.take_along_axis(high, places, axis=1)[:, 0]


def _stages(program: Program) -> tuple[tuple[int, ...], ...]:
    """Return the groups of every resolution of their root layer's output, shallow to deep."""
    shapes = {step.layer.record.module: step.operation.shape[2:] for step in program.steps if step.layer is not None}
    stages: dict[tuple[int, ...], list[int]] = {}
    for index, group in enumerate(program.space.groups):
        stages.setdefault(tuple(shapes.get(group.layers[0], ())), []).append(index)
    return tuple(tuple(members) for members in stages.values())


def _readers(program: Program) -> dict[str, list[tuple[int, IntArray]]]:
    """Return, per layer, the groups that it reads first, with the input positions ``(size, m)`` of their genes."""
    readers: dict[str, list[tuple[int, IntArray]]] = {}
    found: set[int] = set()
    for layer in program.layer_order():
        if layer.in_genes is None:
            continue
        for index, group in enumerate(program.space.groups):
            if index in found or group.start not in layer.in_genes:
                continue
            places = [np.flatnonzero(layer.in_genes == gene) for gene in range(group.start, group.stop)]
            if layer.kernel:  # a gene that stands for several channels is judged by the first
                places = [place[:1] for place in places]
            found.add(index)
            readers.setdefault(layer.name, []).append((index, np.stack(places)))
    return readers


def _collect_maps(program: Program, inputs: Tensor, options: WaveletOptions) -> dict[int, npt.NDArray[np.float32]]:
    """Return the maps ``(n_images, size, height, width)`` of every group that a layer reads."""
    readers = _readers(program)
    input_of = {step.layer.name: step.operation.args[0].name for step in program.steps if step.layer is not None}
    parts: dict[int, list[npt.NDArray[np.float32]]] = {}
    held: dict[int, int] = {}

    def record(layer: FoldedLayer, values: Mapping[str, Any]) -> None:
        for index, places in readers.get(layer.name, ()):
            maps = _maps(values[input_of[layer.name]], layer, torch.from_numpy(places))
            per_image = maps[0].numel() * maps.element_size()
            n_left = max(1, options.max_bytes // max(per_image, 1)) - held.get(index, 0)
            if n_left > 0:
                held[index] = held.get(index, 0) + min(n_left, len(maps))
                parts.setdefault(index, []).append(maps[:n_left].float().cpu().numpy())

    dense = program.slice(program.space.all_ones()[0]).cast(inputs.dtype)
    with torch.inference_mode():
        for part in inputs.split(options.batch_size):
            program.run(dense, [part], on_layer=record)
    return {index: np.concatenate(batches) for index, batches in parts.items()}


def _maps(value: Tensor, layer: FoldedLayer, places: Tensor) -> Tensor:
    if layer.kernel:
        maps = value[:, places[:, 0]]
        return maps.unsqueeze(2) if maps.ndim == 3 else maps.flatten(2, -2)
    if value.ndim > 2:  # features last: the dimensions between are places
        return value[..., places[:, 0]].movedim(-1, 1).flatten(2).unsqueeze(2)
    side = int(places.shape[1] ** 0.5)
    square = (side, side) if side * side == places.shape[1] else (1, places.shape[1])
    return value[:, places].reshape(len(value), len(places), *square)


def _summarise(
    group: ChannelGroup,
    stage: int,
    maps: npt.NDArray[np.float32],
    classes: IntArray | None,
    options: WaveletOptions,
) -> GroupWavelets:
    finite = np.isfinite(maps).all(axis=(1, 2, 3))
    if not finite.all():
        _LOGGER.warning("%s: %d images left out, their feature maps are not finite", group.name, int((~finite).sum()))
    if classes is not None:
        classes = classes[: len(maps)][finite]
    coefficients = transform(maps[finite], options)
    energies = coefficients.energies  # (n_images, size, 4)
    between, within = _scatter(energies, classes)
    return GroupWavelets(
        group=group,
        stage=stage,
        distances=_distances(coefficients, energies, options),
        between=exactly_summable(between),
        within=exactly_summable(within),
        detail_share=_detail_share(energies, has_details=bool(coefficients.bands)),
        n_images=int(finite.sum()),
    )


def _distances(
    coefficients: Coefficients, energies: FloatArray, options: WaveletOptions
) -> tuple[_QuadraticForm | _LargestDetails, ...]:
    low, high = coefficients.low, coefficients.high
    if options.rule == "energy":
        return (_QuadraticForm.of(energies, _squares(energies.mean(axis=1))),)
    if options.rule == "mean":
        whole = np.concatenate([low, high], axis=-1)
        return (_QuadraticForm.of(whole, _squares(whole.mean(axis=1, dtype=np.float64))),)
    whole_high = _largest(high)
    norms = _squares(low.mean(axis=1, dtype=np.float64)) + _squares(whole_high)
    return (_QuadraticForm.of(low, norms), _LargestDetails(high, whole_high, norms))


def _squares(rows: npt.NDArray[Any]) -> FloatArray:
    return np.square(rows, dtype=np.float64).sum(axis=1) + _EPSILON


def _scatter(energies: FloatArray, classes: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """Return between- and within-class scatter per channel, ``(size,)`` each, of ``(n_images, size, 4)``."""
    n_images, size = energies.shape[:2]
    if classes is None or n_images == 0:
        return np.zeros(size), np.zeros(size)
    mean = energies.mean(axis=0)
    between, within = np.zeros(size), np.zeros(size)
    for label in np.unique(classes):
        members = energies[classes == label]
        centre = members.mean(axis=0)
        between += len(members) * np.square(centre - mean).sum(axis=1)
        within += np.square(members - centre).sum(axis=(0, 2))
    return between / n_images, within / n_images


def _detail_share(energies: FloatArray, *, has_details: bool) -> FloatArray:
    total = energies.sum(axis=2)
    if not has_details or not len(energies):
        return np.asarray((total.sum(axis=0) > 0) | (len(energies) == 0), np.float64)
    share = np.divide(energies[:, :, 1:].sum(axis=2), total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(share.mean(axis=0))
