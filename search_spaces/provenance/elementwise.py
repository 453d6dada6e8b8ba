"""Operators that act on every element alone, on pairs of elements, or along spatial dimensions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from search_spaces.graph import Operation, Ref
from search_spaces.provenance.records import Value
from search_spaces.provenance.state import Handler, Walk, content_of, indexes_axis, narrow_views, varies

ACTIVATIONS = frozenset(
    [
        "abs",
        "alpha_dropout",
        "bernoulli",
        "celu",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "contiguous",
        "detach",
        "dropout",
        "elu",
        "erf",
        "exp",
        "feature_alpha_dropout",
        "feature_dropout",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "lift_fresh_copy",
        "log_sigmoid",
        "mish",
        "neg",
        "pow",
        "reciprocal",
        "relu",
        "relu6",
        "rrelu",
        "rsqrt",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softshrink",
        "softsign",
        "sqrt",
        "square",
        "tanh",
        "tanhshrink",
        "threshold",
        "to",
        "type_as",
        "_to_copy",
        "alias",
        "lift_fresh",
    ]
)
PAIRWISE = frozenset(
    ["add", "sub", "mul", "div", "maximum", "minimum", "rsub", "true_divide", "multiply", "subtract", "divide"]
)
SPATIAL = {
    "adaptive_avg_pool1d": 1,
    "adaptive_avg_pool2d": 2,
    "adaptive_avg_pool3d": 3,
    "adaptive_max_pool1d": 1,
    "adaptive_max_pool2d": 2,
    "avg_pool1d": 1,
    "avg_pool2d": 2,
    "avg_pool3d": 3,
    "max_pool1d": 1,
    "max_pool2d": 2,
    "max_pool3d": 3,
    "upsample_bilinear2d": 2,
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_bicubic2d": 2,
    "reflection_pad2d": 2,
    "replication_pad2d": 2,
}
CONSTANT_FACTORIES = frozenset(
    ["zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "arange", "eye"]
)


def _activation(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    others = [name for name in operation.refs() if Ref(name) != operation.args[0]]
    if others and operation.op not in ("type_as", "to"):
        return walk.opaque(operation, f"operator {operation.op!r} with a tensor argument")
    return value


def _fixed_output(walk: Walk, operation: Operation) -> Value:
    return Value(ids=walk.fixed(operation.shape))


def _pairwise(walk: Walk, operation: Operation) -> Any:
    if not all(isinstance(argument, Ref) for argument in operation.args[:2]):
        tensor = next((argument for argument in operation.args[:2] if isinstance(argument, Ref)), None)
        return walk.value(tensor)
    left, right = walk.value(operation.args[0]), walk.value(operation.args[1])
    if left.ids is None and right.ids is None:
        for value in (left, right):
            if value.tensor is not None:
                walk.opaque_tensors.setdefault(value.tensor, f"is computed with {walk.place(operation)}")
        return Value(ids=walk.fixed(operation.shape))
    if left.ids is None or right.ids is None:
        activation, other = (right, left) if left.ids is None else (left, right)
        assert activation.ids is not None
        return _with_tensor(walk, operation, activation.ids, other)
    return Value(ids=_meet(walk, operation, left.ids, right.ids))


def _meet(walk: Walk, operation: Operation, left: Tensor, right: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(left.shape, right.shape)
    sides = [left.reshape((1,) * (len(shape) - left.ndim) + left.shape), right]
    sides[1] = right.reshape((1,) * (len(shape) - right.ndim) + right.shape)
    for dim, size in enumerate(shape):
        for this, other in ((0, 1), (1, 0)):
            if sides[this].shape[dim] == 1 and size > 1 and varies(sides[other], dim):
                # one element that acts on many channels: it stays, and says nothing about which of them are kept
                walk.freeze(sides[this], f"is broadcast over channels {walk.place(operation)}")
                return sides[other].expand(shape)
    merged = torch.broadcast_tensors(narrow_views(sides[0]), narrow_views(sides[1]))
    joint = walk.merge(merged[0], merged[1], f"is combined with fixed channels {walk.place(operation)}")
    return joint.expand(shape)


def _with_tensor(walk: Walk, operation: Operation, ids: Tensor, other: Value) -> Value:
    """Combine an activation with a parameter (sliced along with it) or with a constant (which cannot be sliced)."""
    content = content_of(other)
    shape = torch.broadcast_shapes(ids.shape, content.shape)
    ids = ids.expand(shape)
    aligned = content.reshape((1,) * (len(shape) - content.ndim) + content.shape)
    varying = [dim for dim in range(len(shape)) if aligned.shape[dim] > 1 and varies(ids, dim)]
    if not varying:
        if other.tensor is not None and content.numel() > 1:
            walk.opaque_tensors.setdefault(other.tensor, f"meets fixed channels {walk.place(operation)}")
        return Value(ids=ids)
    if other.tensor is None or other.elements is None:
        walk.freeze(ids, f"meets a constant tensor of channel size {walk.place(operation)}")
        return Value(ids=ids)
    dim = varying[0]
    original = walk.tensor_shapes[other.tensor]
    elements = aligned.movedim(dim, 0).reshape(aligned.shape[dim], -1)
    axis = next(
        (a for a, size in enumerate(original) if size == aligned.shape[dim] and indexes_axis(elements, original, a)),
        None,
    )
    if len(varying) > 1 or axis is None:
        walk.freeze(ids, f"meets parameter {other.tensor!r} across several dimensions {walk.place(operation)}")
        return Value(ids=ids)
    walk.bind(other.tensor, axis, walk.along(ids, dim, operation))
    return Value(ids=ids)


def _spatial(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    n_dims = SPATIAL[operation.op]
    if value.ids is None:
        return walk.opaque(operation, f"operator {operation.op!r} on a parameter")
    ids = walk.uniform(value.ids, range(value.ids.ndim - n_dims, value.ids.ndim), operation)
    # adaptive maxima come with their indices: the operation has two results, and its sizes stand in its arguments
    shape = operation.shape or (*ids.shape[: ids.ndim - n_dims], *walk.plain(operation.args[1]))
    pooled = Value(ids=ids.expand(shape))
    return pooled if operation.shape else [pooled, Value(ids=walk.fixed(shape))]


def _reduction(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    dims = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim")
    if value.ids is None or dims is None:
        return walk.opaque(operation, f"operator {operation.op!r} over all channels")
    ids = value.ids
    reduced = sorted({int(dim) % ids.ndim for dim in (dims if isinstance(dims, (list, tuple)) else [dims])})
    if not reduced or _mixes_channels(ids, reduced):
        return walk.opaque(operation, f"operator {operation.op!r} over channels")
    ids = walk.uniform(ids, reduced, operation)
    keep = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("keepdim", False)
    if not keep:
        for dim in reversed(reduced):
            ids = ids.squeeze(dim)
    return Value(ids=ids)


def _softmax(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    if value.ids is None:
        return walk.opaque(operation, f"operator {operation.op!r} on a parameter")
    dim = int(operation.args[1]) % value.ids.ndim
    if _mixes_channels(value.ids, [dim]):
        return walk.opaque(operation, f"operator {operation.op!r} over channels")
    return Value(ids=walk.uniform(value.ids, [dim], operation).expand(value.ids.shape))


def _mixes_channels(ids: Tensor, dims: Sequence[int]) -> bool:
    """Whether an operator along ``dims`` mixes the channels, rather than paths that have the same channels each."""
    others = [dim for dim in range(ids.ndim) if dim not in dims]
    return any(varies(ids, dim) for dim in dims) and not any(varies(ids, dim) for dim in others)


ELEMENTWISE: Mapping[str, Handler] = {
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(PAIRWISE, _pairwise),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(CONSTANT_FACTORIES, _fixed_output),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
}
