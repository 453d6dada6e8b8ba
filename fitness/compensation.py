"""Compensation: closed-form least-squares updates of the weights that remain. No gradient step is taken.

For a layer that lost input channels the remaining weights are solved anew such that its output comes close to the
*dense* layer's output. The sequential form takes its regressors from the *pruned* network, layer by layer, so that it
also corrects what earlier layers did; where the result is added to a shortcut, the target absorbs the drift of that
shortcut.

Sources: the layer problem is L-OBS / the GA two-step paper (arXiv 1805.11394, our reading, ``W_K + W_R H_RK H_KK^-1``);
regressors from the pruned network and the shortcut's drift are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitness.program import FoldedLayer, Program, SlicedTensors, keep_mask
from search_spaces.errors import OptionError
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
    """

    n_positions: int = 32
    max_multiplications: float = 1e9
    damping: float = 1e-3
    every_layer: bool = False
    n_rectified_passes: int = 0

    def __post_init__(self) -> None:
        """Check every rule once.

        Raises:
            OptionError: A value is out of its range.
        """
        rules = (
            ("n_positions >= 1", self.n_positions >= 1, self.n_positions),
            ("max_multiplications > 0", self.max_multiplications > 0, self.max_multiplications),
            ("damping > 0", self.damping > 0, self.damping),
            ("n_rectified_passes >= 0", self.n_rectified_passes >= 0, self.n_rectified_passes),
        )
        for rule, holds, value in rules:
            if not holds:
                raise OptionError(f"`{rule}` must hold for a solve, but got {value}; leave it out for the default")

    def positions_per_image(self, n_images: int, n_regressors: int) -> int:
        """Return how many positions of each image a layer with ``n_regressors`` input weights per output samples.

        A solve costs ``n k^2`` multiplications for ``n`` samples of ``k`` regressors, or ``n^2 k`` when that is less.
        """
        n_rows = self.max_multiplications / n_regressors**2
        if n_rows < n_regressors:
            n_rows = (self.max_multiplications / n_regressors) ** 0.5
        return max(1, min(self.n_positions, int(n_rows / n_images)))


def sample_positions(shape: Sequence[int], n_positions: int, generator: torch.Generator) -> Tensor:
    """Return distinct, sorted flat output positions ``(batch, n)`` of maps of ``shape`` ``(batch, channels, ...)``."""
    batch, total = shape[0], int(np.prod(shape[2:]))
    if total <= n_positions:
        return torch.arange(total).expand(batch, total)
    keys = torch.rand((batch, total), generator=generator)
    return keys.topk(n_positions, dim=1).indices.sort(dim=1).values


def gather_outputs(value: Tensor, positions: Tensor) -> Tensor:
    """Return ``(batch * n, channels)`` float32 rows of ``value`` ``(batch, channels, ...)`` at flat ``positions``."""
    if value.ndim == 2:
        return value.float()
    batch, channels = value.shape[:2]
    rows = value.movedim(1, -1).reshape(-1, channels)
    offsets = torch.arange(batch, device=value.device).unsqueeze(1) * (rows.shape[0] // batch)
    return rows.index_select(0, (positions + offsets).reshape(-1)).float()


def gather_patches(layer: FoldedLayer, value: Tensor, positions: Tensor, output_width: int) -> Tensor:
    """Return the regressors of a 2-d convolution or linear layer at sampled output positions.

    Args:
        layer: Gives kernel, stride, padding and dilation.
        value: The layer's input, ``(batch, channels, height, width)`` or ``(..., features)``.
        positions: ``(batch, n)`` flat output positions.
        output_width: Width of the output map.

    Returns:
        ``(batch * n, kernel * channels)`` float32; the channel is the fastest dimension.
    """
    if not layer.kernel:
        return value.reshape(-1, value.shape[-1]).float()
    if layer.kernel == (1, 1) and layer.padding == (0, 0) and layer.stride == (1, 1):
        return gather_outputs(value, positions)
    batch, channels, height, width = value.shape
    (pad_y, pad_x), (step_y, step_x), (gap_y, gap_x) = layer.padding, layer.stride, layer.dilation
    padded = value.new_zeros((batch, height + 2 * pad_y, width + 2 * pad_x, channels))
    padded[:, pad_y : pad_y + height, pad_x : pad_x + width] = value.permute(0, 2, 3, 1)
    row = padded.shape[2]
    rows, columns = positions // output_width, positions % output_width
    origin = rows * (step_y * row) + columns * step_x
    origin = origin + torch.arange(batch, device=value.device).unsqueeze(1) * (padded.shape[1] * row)
    taps = torch.arange(layer.kernel[0]).unsqueeze(1) * (gap_y * row) + torch.arange(layer.kernel[1]) * gap_x
    taps = taps.to(value.device)
    index = origin.unsqueeze(-1) + taps.reshape(-1)
    patches = padded.reshape(-1, channels).index_select(0, index.reshape(-1))
    return patches.reshape(-1, taps.numel() * channels).float()


def to_rows(weight: Tensor) -> Tensor:
    """Return a weight ``(out, in, ...)`` as ``(out, kernel * in)`` with the input channel fastest."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`to_rows` for a weight shaped as ``like``.

    The result is cloned: with one input channel ``contiguous`` would keep strides that convolutions misread.
    """
    moved = rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)
    return moved.clone(memory_format=torch.contiguous_format)


