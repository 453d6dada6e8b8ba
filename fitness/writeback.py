"""From compensated folded weights back to an ordinary module with its batch norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fitness.folding import slice_layer
from fitness.program import Program, SlicedTensors
from search_spaces import prune_model
from search_spaces.surgery import named_tensors

#: A batch norm that scales a channel by less than this cannot carry a solved weight and is given the scale 1.
_SMALLEST_SCALE = 1e-3


def compensated_model(model: nn.Module, program: Program, tensors: SlicedTensors) -> nn.Module:
    """Return the sliced network with the weights of ``tensors``, as an ordinary module in evaluation mode.

    A folded weight is divided by its batch norm's scale again, and what its bias gained goes into the running mean.

    Args:
        model: The dense network; not changed.
        program: Its folded program.
        tensors: Sliced, compensated, float32.

    A layer without bias and batch norm keeps none, and one that the network calls twice is never solved.
    """
    small = prune_model(model, program.space, tensors.kept)
    parameters = named_tensors(small)
    with torch.no_grad():
        for name, layer in program.layers.items():
            plain_weight, plain_bias = slice_layer(layer, tensors.kept)
            if torch.equal(plain_weight, tensors.weights[name]) and torch.equal(plain_bias, tensors.biases[name]):
                continue
            record = layer.record
            assert record.weight is not None
            if record.weight not in parameters:  # it went with a removed block
                continue
            weight, bias = tensors.weights[name], tensors.biases[name]
            if layer.norm:
                norm: Any = small.get_submodule(layer.norm)
                deviation = torch.sqrt(norm.running_var + norm.eps)
                scale = deviation.reciprocal() if norm.weight is None else norm.weight / deviation
                weak = scale.abs() < _SMALLEST_SCALE
                if norm.weight is not None and bool(weak.any()):
                    norm.weight.copy_(torch.where(weak, deviation, norm.weight))
                    scale = torch.where(weak, torch.ones_like(scale), scale)
                weight = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
                shift = torch.zeros_like(bias) if norm.bias is None else norm.bias
                own_bias = parameters[record.bias] if record.bias is not None else torch.zeros_like(bias)
                norm.running_mean.copy_((shift - bias) / scale + own_bias)
            elif record.bias is not None:
                parameters[record.bias].copy_(bias)
            parameters[record.weight].copy_(weight.reshape(parameters[record.weight].shape))
    return small.eval()
