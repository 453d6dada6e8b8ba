"""From compensated folded weights back to an ordinary module with its batch norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fitness.folding import FoldedNorm
from fitness.program import Program, SlicedTensors
from search_spaces import prune_model
from search_spaces.surgery import named_tensors

#: A batch norm that scales a channel by less than this cannot carry a solved weight and is given the scale 1.
_SMALLEST_SCALE = 1e-3


def compensated_model(model: nn.Module, program: Program, tensors: SlicedTensors) -> nn.Module:
    """Return the sliced network with the weights of ``tensors``, as an ordinary module in evaluation mode.

    A folded weight is divided by its batch norm's scale again, and what its bias gained goes into the running mean.
    Batch norms that stand alone get their statistics.

    Args:
        model: The dense network; not changed.
        program: Its folded program.
        tensors: Sliced, compensated, float32.

    A layer without bias and batch norm keeps none, and one that the network calls twice is never solved.
    """
    small = prune_model(model, program.space, tensors.kept)
    parameters = named_tensors(small)
    qualified = program.space.graph.tensors
    plain = program.slice(tensors.kept)
    with torch.no_grad():
        for name, layer in program.layers.items():
            weight, bias = tensors.weights[name], tensors.biases[name]
            if torch.equal(plain.weights[name], weight) and torch.equal(plain.biases[name], bias):
                continue
            record = layer.record
            assert record.weight is not None
            if record.weight not in parameters:  # it went with a removed block
                continue
            if layer.folded_norm is not None:
                own_bias = parameters[record.bias] if record.bias is not None else torch.zeros_like(bias)
                tables = [parameters[qualified[part]] if part else None for part in layer.folded_norm.tensors]
                weight = _unfold(layer.folded_norm, tables, weight, bias, own_bias)
            elif record.bias is not None:
                parameters[record.bias].copy_(bias)
            parameters[record.weight].copy_(weight.reshape(parameters[record.weight].shape))
        for name, value in tensors.others.items():
            target = parameters.get(qualified.get(name, ""))
            if target is not None and not torch.equal(plain.others[name], value):
                target.copy_(value)
    return small.eval()


def _unfold(
    norm: FoldedNorm, tables: Sequence[Tensor | None], weight: Tensor, bias: Tensor, own_bias: Tensor
) -> Tensor:
    """Return the weight before ``norm`` such that with it the layer gives ``weight`` and ``bias``.

    Args:
        norm: Gives epsilon.
        tables: Sliced gamma, beta, running mean and variance, gamma and beta None where there are none; the mean is
            changed, and gamma where it is too small to carry a weight.
        weight: ``(out, ...)`` folded.
        bias: ``(out,)`` folded.
        own_bias: ``(out,)`` of the layer itself, which stays.
    """
    gamma, beta, mean, variance = tables
    assert mean is not None
    assert variance is not None
    deviation = torch.sqrt(variance + norm.epsilon)
    scale = deviation.reciprocal() if gamma is None else gamma / deviation
    weak = scale.abs() < _SMALLEST_SCALE
    if gamma is not None and bool(weak.any()):
        gamma.copy_(torch.where(weak, deviation, gamma))
        scale = torch.where(weak, torch.ones_like(scale), scale)
    mean.copy_(((torch.zeros_like(bias) if beta is None else beta) - bias) / scale + own_bias)
    return weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
