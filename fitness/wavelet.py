"""Wavelet channel aggregation: how well the kept channels' feature maps stand for all of them, in the wavelet domain.

Each calibration feature map is decomposed once. A genome is then judged without a forward pass: the aggregate of the
kept channels' coefficients is compared with that of all channels (representative term), the classes' separation in
sub-band energy with that of all channels (discriminative term), and the saved MACs are added.

References:
    Genetic wavelet channel search, Front. Comput. Neurosci. 15:760554, 2021. Its text was not readable: every formula
    here is our reconstruction from the abstract.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fitness.evaluation import Evaluation, evaluations_without_images
from fitness.program import Program
from fitness.wavelet_maps import collect_maps
from fitness.wavelet_terms import EPSILON, summarise
from fitness.wavelet_transform import WaveletOptions
from search_spaces import SearchSpace
from search_spaces.errors import UnknownNameError
from search_spaces.genome import BoolArray, FloatArray

WAVELET_RUNG = "wavelet"


class WaveletAggregation:
    """Wavelet fitness of one network. Larger is better; reconstruction, see the module."""

    def __init__(
        self,
        program: Program,
        inputs: Tensor,
        labels: Tensor | None = None,
        options: WaveletOptions | None = None,
    ) -> None:
        """Run the dense network once and decompose the maps that each group's first consumer reads.

        Args:
            program: The folded network.
            inputs: ``(n, ...)`` calibration images, in the dtype that the network is run in.
            labels: ``(n,)`` classes; the discriminative term is 0 without.
            options: How to decompose and compare.
        """
        self.space: SearchSpace = program.space
        self.options = options = options or WaveletOptions()
        self.n_images = len(inputs)
        self.stages = _stages(program)
        stage_of = {group: stage for stage, members in enumerate(self.stages) for group in members}
        classes = None if labels is None else labels.cpu().numpy().astype(np.int64)
        collected = collect_maps(program, inputs, options)
        self.groups = [
            summarise(group, stage_of[index], collected[index], classes, options)
            for index, group in enumerate(self.space.groups)
            if index in collected
        ]

    def stage_terms(self, genomes: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Return representative and discriminative term per stage, ``(n, n_stages)`` each: the mean over its groups.

        Both are 0 for a stage of groups that no layer reads.
        """
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
        """Return the mean over stages with maps of :meth:`stage_fitness`, ``(n,)``, larger = better."""
        values = self._of_measured_stages(self.stage_fitness(genomes))
        return np.asarray(values.mean(axis=1)) if values.shape[1] else self.options.saving * self.saving(genomes)

    def mean_terms(self, genomes: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Return the means over stages with maps of :meth:`stage_terms`, ``(n,)`` each; 0 where there are none."""
        representation, discrimination = (self._of_measured_stages(terms) for terms in self.stage_terms(genomes))
        if not representation.shape[1]:
            return np.zeros(len(genomes)), np.zeros(len(genomes))
        return np.asarray(representation.mean(axis=1)), np.asarray(discrimination.mean(axis=1))

    def _of_measured_stages(self, values: FloatArray) -> FloatArray:
        """Return the columns of ``values`` ``(n, n_stages)`` whose stage has a group with maps."""
        return values.compress(np.isin(np.arange(len(self.stages)), [entry.stage for entry in self.groups]), axis=1)

    def scores(self) -> FloatArray:
        """Return how wanted each gene is, ``(n_genes,)``, larger = more: detail share times Fisher ratio, ours."""
        scores = np.zeros(self.space.n_genes)
        for entry in self.groups:
            has_classes = entry.between.any()
            fisher = entry.between / (entry.within + EPSILON) if has_classes else np.ones(entry.group.size)
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
        representation, discrimination = self.aggregation.mean_terms(genomes)
        saving = self.aggregation.saving(genomes)
        metrics = [
            {"representation": float(own), "discrimination": float(apart), "saving": float(saved)}
            for own, apart, saved in zip(representation, discrimination, saving, strict=True)
        ]
        return evaluations_without_images(genomes, rung, -fitness, metrics, time.perf_counter() - started)


def _stages(program: Program) -> tuple[tuple[int, ...], ...]:
    """Return the groups of every resolution of their root layer's output, shallow to deep."""
    shapes = {step.layer.record.module: step.operation.shape[2:] for step in program.steps if step.layer is not None}
    stages: dict[tuple[int, ...], list[int]] = {}
    for index, group in enumerate(program.space.groups):
        stages.setdefault(tuple(shapes.get(group.layers[0], ())), []).append(index)
    return tuple(tuple(members) for members in stages.values())
