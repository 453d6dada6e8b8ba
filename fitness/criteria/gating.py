"""Runs of the dense network with gates on what its layers read, recorded for gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fitness.folding import FoldedLayer
from fitness.program import Program
from search_spaces.errors import DataError

#: Of a layer, the value that it reads and the axis of its channels: the factor, which broadcasts with the value.
GateOf: TypeAlias = Callable[[FoldedLayer, Tensor, int], Tensor]


def run_gated(program: Program, images: Tensor, gate_of: GateOf) -> dict[str, Any]:
    """Return the dense network's values for ``images`` ``(n, ...)`` with gates on what layers read of any gene.

    Every layer gates what it reads itself; other readers of the same value see it as it is.
    """
    dense = program.slice(program.space.all_ones()[0]).cast(torch.float32)
    ungated: dict[str, tuple[dict[str, Any], Tensor]] = {}

    def close(layer: FoldedLayer, values: dict[str, Any]) -> None:
        if layer.in_genes is None or not (layer.in_genes >= 0).any():
            return
        name = program.input_of[layer.name]
        value = values[name]
        ungated[layer.name] = (values, value)
        values[name] = value * gate_of(layer, value, 1 if layer.kernel else value.ndim - 1)

    def open_again(name: str, _: Any) -> None:
        if name in ungated:
            values, original = ungated.pop(name)
            values[program.input_of[name]] = original

    with torch.enable_grad():  # what a gradient needs must not be overwritten, hence kept
        return program.run(dense, [images], on_layer=close, on_value=open_again, keep=program.layers)


def checked_logits(program: Program, values: Mapping[str, Any]) -> Tensor:
    """Return the network's first output ``(n, n_classes)``.

    Raises:
        DataError: It is no matrix of logits.
    """
    logits = values[program.outputs[0]]
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise DataError(
            "gradients need a network whose first output is `(n, n_classes)` logits, but got "
            f"{tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__}; choose a criterion "
            "without gradients"
        )
    return logits
