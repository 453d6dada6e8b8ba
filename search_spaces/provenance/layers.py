"""Layers with weights: they consume the channels that enter and make new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from search_spaces.graph import Operation, Ref
from search_spaces.provenance.records import LayerRecord, Value
from search_spaces.provenance.state import Handler, Walk, varies

CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])


#: Operators of layers, whether their weights are stored tensors or made by an operator.
WEIGHTED = CONVOLUTIONS | {"linear"}


def _channel_norm(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    if value.ids is None:
        return walk.opaque(operation, f"operator {operation.op!r} on a parameter")
    if operation.op == "instance_norm" and any(varies(value.ids, d) for d in range(2, value.ids.ndim)):
        return walk.opaque(operation, "instance norm across channels")
    channel_ids = walk.along(value.ids, 1, operation)
    walk.result.norms[operation.module] = channel_ids.numpy().astype(np.int64)
    for argument in operation.args[1:5]:
        tensor = walk.value(argument).tensor
        if tensor is not None:
            walk.bind(tensor, 0, channel_ids)
        if isinstance(argument, Ref) and not walk.is_stored(argument):
            walk.freeze(value.ids, f"is normalised with a computed tensor {walk.place(operation)}")
    if operation.op == "_native_batch_norm_legit_no_training":
        return [value, Value(ids=walk.fixed((0,))), Value(ids=walk.fixed((0,)))]
    return value


def _prelu(walk: Walk, operation: Operation) -> Any:
    value, slope = walk.value(operation.args[0]), walk.value(operation.args[1])
    if value.ids is None or slope.tensor is None:
        return walk.opaque(operation, "PReLU with a computed slope")
    if walk.tensor_shapes[slope.tensor] != (1,):
        walk.bind(slope.tensor, 0, walk.along(value.ids, 1, operation))
    return value


def _linear(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    weight = walk.value(operation.args[1])
    if value.ids is None or weight.tensor is None or not _has_stored_tensors(walk, operation):
        return walk.opaque(operation, "a linear layer with a computed weight or bias")
    inner = walk.along(value.ids, value.ids.ndim - 1, operation)
    _consume(walk, weight.tensor, 1, inner)
    produced = _produce(walk, operation, weight.tensor, 0)
    bias = _bias(walk, operation, produced)
    positions = math.prod(operation.shape[:-1]) / walk.n_samples
    _record(walk, operation, weight.tensor, bias, 1, positions, False, False)
    return Value(ids=produced.expand(*value.ids.shape[:-1], len(produced)))


def _convolution(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    weight = walk.value(operation.args[1])
    transposed = operation.op.startswith("conv_transpose")
    groups = operation.args[6] if len(operation.args) > 6 else operation.kwargs.get("groups", 1)
    if value.ids is None or weight.tensor is None or not _has_stored_tensors(walk, operation):
        return walk.opaque(operation, "a convolution with a computed weight or bias")
    shape = walk.tensor_shapes[weight.tensor]
    inner = walk.along(walk.uniform(value.ids, range(2, value.ids.ndim), operation), 1, operation)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    places = value.ids.shape[2:] if transposed else operation.shape[2:]
    positions = operation.shape[0] * math.prod(shape[2:]) * math.prod(places) / walk.n_samples
    is_depthwise = groups > 1 and len(inner) == groups
    if is_depthwise:
        multiplier = shape[1] if transposed else shape[0] // groups
        produced = inner.repeat_interleave(multiplier)
        walk.bind(weight.tensor, 0, inner if transposed else produced)
    else:
        if groups > 1:
            _equal_groups(walk, inner, groups, operation)
        if transposed:
            _consume(walk, weight.tensor, 0, inner)
            produced = walk.fresh(shape[1]).repeat(groups)
            walk.bind(weight.tensor, 1, produced[: shape[1]])
            walk.result.producer_slots.setdefault((weight.tensor, 1), operation.module or weight.tensor)
        else:
            _consume(walk, weight.tensor, in_axis, inner[: len(inner) // groups])
            produced = _produce(walk, operation, weight.tensor, out_axis)
            _equal_groups(walk, produced, groups, operation)
    bias = _bias(walk, operation, produced)
    _record(walk, operation, weight.tensor, bias, groups, positions, is_depthwise, transposed)
    view = produced.reshape(1, -1, *(1,) * (len(operation.shape) - 2))
    return Value(ids=view.expand(operation.shape))


def _equal_groups(walk: Walk, ids: Tensor, groups: int, operation: Operation) -> None:
    if groups > 1:
        rows = ids.reshape(groups, -1)
        walk.merge(rows[:1].expand_as(rows).reshape(-1), rows.reshape(-1), f"shares a group {walk.place(operation)}")


def _consume(walk: Walk, tensor: str, axis: int, ids: Tensor) -> None:
    walk.bind(tensor, axis, ids)
    walk.result.consumer_slots[tensor, axis] = None


def _produce(walk: Walk, operation: Operation, tensor: str, axis: int) -> Tensor:
    """Hand out the ids of a layer's output channels; a layer called twice makes the same channels twice."""
    count = walk.tensor_shapes[tensor][axis]
    produced = walk.fresh(count)
    walk.bind(tensor, axis, produced)
    walk.result.producer_slots.setdefault((tensor, axis), operation.module or tensor)
    return produced


def _has_stored_tensors(walk: Walk, operation: Operation) -> bool:
    """Whether weight and bias are parameters or buffers themselves, and not what an operator makes of them."""
    bias = _bias_of(operation)
    return walk.is_stored(operation.args[1]) and (bias is None or walk.is_stored(bias))


def _bias_of(operation: Operation) -> Any:
    return operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("bias")


def _bias(walk: Walk, operation: Operation, produced: Tensor) -> str | None:
    tensor = walk.value(_bias_of(operation)).tensor
    if tensor is not None:
        walk.bind(tensor, 0, produced)
    return tensor


def _record(
    walk: Walk,
    operation: Operation,
    weight: str,
    bias: str | None,
    groups: int,
    positions: float,
    is_depthwise: bool,
    is_transposed: bool,
) -> None:
    walk.result.layers.append(
        LayerRecord(
            operation.name,
            operation.module,
            weight,
            bias,
            groups,
            positions,
            is_depthwise,
            is_transposed,
            tuple(walk.tensor_shapes[weight]),
        )
    )


LAYERS: Mapping[str, Handler] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), _channel_norm),
    "linear": _linear,
    "prelu": _prelu,
}
