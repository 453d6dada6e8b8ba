"""Recalibration: batch-norm statistics estimated anew on calibration images, no gradient step taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fitness.compensation import Prefix, solved_before
from fitness.folding import BATCH_NORMS, FoldedLayer, keep_mask
from fitness.program import Program, SlicedTensors
from fitness.regression import finite_columns
from search_spaces.genome import BoolArray, IntArray
from search_spaces.graph import Ref


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch norm by their mean over ``batches``; return how many there are.

    Norms without running statistics are left alone. Positions with a value that is not finite count in no statistics.
    Mode, momentum and gradients of ``model`` are as before on return,
    also when the forward pass raises.

    Args:
        model: Changed in place.
        batches: Normalised inputs ``(batch, ...)``, at least two images each.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    momenta = {module: module.momentum for module in norms}
    forwards = {module: vars(module).get("forward") for module in norms}
    model.eval()
    try:
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # cumulative average
            module.train()
            vars(module)["forward"] = partial(_forward_by_finite, module, module.forward)
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for part, mode in modes.items():
            part.training = mode
        for module, momentum in momenta.items():
            module.momentum = momentum
        for module, forward in forwards.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward
    return len(norms)


def _forward_by_finite(norm: _BatchNorm, forward: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Return what ``forward`` of ``norm``, in training mode, would make of the positions of ``value`` that are finite.

    The others are normalised by the statistics of these.
    """
    rows = value.transpose(0, 1).flatten(1)
    finite = finite_columns(rows)
    if finite.shape[1] == rows.shape[1] or finite.shape[1] < 2:
        return forward(value)
    forward(finite.T.reshape(-1, len(rows), *[1] * (value.ndim - 2)))  # updates the statistics
    variance, mean = torch.var_mean(finite, dim=1, correction=0)
    return nn.functional.batch_norm(value, mean, variance, norm.weight, norm.bias, eps=norm.eps)


class Recalibration:
    """What :func:`recalibrate` does to a sliced module, for the folded program: layer by layer, in one pass.

    A folded batch norm is re-estimated by scaling and shifting its layer, one that stands alone by its own statistics.
    All images make one batch. Networks run in the dtype of the images; a channel whose variance that dtype's rounding
    would hide is measured in float32. A layer that the network calls more than once, and a transposed one, stay as
    they are.
    """

    def __init__(self, program: Program, inputs: Tensor) -> None:
        """Keep ``inputs`` ``(n, ...)``, normalised calibration images in the dtype that networks are run in."""
        self.program = program
        self.inputs = inputs
        self._step_of = {step.layer.name: i for i, step in enumerate(program.steps) if step.layer is not None}
        self._norms: dict[str, list[tuple[str, str]]] = {}  # of the value that norms read: mean and variance
        for step in program.steps:
            if step.operation.op in BATCH_NORMS:
                value, mean, variance = (step.operation.args[place] for place in (0, 3, 4))
                own = [part.name for part in (mean, variance) if isinstance(part, Ref)]
                if len(own) == 2 and all(name in program.space.graph.tensors for name in own):
                    self._norms.setdefault(value.name, []).append((mean.name, variance.name))

    def __call__(self, genome: BoolArray, _: Prefix | None = None) -> SlicedTensors:
        """Return the sliced tensors of ``genome`` ``(n_genes,)`` in float32, recalibrated."""
        tensors = self.program.slice(genome)
        running = tensors.cast(self.inputs.dtype)
        for held in (tensors, running):  # a slice may be the dense tensor itself, and a cast the slice
            for name in (name for pairs in self._norms.values() for pair in pairs for name in pair):
                held.others[name] = held.others[name].clone()

        def scale(layer: FoldedLayer, values: Mapping[str, Any]) -> None:
            norm = layer.folded_norm
            if norm is None or layer.is_shared or layer.record.is_transposed:
                return
            step = self._step_of[layer.name]
            output = self.program.run(running, [], env=values, start=step, stop=step + 1)[layer.name]
            mean, variance, correction = _moments(output)
            kept = torch.from_numpy(np.flatnonzero(keep_mask(layer.out_genes, genome))).to(mean.device)
            slope, shift, deviation = norm.scale[kept], norm.shift[kept], norm.deviation[kept]
            dead = slope == 0  # its output is constant, whatever the statistics
            # A small gamma beside a large beta: what varies is lost where the output is rounded, and a variance of
            # rounding would scale the channel by hundreds. Only such channels are measured in float32.
            lost = ~dead & (variance.sqrt() < torch.finfo(output.dtype).eps * mean.abs())
            if output.dtype != torch.float32 and bool(lost.any()):
                source = self.program.input_of[layer.name]
                exact = {source: values[source].float()}
                output = self.program.run(tensors, [], env=exact, start=step, stop=step + 1)[layer.name]
                exact_mean, exact_variance, _ = _moments(output)
                mean, variance = torch.where(lost, exact_mean, mean), torch.where(lost, exact_variance, variance)
            variance = variance / torch.where(dead, 1.0, slope).square()
            weight, bias = tensors.weights[layer.name], tensors.biases[layer.name] - mean
            for held, by in ((running, 1.0), (tensors, correction)):
                ratio = deviation / torch.sqrt(variance * by + norm.epsilon)
                dtype = held.weights[layer.name].dtype
                held.weights[layer.name] = (weight * ratio.reshape(-1, *[1] * (weight.ndim - 1))).to(dtype)
                held.biases[layer.name] = (bias * ratio + shift).to(dtype)

        def estimate(name: str, value: Any) -> None:
            for mean_name, variance_name in self._norms.get(name, ()):
                mean, variance, correction = _moments(value)
                for held, by in ((running, 1.0), (tensors, correction)):
                    held.others[mean_name].copy_(mean)
                    held.others[variance_name].copy_(variance * by)

        with torch.inference_mode():
            for name, value in zip(self.program.space.graph.inputs, [self.inputs], strict=False):
                estimate(name, value)
            self.program.run(running, [self.inputs], on_layer=scale, on_value=estimate)
        return tensors

    def prefix(self, genome: BoolArray, open_genes: IntArray) -> Prefix:
        """Return what all genomes share that differ from ``genome`` in ``open_genes`` only: tensors, no activation."""
        step = self.program.first_step_of(open_genes)
        tensors = self(genome)
        norms = {name for s in self.program.steps[:step] for name in s.operation.refs() if name in tensors.others}
        solved = solved_before(self.program, tensors, step)
        return Prefix(step, {}, replace(solved, others={name: tensors.others[name] for name in norms}))


def _moments(value: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance per channel of ``(n, channels, ...)`` in float32, and what makes the variance unbiased.

    As in training, the batch itself is normalised by the variance as it is, and what is kept of it is unbiased.
    Positions with a value that is not finite are left out.
    """
    rows = value.float().transpose(0, 1).flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, correction=0)
    if not bool(torch.isfinite(mean + variance).all()):
        rows = finite_columns(rows)
        variance, mean = torch.var_mean(rows, dim=1, correction=0)
    return mean, variance, rows.shape[1] / max(rows.shape[1] - 1, 1)