class Regression:
    """Ridge regression on fixed regressors, factorised once and solved for any number of residuals.

    With fewer samples than regressors the equivalent system in the samples is solved, which is the smaller one.
    """

    def __init__(self, regressors: Tensor, damping: float, has_bias: bool = True) -> None:
        """Factorise the covariance of ``regressors``, or their sample Gram matrix.

        Args:
            regressors: ``(n, k)`` float32.
            damping: Ridge, relative to the mean variance of a regressor; the bias is not damped.
            has_bias: Whether a bias is solved along; it stays 0 otherwise.
        """
        n, k = regressors.shape
        self.mean = regressors.mean(0) if has_bias else torch.zeros_like(regressors[0])
        self.centred = regressors - self.mean
        self.has_bias = has_bias
        self.in_samples = n < k
        rows = self.centred if self.in_samples else self.centred.T
        gram = (rows @ rows.T).div_(n)
        ridge = damping * float(gram.diagonal().sum()) / k + 1e-12
        gram.diagonal().add_(ridge)
        self.factor, info = torch.linalg.cholesky_ex(gram)
        self.is_well_posed = int(info) == 0 and bool(torch.isfinite(self.factor).all())

    def solve(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the update of weights ``(out, k)`` and bias ``(out,)`` that explains ``residual`` ``(n, out)``."""
        mean = residual.mean(0) if self.has_bias else torch.zeros_like(residual[0])
        scaled = (residual - mean) / len(residual)
        if self.in_samples:
            update = torch.cholesky_solve(scaled, self.factor).T @ self.centred
        else:
            update = torch.cholesky_solve(self.centred.T @ scaled, self.factor).T
        return update, mean - update @ self.mean


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


@dataclass(frozen=True)
class _Target:
    """What one layer should produce at its sampled positions.

    Attributes:
        rows: ``(n, out)`` dense outputs, or dense sums where ``partner`` is set.
        positions: ``(batch, n_positions)``.
        output_width: Width of the output map.
        partner: Name of the value that is added to the layer's output, whose drift the layer absorbs.
        is_rectified: Only a ReLU reads it.
    """

    rows: Tensor
    positions: Tensor
    output_width: int
    partner: str | None
    is_rectified: bool


class SequentialCompensation:
    """Re-solves the layers of sliced networks in order, from the pruned network's own activations.

    The dense targets are computed once; each call runs the pruned network once over the calibration images.
    """

    def __init__(
        self,
        program: Program,
        inputs: Tensor,
        options: CompensationOptions = CompensationOptions(),
        seed: int = 0,
    ) -> None:
        """Run the dense network once and keep its outputs at sampled positions.

        Args:
            program: The folded network.
            inputs: ``(n, ...)`` calibration images, normalised, in the dtype that networks are run in.
            options: How to solve.
            seed: Of the sampled positions.
        """
        self.program = program
        self.inputs = inputs
        self.options = options
        self.targets: dict[str, _Target] = {}
        self._collect(seed)

    def _collect(self, seed: int) -> None:
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

        def record(name: str, value: Any) -> None:
            for layer_name in wanted.get(name, ()):
                n_regressors = to_rows(program.layers[layer_name].weight).shape[1]
                n_positions = self.options.positions_per_image(len(self.inputs), n_regressors)
                positions = (
                    sample_positions(value.shape, n_positions, generator)
                    if value.ndim == 4
                    else torch.zeros((len(value), 1), dtype=torch.int64)
                )
                self.targets[layer_name] = _Target(
                    rows=gather_outputs(value, positions.to(value.device)),
                    positions=positions.to(value.device),
                    output_width=value.shape[-1] if value.ndim == 4 else 1,
                    partner=partners.get(layer_name, ("", None))[1],
                    is_rectified=name in rectified,
                )

        dense = program.slice(program.space.all_ones()[0]).cast(self.inputs.dtype)
        with torch.inference_mode():
            program.run(dense, [self.inputs], on_value=record)

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
        tensors = self.program.slice(genome)
        if prefix is not None:
            tensors.weights.update(prefix.solved.weights)
            tensors.biases.update(prefix.solved.biases)
            tensors.uncompensated = prefix.solved.uncompensated
        running = tensors.cast(self.inputs.dtype)

        def solve(layer: FoldedLayer, values: Mapping[str, Any]) -> None:
            target = self.targets.get(layer.name)
            if target is None or not (self.options.every_layer or self._needs_solve(layer, genome)):
                return
            step_input = values[self._input_of[layer.name]]
            regressors = gather_patches(layer, step_input, target.positions, target.output_width)
            rows = target.rows[:, np.flatnonzero(keep_mask(layer.out_genes, genome))]
            offset = None if target.partner is None else gather_outputs(values[target.partner], target.positions)
            regression = Regression(regressors, self.options.damping, layer.has_bias)
            if not regression.is_well_posed:
                _LOGGER.info("compensation of %s skipped: the regression is ill-conditioned", layer.name)
                tensors.uncompensated += (layer.name,)
                return
            weight, bias = to_rows(tensors.weights[layer.name]), tensors.biases[layer.name]
            passes = self.options.n_rectified_passes if target.is_rectified else 0
            for index in range(1 + passes):
                reached = torch.addmm(bias if offset is None else bias + offset, regressors, weight.T)
                aim = rows if index == 0 else torch.where(rows < 0, reached.clamp(max=0), rows)
                more_weight, more_bias = regression.solve(aim - reached)
                weight, bias = weight + more_weight, bias + more_bias
            solved = from_rows(weight, tensors.weights[layer.name])
            tensors.weights[layer.name], tensors.biases[layer.name] = solved, bias
            running.weights[layer.name] = solved.to(self.inputs.dtype)
            running.biases[layer.name] = bias.to(self.inputs.dtype)

        inputs, env, start = ([self.inputs], None, 0) if prefix is None else ([], prefix.values, prefix.step)
        with torch.inference_mode():
            if pause_at is None:
                self.program.run(running, inputs, on_layer=solve, env=env, start=start)
                return tensors, None
            values = self.program.run(running, inputs, on_layer=solve, env=env, start=start, stop=pause_at)
            env = alive_at(self.program, values, pause_at)
            del values
            solved = solved_before(self.program, tensors, pause_at)
            self.program.run(running, [], on_layer=solve, env=env, start=pause_at)
        return tensors, Prefix(pause_at, env, solved)

    def prefix(self, genome: BoolArray, open_genes: IntArray) -> Prefix:
        """Return what all genomes share that differ from ``genome`` in ``open_genes`` only.

        Holds the pruned network's activations where the shared part ends: memory for the calibration images once.
        """
        step = self.program.first_step_of(open_genes)
        tensors = self(genome)
        solved = solved_before(self.program, tensors, step)
        return Prefix(step, run_prefix(self.program, tensors, self.inputs, step), solved)

    @property
    def _input_of(self) -> dict[str, str]:
        cached: dict[str, str] | None = getattr(self, "_inputs", None)
        if cached is None:
            cached = {
                step.layer.name: step.operation.args[0].name for step in self.program.steps if step.layer is not None
            }
            self._inputs = cached
        return cached

    def _needs_solve(self, layer: FoldedLayer, genome: BoolArray) -> bool:
        assert layer.in_genes is not None
        return not bool(keep_mask(layer.in_genes, genome).all())


def shortcut_partners(program: Program) -> dict[str, tuple[str, str]]:
    """Return, per layer whose output is added to an earlier value, ``(name of the sum, name of that value)``."""
    order = {step.operation.name: index for index, step in enumerate(program.steps)}
    readers = program.readers()
    partners: dict[str, tuple[str, str]] = {}
    for name in program.layers:
        using = readers.get(name, [])
        if len(using) != 1 or using[0].op != "add" or using[0].kwargs.get("alpha", 1) != 1:
            continue
        others = [a.name for a in using[0].args[:2] if isinstance(a, Ref) and a.name != name]
        if len(others) == 1 and order.get(others[0], -1) < order[name]:
            partners[name] = (using[0].name, others[0])
    return partners
