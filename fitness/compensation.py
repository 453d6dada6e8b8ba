"""Compensation: closed-form least-squares updates of the weights that remain. No gradient step is taken.

For a layer that lost input channels the remaining weights are solved anew such that its output comes close to the
*dense* layer's output. The sequential form takes its regressors from the *pruned* network, layer by layer, so that it
also corrects what earlier layers did; where the result is added to a shortcut, the target absorbs the drift of that
shortcut. On demand two layers with a ReLU between them are solved together (:mod:`fitness.layer_pairs`).

Sources: the layer problem is L-OBS / the GA two-step paper (arXiv 1805.11394, our reading, ``W_K + W_R H_RK H_KK^-1``);
regressors from the pruned network and the shortcut's drift are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitness.folding import FoldedLayer, keep_mask
from fitness.layer_pairs import LayerPair, layer_pairs, pair_problem, refine
from fitness.program import Program, SlicedTensors
from fitness.regression import (
    LayerTarget,
    Regression,
    channels_second,
    from_rows,
    gather_outputs,
    gather_patches,
    sample_positions,
    to_rows,
)
from search_spaces.errors import check_rules
from search_spaces.genome import BoolArray, IntArray
from search_spaces.graph import Ref

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompensationOptions:
    """How a solve is done.

    Attributes:
        n_positions: Most output positions sampled per image and layer.
        max_multiplications: Bound on the multiplications of one layer's solve; wide layers sample fewer positions.
        damping: Ridge on the *change* of the weights, relative to the mean variance of a regressor.
        every_layer: Also re-solve layers that lost no input channel, for the drift of what they read.
        n_rectified_passes: Further solves for outputs that only a ReLU reads: where the dense value is negative, any
            negative value will do, so the aim is lowered to what was reached.
        n_pair_steps: Gauss-Newton steps of a layer for what the layer behind its ReLU makes, after which that one is
            solved again (:mod:`fitness.layer_pairs`). What genomes share is computed for each of them then: the first
            layer of a pair depends on what comes behind it.
    """

    n_positions: int = 32
    max_multiplications: float = 1e9
    damping: float = 1e-3
    every_layer: bool = False
    n_rectified_passes: int = 0
    n_pair_steps: int = 0

    def __post_init__(self) -> None:
        """Check every rule once.

        Raises:
            OptionError: A value is out of its range.
        """
        check_rules(
            [
                ("n_positions >= 1", self.n_positions >= 1, self.n_positions),
                ("max_multiplications > 0", self.max_multiplications > 0, self.max_multiplications),
                ("damping > 0", self.damping > 0, self.damping),
                ("n_rectified_passes >= 0", self.n_rectified_passes >= 0, self.n_rectified_passes),
                ("n_pair_steps >= 0", self.n_pair_steps >= 0, self.n_pair_steps),
            ],
            purpose="a solve",
        )

    def positions_per_image(self, n_images: int, n_regressors: int) -> int:
        """Return how many positions of each image a layer with ``n_regressors`` input weights per output samples.

        A solve costs ``n k^2`` multiplications for ``n`` samples of ``k`` regressors, or ``n^2 k`` when that is less.
        """
        n_rows = self.max_multiplications / n_regressors**2
        if n_rows < n_regressors:
            n_rows = (self.max_multiplications / n_regressors) ** 0.5
        return max(1, min(self.n_positions, int(n_rows / n_images)))


@dataclass(frozen=True)
class Prefix:
    """The part of a run that genomes share.

    Attributes:
        step: First step that they do not share.
        values: What is alive there, by name.
        solved: Compensated tensors of the layers before it.
    """

    step: int
    values: Mapping[str, Any]
    solved: SlicedTensors


def run_prefix(program: Program, tensors: SlicedTensors, inputs: Tensor, step: int) -> dict[str, Any]:
    """Return the activations of ``inputs`` that are alive before ``step``; parameters are left out."""
    with torch.inference_mode():
        values = program.run(tensors.cast(inputs.dtype), [inputs], stop=step)
    return alive_at(program, values, step)


def alive_at(program: Program, values: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return those ``values`` that steps from ``step`` on read; parameters are left out."""
    static = {*program.space.graph.tensors, *program.space.graph.constants}
    read_later = {name for later in program.steps[step:] for name in later.operation.refs()}
    return {name: value for name, value in values.items() if name in read_later and name not in static}


