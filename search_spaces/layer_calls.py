"""The calls of convolutions and linear layers in a network, so that each can be made alone at any width."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search_spaces.errors import TraceError
from search_spaces.graph import NetworkGraph, Operation, Ref
from search_spaces.provenance import LayerRecord

#: Position of a convolution's groups behind input, weight and bias.
_GROUPS_INDEX = 3


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer, with the shapes it has in the dense network.

    Attributes:
        record: What the trace knows about it.
        operation: The call.
        input_shape: Of its input in the example run.
        has_bias: Whether it adds one.
        n_samples: Batch size of the example run.
    """

    record: LayerRecord
    operation: Operation
    input_shape: tuple[int, ...]
    has_bias: bool
    n_samples: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its weight in the dense network."""
        return self.record.weight_shape

    @property
    def unit(self) -> int:
        """Slices of the first axis of the weight that come and go together: a group's, or one per group."""
        groups = self.record.groups
        return self.weight_shape[0] // groups if self.record.is_depthwise else groups

    @property
    def n_written(self) -> int:
        """Elements that it writes for one sample."""
        return math.prod(self.operation.shape) // self.n_samples

    @property
    def shape_key(self) -> str:
        """Equal for two calls that take the same time at the same widths."""
        arguments = [argument for argument in self.operation.args[3:] if not isinstance(argument, Ref)]
        size = math.prod(self.input_shape) // self.n_samples
        places = (self.input_shape[1:], size)
        return repr((self.operation.op, self.weight_shape, places, self.has_bias, arguments))

    def at(
        self, first: int, second: int, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> Callable[[], Tensor]:
        """Return the call with ``first`` and ``second`` slices of its weight kept, on ``batch_size`` random samples."""
        weight = torch.randn(first, second, *self.weight_shape[2:], dtype=dtype, device=device)
        groups = self.record.groups
        if self.record.is_depthwise:
            groups = first * groups // self.weight_shape[0]
        n_in = self._n_read(first, second, groups)
        shape = [max(self.input_shape[0] * batch_size // self.n_samples, 1), *self.input_shape[1:]]
        shape[-1 if self.operation.op == "linear" else 1] = n_in
        image = torch.randn(shape, dtype=dtype, device=device)
        n_made = second * groups if self.record.is_transposed else first
        bias = torch.randn(n_made, dtype=dtype, device=device) if self.has_bias else None
        rest = list(self.operation.args[3:])
        if len(rest) > 3:
            rest[_GROUPS_INDEX] = groups
        target = self.operation.target
        return lambda: target(image, weight, bias, *rest)

    def _n_read(self, first: int, second: int, groups: int) -> int:
        if self.operation.op == "linear":
            return second
        if self.record.is_transposed:
            return first
        return second * groups


def layer_calls(graph: NetworkGraph, layers: Sequence[LayerRecord]) -> list[LayerCall]:
    """Return the calls of ``layers`` in order of execution.

    Raises:
        TraceError: The shape of an input is not known.
    """
    operations = {operation.name: operation for operation in graph.operations}
    shapes = {name: operation.shape for name, operation in operations.items()}
    shapes.update(zip(graph.inputs, graph.input_shapes, strict=True))
    calls = []
    for record in layers:
        operation = operations[record.operation]
        source: Any = operation.args[0]
        input_shape = shapes.get(source.name, ()) if isinstance(source, Ref) else ()
        if not input_shape:
            raise TraceError(
                f"the input of layer {record.module or record.operation!r} must be one tensor, but is not; "
                "its latency cannot be measured alone"
            )
        has_bias = len(operation.args) > 2 and operation.args[2] is not None
        calls.append(LayerCall(record, operation, input_shape, has_bias, graph.input_shapes[0][0]))
    return calls


def network_digest(calls: Sequence[LayerCall]) -> str:
    """Return the identity of a network as far as its latency goes: its layers, in order, and their shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for call in calls:
        digest.update(repr((call.record.weight, call.shape_key)).encode())
    return digest.hexdigest()