def solved_before(program: Program, tensors: SlicedTensors, step: int) -> SlicedTensors:
    """Return the tensors of the layers before ``step`` alone."""
    names = {s.layer.name for s in program.steps[:step] if s.layer is not None}
    return SlicedTensors(
        {name: weight for name, weight in tensors.weights.items() if name in names},
        {name: bias for name, bias in tensors.biases.items() if name in names},
        {},
        tensors.kept,
        tuple(name for name in tensors.uncompensated if name in names),
    )


class SequentialCompensation:
    """Re-solves the layers of sliced networks in order, from the pruned network's own activations.

    The dense targets are computed once; each call runs the pruned network over the calibration images once, and no
    further than the last layer that is solved.
    """

    def __init__(
        self,
        program: Program,
        inputs: Tensor,
        options: CompensationOptions = CompensationOptions(),
        seed: int = 0,
        *,
        raise_if_stopped: Callable[[], None] | None = None,
    ) -> None:
        """Run the dense network once and keep its outputs at sampled positions.

        Args:
            program: The folded network.
            inputs: ``(n, ...)`` calibration images, normalised, in the dtype that networks are run in.
            options: How to solve.
            seed: Of the sampled positions.
            raise_if_stopped: Called before each layer, here and in every call; an error that it raises ends either.
        """
        self.program = program
        self.inputs = inputs
        self.options = options
        self._raise_if_stopped = raise_if_stopped or (lambda: None)
        self.targets = self._collect_targets(seed)
        self._pairs = layer_pairs(program, self.targets) if options.n_pair_steps else {}
        self._firsts = {pair.first.name for pair in self._pairs.values()}

    def _collect_targets(self, seed: int) -> dict[str, LayerTarget]:
        """Return what the dense network puts out, per solvable layer."""
        program = self.program
        partners = shortcut_partners(program)
        generator = torch.Generator().manual_seed(seed)
        rectified = {
            name for name, readers in program.readers().items() if readers and all(r.op == "relu" for r in readers)
        }
        wanted: dict[str, list[str]] = {}
        for layer in program.layer_order():
            if layer.is_solvable:
                wanted.setdefault(partners.get(layer.name, (layer.name, ""))[0], []).append(layer.name)
        targets: dict[str, LayerTarget] = {}

        def record(name: str, value: Any) -> None:
            for layer_name in wanted.get(name, ()):
                self._raise_if_stopped()
                maps = channels_second(program.layers[layer_name], value)
                positions = self._sample(layer_name, maps, generator).to(value.device)
                targets[layer_name] = LayerTarget(
                    rows=gather_outputs(maps, positions),
                    positions=positions,
                    output_width=value.shape[-1],
                    partner=partners.get(layer_name, ("", None))[1],
                    is_rectified=name in rectified,
                )

        dense = program.slice(program.space.all_ones()[0]).cast(self.inputs.dtype)
        with torch.inference_mode():
            program.run(dense, [self.inputs], on_value=record)
        return targets

    def _sample(self, layer_name: str, value: Tensor, generator: torch.Generator) -> Tensor:
        """Return the positions ``(batch, n)`` at which a layer with the output ``(batch, channels, ...)`` is solved."""
        if value.ndim == 2:
            return torch.zeros((len(value), 1), dtype=torch.int64)
        n_regressors = to_rows(self.program.layers[layer_name].weight).shape[1]
        n_positions = self.options.positions_per_image(len(self.inputs), n_regressors)
        return sample_positions(value.shape, n_positions, generator)

    def __call__(self, genome: BoolArray, prefix: Prefix | None = None) -> SlicedTensors:
        """Return the sliced tensors of ``genome`` in float32, with the solvable layers re-solved.

        A layer whose regression is ill-conditioned keeps its weights, and is named in ``uncompensated``.

        Args:
            genome: ``(n_genes,)``.
            prefix: What :meth:`prefix` returned for a genome that agrees with this one on all genes before its step.
        """
        return self.paused(genome, prefix, None)[0]

    def paused(
        self, genome: BoolArray, prefix: Prefix | None, pause_at: int | None
    ) -> tuple[SlicedTensors, Prefix | None]:
        """Return what calling returns, and what genomes share that agree with this one before step ``pause_at``.

        Nothing is computed twice for that; without ``pause_at`` the second is None.

        Args:
            genome: ``(n_genes,)``.
            prefix: As for calling.
            pause_at: A step behind that of ``prefix``.
        """
        program, dtype = self.program, self.inputs.dtype
        tensors = program.slice(genome)
        if prefix is not None:
            tensors.weights.update(prefix.solved.weights)
            tensors.biases.update(prefix.solved.biases)
            tensors.uncompensated = prefix.solved.uncompensated
        running = tensors.cast(dtype)

        waiting: dict[str, Tensor] = {}  # what first layers of pairs read, until the second one is solved

        def solve(layer: FoldedLayer, values: dict[str, Any]) -> None:
            self._raise_if_stopped()
            if self._is_solved(layer, genome):
                self._solve(layer, values, tensors)
                if layer.name in self._pairs:
                    self._refine(self._pairs[layer.name], waiting, values, tensors)
                if layer.name in self._firsts:
                    waiting[layer.name] = values[program.input_of[layer.name]]
                running.weights[layer.name] = tensors.weights[layer.name].to(dtype)
                running.biases[layer.name] = tensors.biases[layer.name].to(dtype)

        inputs, env, start = ([self.inputs], None, 0) if prefix is None else ([], prefix.values, prefix.step)
        end = self._end_of_solves(genome)
        with torch.inference_mode():
            stop = end if pause_at is None else pause_at
            values = program.run(running, inputs, on_layer=solve, env=env, start=start, stop=stop)
            if pause_at is None:
                return tensors, None
            env = alive_at(program, values, pause_at)
            del values
            solved = solved_before(program, tensors, pause_at)
            program.run(running, [], on_layer=solve, env=env, start=pause_at, stop=end)
        return tensors, Prefix(pause_at, env, solved)

    def prefix(self, genome: BoolArray, open_genes: IntArray) -> Prefix:
        """Return what all genomes share that differ from ``genome`` in ``open_genes`` only.

        Holds the pruned network's activations where the shared part ends: memory for the calibration images once.
        """
        step = self.program.first_step_of(open_genes)
        tensors = self(genome)
        solved = solved_before(self.program, tensors, step)
        return Prefix(step, run_prefix(self.program, tensors, self.inputs, step), solved)

    def _is_solved(self, layer: FoldedLayer, genome: BoolArray) -> bool:
        """Return whether ``layer`` is one to re-solve for ``genome``."""
        if layer.name not in self.targets:
            return False
        assert layer.in_genes is not None
        return self.options.every_layer or not keep_mask(layer.in_genes, genome).all()

    def _end_of_solves(self, genome: BoolArray) -> int:
        """Return the step after the last layer that is solved; no activation behind it is of any use."""
        for index in reversed(range(len(self.program.steps))):
            layer = self.program.steps[index].layer
            if layer is not None and self._is_solved(layer, genome):
                return index + 1
        return 0

    def _refine(
        self, pair: LayerPair, waiting: dict[str, Tensor], values: dict[str, Any], tensors: SlicedTensors
    ) -> None:
        """Improve the first layer of ``pair`` for what the second one makes, and solve that one again.

        The maps between them in ``values`` are replaced. Nothing happens where either is not solved, where samples are
        too few, or where no step is an improvement.
        """
        first, second = pair.first.name, pair.second.name
        inputs, target = waiting.pop(first, None), self.targets[second]
        kept = np.flatnonzero(keep_mask(pair.second.out_genes, tensors.kept))
        for _ in range(self.options.n_pair_steps):
            if inputs is None or {first, second} & set(tensors.uncompensated):
                return
            problem = pair_problem(
                pair,
                inputs,
                values,
                (tensors.weights[second], tensors.biases[second]),
                replace(target, rows=target.rows[:, kept]),
                max_multiplications=self.options.max_multiplications,
            )
            weight, bias = tensors.weights[first], tensors.biases[first]
            refined = None if problem is None else refine(problem, torch.cat([to_rows(weight), bias[:, None]], dim=1))
            if refined is None:
                return
            weight, bias = from_rows(refined[:, :-1], weight), refined[:, -1].clone()
            tensors.weights[first], tensors.biases[first] = weight, bias
            geometry = pair.first.stride, pair.first.padding, pair.first.dilation
            maps = torch.nn.functional.conv2d(inputs, weight.to(inputs.dtype), bias.to(inputs.dtype), *geometry)
            values[pair.between] = maps.relu_()
            self._solve(pair.second, values, tensors, is_near=True)

    def _solve(
        self, layer: FoldedLayer, values: Mapping[str, Any], tensors: SlicedTensors, *, is_near: bool = False
    ) -> None:
        """Replace weight and bias of ``layer`` in ``tensors``, given the pruned network's ``values`` so far.

        Where they are near a solution for rectified outputs, every pass aims at that.
        """
        target, name = self.targets[layer.name], layer.name
        regressors = gather_patches(layer, values[self.program.input_of[name]], target.positions, target.output_width)
        regression = Regression(regressors, self.options.damping, layer.has_bias)
        if not regression.is_well_posed:
            _LOGGER.info("compensation of %s skipped: the regression is ill-conditioned", name)
            tensors.uncompensated += (name,)
            return
        rows = target.rows[:, np.flatnonzero(keep_mask(layer.out_genes, tensors.kept))]
        offset = None
        if target.partner is not None:
            offset = gather_outputs(channels_second(layer, values[target.partner]), target.positions)
        weight, bias = to_rows(tensors.weights[name]), tensors.biases[name]
        for index in range(1 + (self.options.n_rectified_passes if target.is_rectified else 0)):
            reached = torch.addmm(bias if offset is None else bias + offset, regressors, weight.T)
            is_lowered = index > 0 or (is_near and target.is_rectified)
            aim = torch.where(rows < 0, reached.clamp(max=0), rows) if is_lowered else rows
            more_weight, more_bias = regression.solve(aim - reached)
            weight, bias = weight + more_weight, bias + more_bias
        tensors.weights[name], tensors.biases[name] = from_rows(weight, tensors.weights[name]), bias


def shortcut_partners(program: Program) -> dict[str, tuple[str, str]]:
    """Return, per layer whose output is added to an earlier value, ``(name of the sum, name of that value)``.

    The value is an activation of the same shape: a parameter, a constant or one number per channel is no shortcut.
    """
    graph = program.space.graph
    order = {step.operation.name: index for index, step in enumerate(program.steps)}
    shapes = {step.operation.name: step.operation.shape for step in program.steps}
    shapes.update(zip(graph.inputs, graph.input_shapes, strict=True))
    readers = program.readers()
    partners: dict[str, tuple[str, str]] = {}
    for name in program.layers:
        using = readers.get(name, [])
        if len(using) != 1 or using[0].op != "add" or using[0].kwargs.get("alpha", 1) != 1:
            continue
        others = [a.name for a in using[0].args[:2] if isinstance(a, Ref) and a.name != name]
        is_alike = len(others) == 1 and shapes.get(others[0]) == shapes[name] == using[0].shape
        if is_alike and order.get(others[0], -1) < order[name]:
            partners[name] = (using[0].name, others[0])
    return partners
