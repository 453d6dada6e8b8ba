"""Channel provenance: which channel every element of every value comes from.

The flat graph is walked once. Beside each value goes an integer *id tensor* of the same shape that says which channel
produced the element; id 0 is :data:`FIXED`, an element that is always present. Data movement runs the very same operator
on the id tensor, so any reshape, concatenation or padding is right by construction. Element-wise operators on two values
couple the ids that meet; whatever is not understood freezes the ids that enter it, with a reason.

Sources: the idea of dependency groups is Fang et al. 2023, DepGraph; the id tensors are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from search_spaces.errors import TraceError
from search_spaces.genome import IntArray
from search_spaces.graph import NetworkGraph, Operation, Ref

#: The id of an element that belongs to no removable channel.
FIXED = 0

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
MOVEMENT = frozenset(
    [
        "cat",
        "channel_shuffle",
        "chunk",
        "concat",
        "expand",
        "expand_as",
        "flatten",
        "flip",
        "getitem",
        "index_select",
        "movedim",
        "native_channel_shuffle",
        "narrow",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "repeat_interleave",
        "reshape",
        "roll",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "swapaxes",
        "swapdims",
        "t",
        "tensor_split",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "_unsafe_view",
    ]
)
#: Movement that keeps a literal part of a dimension: when it cuts through channels, code holds a channel number.
LITERAL_CUTS = frozenset(["slice", "split", "split_with_sizes", "narrow", "select", "tensor_split"])
CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])
CONSTANT_FACTORIES = frozenset(
    ["zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "arange", "eye"]
)

Pairs: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


@dataclass(frozen=True)
class LayerRecord:
    """One call of a convolution or linear layer.

    Attributes:
        operation: Name of the call in the graph.
        module: Path of the module; empty when the call stands in the network's own forward.
        weight: Qualified name of the weight, ``None`` when the weight is computed.
        bias: Qualified name of the bias, or ``None``.
        groups: As in ``torch.nn.Conv2d``; 1 for a linear layer.
        positions: Multiplications per pair of weight slices: kernel elements times output (transposed: input) positions.
        is_depthwise: Each group has one input channel.
        is_transposed: A transposed convolution, whose weight has the input channels first.
    """

    operation: str
    module: str
    weight: str | None
    bias: str | None
    groups: int
    positions: int
    is_depthwise: bool
    is_transposed: bool


@dataclass
class Value:
    """What is known of one value of the graph.

    ``ids`` is set for activations; ``tensor`` and ``elements`` for parameters (the flat index of each element, moved along
    with the data); ``constant`` for tensors whose content the code made itself.
    """

    ids: Tensor | None = None
    tensor: str | None = None
    elements: Tensor | None = None
    constant: Tensor | None = None


@dataclass
class Provenance:
    """Result of the walk.

    Attributes:
        n_ids: Number of ids handed out, :data:`FIXED` included.
        couplings: Pairs of ids that must be kept or dropped together, ``(n, 2)`` blocks.
        slots: ``(tensor name, axis)`` to the id of each slice along that axis.
        consumer_slots: Those slots whose slices read a channel (input side of a layer).
        producer_slots: Those slots whose slices make a channel.
        frozen: Id to the reason for which it is always kept (the first one wins).
        layers: Every convolution and linear call, in order.
        pads: Module path of a shrinkable pad to the ids of its output channels.
        values: Ids per operation, compressed (stride-0 dimensions kept as views).
    """

    n_ids: int = 1
    couplings: list[Pairs] = field(default_factory=list)
    slots: dict[tuple[str, int], IntArray] = field(default_factory=dict)
    consumer_slots: dict[tuple[str, int], None] = field(default_factory=dict)
    producer_slots: dict[tuple[str, int], str] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    layers: list[LayerRecord] = field(default_factory=list)
    pads: dict[str, IntArray] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


def trace_provenance(graph: NetworkGraph, tensor_shapes: dict[str, tuple[int, ...]]) -> Provenance:
    """Return where every channel of the network goes.

    Args:
        graph: The flat graph.
        tensor_shapes: Shape of every parameter and buffer by qualified name.
    """
    return _Walk(graph, tensor_shapes).run()


def _narrow_views(ids: Tensor) -> Tensor:
    """Return ``ids`` with every stride-0 dimension narrowed to one element."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.stride(dim) == 0:
            ids = ids.narrow(dim, 0, 1)
    return ids


def _varies(ids: Tensor, dim: int) -> bool:
    if ids.shape[dim] <= 1 or ids.stride(dim) == 0:
        return False
    compact = _narrow_views(ids)
    return bool((compact != compact.narrow(dim, 0, 1)).any())


class _Walk:
    """The state of one walk over the graph."""

    def __init__(self, graph: NetworkGraph, tensor_shapes: dict[str, tuple[int, ...]]) -> None:
        self.graph = graph
        self.result = Provenance()
        self.env: dict[str, Any] = {}
        self.tensor_shapes = tensor_shapes
        self.opaque_tensors: dict[str, str] = {}
        self.handlers: dict[str, Callable[[Operation], Any]] = {
            **dict.fromkeys(ACTIVATIONS, self._activation),
            **dict.fromkeys(PAIRWISE, self._pairwise),
            **dict.fromkeys(SPATIAL, self._spatial),
            **dict.fromkeys(MOVEMENT, self._movement),
            **dict.fromkeys(CONVOLUTIONS, self._convolution),
            **dict.fromkeys(CONSTANT_FACTORIES, self._fixed_output),
            **dict.fromkeys(
                ("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), self._channel_norm
            ),
            **dict.fromkeys(("mean", "sum", "amax", "amin"), self._reduction),
            **dict.fromkeys(("pad", "constant_pad_nd"), self._pad),
            "prelu": self._prelu,
            "linear": self._linear,
        }

    def run(self) -> Provenance:
        for name, shape in zip(self.graph.inputs, self.graph.input_shapes, strict=True):
            self.env[name] = Value(ids=self._fixed(shape))
        for name, qualified in self.graph.tensors.items():
            shape = self.tensor_shapes[qualified]
            count = int(np.prod(shape, dtype=np.int64))
            self.env[name] = Value(tensor=qualified, elements=torch.arange(count).reshape(shape))
        for name, constant in self.graph.constants.items():
            self.env[name] = Value(constant=constant)
        with torch.no_grad():
            for operation in self.graph.operations:
                self._step(operation)
        for name in self.graph.outputs:
            value = self.env.get(name)
            if isinstance(value, Value) and value.ids is not None:
                self._freeze(value.ids, "is an output of the network")
        for qualified, reason in self.opaque_tensors.items():
            for (name, _axis), ids in self.result.slots.items():
                if name == qualified:
                    self._freeze_ids(ids, reason)
        return self.result

    def _step(self, operation: Operation) -> None:
        if not any(isinstance(self.env.get(name), (Value, list, tuple)) for name in operation.refs()):
            if operation.shape or operation.op in CONSTANT_FACTORIES:
                self.env[operation.name] = Value(ids=self._fixed(operation.shape))
            else:  # arithmetic on sizes
                self.env[operation.name] = operation.target(
                    *self._plain(operation.args), **self._plain(operation.kwargs)
                )
            return
        handler = self.handlers.get(operation.op)
        if operation.op.startswith("sym_size"):
            value = self._value(operation.args[0])
            self.env[operation.name] = (value.ids if value.ids is not None else _content(value)).shape[
                operation.args[1]
            ]
        elif handler is None:
            self.env[operation.name] = self._opaque(operation, f"operator {operation.op!r} mixes or hides channels")
        else:
            self.env[operation.name] = handler(operation)
        value = self.env[operation.name]
        if isinstance(value, Value) and value.ids is not None:
            self.result.values[operation.name] = value.ids

    # ------------------------------------------------------------------ helpers

    def _plain(self, item: Any) -> Any:
        """Replace references to sizes by the sizes; references to tensors stay."""
        if isinstance(item, Ref):
            value = self.env[item.name]
            return item if isinstance(value, (Value, list, tuple)) else value
        if isinstance(item, list):
            return [self._plain(part) for part in item]
        if isinstance(item, tuple):
            return tuple(self._plain(part) for part in item)
        if isinstance(item, dict):
            return {key: self._plain(part) for key, part in item.items()}
        return item

    def _value(self, item: Any) -> Value:
        value = self.env[item.name] if isinstance(item, Ref) else None
        return value if isinstance(value, Value) else Value()

    def _fixed(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros((1,) * len(shape), dtype=torch.int64).expand(tuple(shape))

    def _fresh(self, count: int) -> Tensor:
        start = self.result.n_ids
        self.result.n_ids += count
        return torch.arange(start, start + count)

    def _couple(self, left: Tensor, right: Tensor) -> None:
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)], dim=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self.result.couplings.append(torch.unique(pairs, dim=0).numpy())

    def _freeze(self, ids: Tensor, reason: str) -> None:
        self._freeze_ids(torch.unique(_narrow_views(ids)).numpy(), reason)

    def _freeze_ids(self, ids: Iterable[int], reason: str) -> None:
        for channel in ids:
            if channel != FIXED:
                self.result.frozen.setdefault(int(channel), reason)

    def _place(self, operation: Operation) -> str:
        return f"in {operation.module!r}" if operation.module else "in the network's own forward"

    def _opaque(self, operation: Operation, reason: str) -> Any:
        """Freeze everything that enters ``operation`` and hand out fixed elements."""
        where = f"{reason} ({self._place(operation)})"
        for name in operation.refs():
            values = self.env[name]
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(value, Value) and value.ids is not None:
                    self._freeze(value.ids, where)
                elif isinstance(value, Value) and value.tensor is not None:
                    self.opaque_tensors.setdefault(value.tensor, where)
        return Value(ids=self._fixed(operation.shape)) if operation.shape else [Value(ids=None)] * 16

    def _bind(self, tensor: str, axis: int, ids: Tensor) -> None:
        """Record that slice ``k`` of ``tensor`` along ``axis`` belongs to ``ids[k]``."""
        known = self.result.slots.get((tensor, axis))
        if known is None:
            self.result.slots[tensor, axis] = ids.contiguous().numpy().astype(np.int64)
            return
        pairs = np.stack([known, ids.numpy()], axis=1)
        fixed = (pairs == FIXED).any(axis=1)
        self._freeze_ids(pairs[fixed].ravel(), f"tensor {tensor!r} is also used with fixed channels")
        self._couple(torch.from_numpy(pairs[~fixed, 0]), torch.from_numpy(pairs[~fixed, 1]))

    def _along(self, ids: Tensor, dim: int, operation: Operation) -> Tensor:
        """Return the id of each slice along ``dim``; ids that share a slice are coupled."""
        rows = _narrow_views(ids).movedim(dim, 0)
        if rows.shape[0] == 1 and ids.shape[dim] > 1:
            rows = rows.expand(ids.shape[dim], *rows.shape[1:])
        rows = rows.reshape(rows.shape[0], -1)
        first = rows[:, 0]
        if rows.shape[1] > 1:
            first = self._merge(rows[:, :1].expand_as(rows), rows, f"meets other channels {self._place(operation)}")[
                :, 0
            ]
        return first.clone()

    def _merge(self, left: Tensor, right: Tensor, reason: str) -> Tensor:
        """Couple two id tensors of one shape; where one side is fixed the other side is frozen. Returns the joint ids."""
        one_fixed = (left == FIXED) != (right == FIXED)
        if one_fixed.any():
            self._freeze(torch.where(left == FIXED, right, left)[one_fixed], reason)
        both = (left != FIXED) & (right != FIXED)
        if both.any():
            self._couple(left[both], right[both])
        return torch.where(left == FIXED, right, left)

    # ------------------------------------------------------------------ operator families

    def _activation(self, operation: Operation) -> Value:
        value = self._value(operation.args[0])
        others = [name for name in operation.refs() if Ref(name) != operation.args[0]]
        if others and operation.op not in ("type_as", "to"):
            return self._opaque(operation, f"operator {operation.op!r} with a tensor argument")  # type: ignore[no-any-return]
        return value

    def _fixed_output(self, operation: Operation) -> Value:
        return Value(ids=self._fixed(operation.shape))

    def _pairwise(self, operation: Operation) -> Any:
        if not all(isinstance(argument, Ref) for argument in operation.args[:2]):
            tensor = next((argument for argument in operation.args[:2] if isinstance(argument, Ref)), None)
            return self._value(tensor)
        left, right = self._value(operation.args[0]), self._value(operation.args[1])
        if left.ids is None and right.ids is None:
            for value in (left, right):
                if value.tensor is not None:
                    self.opaque_tensors.setdefault(value.tensor, f"is computed with {self._place(operation)}")
            return Value(ids=self._fixed(operation.shape))
        if left.ids is None or right.ids is None:
            activation, other = (right, left) if left.ids is None else (left, right)
            assert activation.ids is not None
            return self._with_tensor(operation, activation.ids, other)
        return Value(ids=self._meet(operation, left.ids, right.ids))

    def _meet(self, operation: Operation, left: Tensor, right: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(left.shape, right.shape)
        sides = [left.reshape((1,) * (len(shape) - left.ndim) + left.shape), right]
        sides[1] = right.reshape((1,) * (len(shape) - right.ndim) + right.shape)
        for dim, size in enumerate(shape):
            for this, other in ((0, 1), (1, 0)):
                if sides[this].shape[dim] == 1 and size > 1 and _varies(sides[other], dim):
                    # one element that acts on many channels: it stays, and says nothing about which of them are kept
                    self._freeze(sides[this], f"is broadcast over channels {self._place(operation)}")
                    return sides[other].expand(shape)
        merged = torch.broadcast_tensors(_narrow_views(sides[0]), _narrow_views(sides[1]))
        joint = self._merge(merged[0], merged[1], f"is combined with fixed channels {self._place(operation)}")
        return joint.expand(shape)

    def _with_tensor(self, operation: Operation, ids: Tensor, other: Value) -> Value:
        """Combine an activation with a parameter (sliced along with it) or with a constant (which cannot be sliced)."""
        content = _content(other)
        shape = torch.broadcast_shapes(ids.shape, content.shape)
        ids = ids.expand(shape)
        aligned = content.reshape((1,) * (len(shape) - content.ndim) + content.shape)
        varying = [dim for dim in range(len(shape)) if aligned.shape[dim] > 1 and _varies(ids, dim)]
        if not varying:
            if other.tensor is not None and content.numel() > 1:
                self.opaque_tensors.setdefault(other.tensor, f"meets fixed channels {self._place(operation)}")
            return Value(ids=ids)
        if other.tensor is None or other.elements is None:
            self._freeze(ids, f"meets a constant tensor of channel size {self._place(operation)}")
            return Value(ids=ids)
        dim = varying[0]
        original = self.tensor_shapes[other.tensor]
        elements = aligned.movedim(dim, 0).reshape(aligned.shape[dim], -1)
        axis = next(
            (
                a
                for a, size in enumerate(original)
                if size == aligned.shape[dim] and _indexes_axis(elements, original, a)
            ),
            None,
        )
        if len(varying) > 1 or axis is None:
            self._freeze(ids, f"meets parameter {other.tensor!r} across several dimensions {self._place(operation)}")
            return Value(ids=ids)
        self._bind(other.tensor, axis, self._along(ids, dim, operation))
        return Value(ids=ids)

    def _spatial(self, operation: Operation) -> Any:
        value = self._value(operation.args[0])
        n_dims = SPATIAL[operation.op]
        if value.ids is None or any(_varies(value.ids, value.ids.ndim - 1 - k) for k in range(n_dims)):
            return self._opaque(operation, f"operator {operation.op!r} runs across channels")
        ids = value.ids
        for dim in range(ids.ndim - n_dims, ids.ndim):
            ids = ids.narrow(dim, 0, 1)
        shape = operation.shape or tuple(ids.shape[:-n_dims]) + (1,) * n_dims
        pooled = Value(ids=ids.expand(shape))
        return pooled if operation.shape else [pooled, Value(ids=self._fixed(shape))]

    def _reduction(self, operation: Operation) -> Any:
        value = self._value(operation.args[0])
        dims = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim")
        if value.ids is None or dims is None:
            return self._opaque(operation, f"operator {operation.op!r} over all channels")
        ids = value.ids
        reduced = sorted({int(dim) % ids.ndim for dim in (dims if isinstance(dims, (list, tuple)) else [dims])})
        if not reduced or any(_varies(ids, dim) for dim in reduced):
            return self._opaque(operation, f"operator {operation.op!r} over channels")
        for dim in reduced:
            ids = ids.narrow(dim, 0, 1)
        keep = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("keepdim", False)
        if not keep:
            for dim in reversed(reduced):
                ids = ids.squeeze(dim)
        return Value(ids=ids)

    def _movement(self, operation: Operation) -> Any:
        parts = [self.env[name] for name in operation.refs()]
        parts = [p for p in parts if isinstance(p, (Value, list, tuple))]
        flat = [
            v for part in parts for v in (part if isinstance(part, (list, tuple)) else [part]) if isinstance(v, Value)
        ]
        if operation.op == "getitem":
            source = self.env[operation.args[0].name]
            if not isinstance(source, (list, tuple)):
                return self._opaque(operation, "indexing by position")
            return source[operation.args[1]]
        if operation.op == "index_select":
            return self._index_select(operation)
        if len(flat) == 1 and flat[0].ids is None:  # a moved parameter or constant
            content = _content(flat[0])
            moved = operation.target(*self._substitute(operation.args, content), **self._plain(operation.kwargs))
            wrap: Callable[[Tensor], Value] = lambda part: (  # noqa: E731
                Value(tensor=flat[0].tensor, elements=part) if flat[0].tensor else Value(constant=part)
            )
            return wrap(moved) if isinstance(moved, Tensor) else [wrap(part) for part in moved]
        ids = [value.ids if value.ids is not None else self._fixed(_content(value).shape) for value in flat]
        for value in flat:
            if value.ids is None and value.tensor is not None:
                self.opaque_tensors.setdefault(
                    value.tensor, f"is moved together with activations {self._place(operation)}"
                )
        if operation.op in ("cat", "concat"):
            return self._concatenation(operation, ids)
        if operation.op in ("view", "reshape", "unflatten", "_unsafe_view"):
            self._equal_parts_of_split_dimensions(operation, ids[0])
        queue = iter(ids)
        target = torch.ops.aten.reshape.default if operation.op in ("view", "_unsafe_view") else operation.target
        moved = target(*self._refill(operation.args, queue), **self._plain(operation.kwargs))
        if operation.op == "chunk":
            return self._equal_chunks(operation, moved)
        results = [moved] if isinstance(moved, Tensor) else list(moved)
        if operation.op in LITERAL_CUTS:
            self._check_literal_cut(operation, ids[0], results)
        values = [Value(ids=part) for part in results]
        return values[0] if isinstance(moved, Tensor) else values

    def _substitute(self, args: Any, content: Tensor) -> Any:
        return self._refill(args, iter([content]))

    def _refill(self, item: Any, queue: Any) -> Any:
        """Return ``item`` with tensor references replaced by the next id tensor, sizes by their value."""
        if isinstance(item, Ref):
            value = self.env[item.name]
            return next(queue) if isinstance(value, (Value, list, tuple)) else value
        if isinstance(item, list):
            return [self._refill(part, queue) for part in item]
        if isinstance(item, tuple):
            return tuple(self._refill(part, queue) for part in item)
        return item

    def _concatenation(self, operation: Operation, ids: list[Tensor]) -> Value:
        dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
        dim = int(dim) % ids[0].ndim
        compact = [_narrow_views(part) for part in ids]
        shape = list(torch.broadcast_shapes(*[p.narrow(dim, 0, 1).shape for p in compact]))
        parts = [c.expand(*shape[:dim], p.shape[dim], *shape[dim + 1 :]) for c, p in zip(compact, ids, strict=True)]
        joined = torch.cat(parts, dim)
        full = list(ids[0].shape)
        full[dim] = joined.shape[dim]
        return Value(ids=joined.expand(full))

    def _index_select(self, operation: Operation) -> Any:
        value, index = self._value(operation.args[0]), self._value(operation.args[2])
        if value.ids is None or index.constant is None:
            return self._opaque(operation, "operator 'index_select' by a buffer holds channel numbers")
        if _varies(value.ids, int(operation.args[1])):
            self._freeze(value.ids, f"is selected by literal channel numbers {self._place(operation)}")
        return Value(ids=value.ids.index_select(int(operation.args[1]), index.constant))

    def _equal_chunks(self, operation: Operation, chunks: Sequence[Tensor]) -> list[Value]:
        """Couple position j of every chunk, so that the pruned tensor falls apart at the same places."""
        dim = operation.args[2] if len(operation.args) > 2 else 0
        for part in chunks[1:]:
            if part.shape != chunks[0].shape:
                for ids in chunks:
                    self._freeze(ids, f"is split into unequal chunks {self._place(operation)}")
                break
            if _varies(torch.cat([_narrow_views(c) for c in (chunks[0], part)], int(dim)), int(dim)):
                self._merge(_narrow_views(chunks[0]), _narrow_views(part), f"shares a chunk {self._place(operation)}")
        return [Value(ids=part) for part in chunks]

    def _equal_parts_of_split_dimensions(self, operation: Operation, ids: Tensor) -> None:
        """A view that splits the channel dimension into (parts, rest) keeps its meaning when every part loses the same."""
        target = operation.shape
        for dim in range(ids.ndim):
            if not _varies(ids, dim):
                continue
            before = int(np.prod(ids.shape[:dim], dtype=np.int64))
            size = ids.shape[dim]
            done, axis = 1, 0
            while axis < len(target) and done < before:
                done *= target[axis]
                axis += 1
            if done != before or axis >= len(target) or target[axis] >= size or size % target[axis]:
                continue  # merged or unchanged
            rows = _narrow_views(ids).movedim(dim, 0)
            rows = rows.reshape(target[axis], size // target[axis], -1)
            self._merge(
                rows[:1].expand_as(rows).reshape(-1), rows.reshape(-1), f"is split by a view {self._place(operation)}"
            )

    def _check_literal_cut(self, operation: Operation, ids: Tensor, results: Sequence[Tensor]) -> None:
        dim = operation.args[1] if operation.op in ("slice", "narrow", "select") and len(operation.args) > 1 else None
        if dim is None:
            dim = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("dim", 0)
        dim = int(dim) % ids.ndim
        unchanged = len(results) == 1 and results[0].shape == ids.shape
        if not unchanged and _varies(ids, dim):
            self._freeze(ids, f"is cut at a literal channel number by {operation.op!r} {self._place(operation)}")

    def _pad(self, operation: Operation) -> Any:
        value = self._value(operation.args[0])
        if value.ids is None:
            return self._opaque(operation, "padding of a parameter")
        mode = operation.args[2] if operation.op == "pad" and len(operation.args) > 2 else "constant"
        fill_at = 3 if operation.op == "pad" else 2
        fill = operation.args[fill_at] if len(operation.args) > fill_at else operation.kwargs.get("value")
        widths = self._plain(operation.args[1])
        ids = value.ids
        if fill not in (None, 0, 0.0):
            self._freeze(ids, f"is padded with a value other than zero {self._place(operation)}")
        for k in range(len(widths) // 2):
            dim = ids.ndim - 1 - k
            before, after = int(widths[2 * k]), int(widths[2 * k + 1])
            if before == after == 0:
                continue
            if not _varies(ids, dim):
                shape = list(ids.shape)
                shape[dim] += before + after
                ids = ids.narrow(dim, 0, 1).expand(shape)
                continue
            if mode != "constant":
                return self._opaque(operation, f"padding of channels in mode {mode!r}")
            compact = _narrow_views(ids)
            shape = list(compact.shape)
            parts = []
            for width, where in ((before, 0), (0, 1), (after, 2)):
                if where == 1:
                    parts.append(compact)
                elif width > 0:
                    view = [1] * ids.ndim
                    view[dim] = width
                    parts.append(self._fresh(width).reshape(view).expand(*shape[:dim], width, *shape[dim + 1 :]))
            joined = torch.cat(parts, dim)
            full = list(ids.shape)
            full[dim] = joined.shape[dim]
            ids = joined.expand(full)
            if operation.module_type.endswith("ChannelPad"):
                self.result.pads[operation.module] = self._along(ids, dim, operation).numpy().astype(np.int64)
            else:
                self._freeze(ids, f"is padded by a literal number of channels {self._place(operation)}")
        return Value(ids=ids)

    # ------------------------------------------------------------------ layers

    def _channel_norm(self, operation: Operation) -> Any:
        value = self._value(operation.args[0])
        if value.ids is None:
            return self._opaque(operation, f"operator {operation.op!r} on a parameter")
        if operation.op == "instance_norm" and any(_varies(value.ids, d) for d in range(2, value.ids.ndim)):
            return self._opaque(operation, "instance norm across channels")
        channel_ids = self._along(value.ids, 1, operation)
        for argument in operation.args[1:5]:
            tensor = self._value(argument).tensor
            if tensor is not None:
                self._bind(tensor, 0, channel_ids)
            elif isinstance(argument, Ref):
                self._freeze(value.ids, f"is normalised with a computed tensor {self._place(operation)}")
        if operation.op == "_native_batch_norm_legit_no_training":
            return [value, Value(ids=self._fixed((0,))), Value(ids=self._fixed((0,)))]
        return value

    def _prelu(self, operation: Operation) -> Any:
        value, slope = self._value(operation.args[0]), self._value(operation.args[1])
        if value.ids is None or slope.tensor is None:
            return self._opaque(operation, "PReLU with a computed slope")
        if self.tensor_shapes[slope.tensor] != (1,):
            self._bind(slope.tensor, 0, self._along(value.ids, 1, operation))
        return value

    def _linear(self, operation: Operation) -> Any:
        value = self._value(operation.args[0])
        weight = self._value(operation.args[1])
        if value.ids is None or weight.tensor is None or not self._is_whole(weight):
            return self._opaque(operation, "a linear layer with a computed weight")
        inner = self._along(value.ids, value.ids.ndim - 1, operation)
        self._consume(weight.tensor, 1, inner)
        produced = self._produce(operation, weight.tensor, 0)
        bias = self._bias(operation, produced)
        batch = value.ids.shape[0]
        positions = int(np.prod(value.ids.shape[:-1], dtype=np.int64)) // max(batch, 1)
        self._record(operation, weight.tensor, bias, 1, positions, False, False)
        return Value(ids=produced.expand(*value.ids.shape[:-1], len(produced)))

    def _convolution(self, operation: Operation) -> Any:
        value = self._value(operation.args[0])
        weight = self._value(operation.args[1])
        transposed = operation.op.startswith("conv_transpose")
        groups = operation.args[6] if len(operation.args) > 6 else operation.kwargs.get("groups", 1)
        if value.ids is None or weight.tensor is None or not self._is_whole(weight):
            return self._opaque(operation, "a convolution with a computed weight")
        if any(_varies(value.ids, dim) for dim in range(2, value.ids.ndim)):
            return self._opaque(operation, "a convolution across channels")
        shape = self.tensor_shapes[weight.tensor]
        inner = self._along(value.ids, 1, operation)
        out_axis, in_axis = (1, 0) if transposed else (0, 1)
        kernel = int(np.prod(shape[2:], dtype=np.int64))
        places = value.ids.shape[2:] if transposed else operation.shape[2:]
        positions = kernel * int(np.prod(places, dtype=np.int64))
        is_depthwise = groups > 1 and len(inner) == groups
        if is_depthwise:
            multiplier = shape[1] if transposed else shape[0] // groups
            produced = inner.repeat_interleave(multiplier)
            self._bind(weight.tensor, 0, inner if transposed else produced)
        else:
            if groups > 1:
                self._equal_groups(inner, groups, operation)
            if transposed:
                self._consume(weight.tensor, 0, inner)
                produced = self._fresh(shape[1]).repeat(groups)
                self._bind(weight.tensor, 1, produced[: shape[1]])
                self.result.producer_slots.setdefault((weight.tensor, 1), operation.module or weight.tensor)
            else:
                self._consume(weight.tensor, in_axis, inner[: len(inner) // groups])
                produced = self._produce(operation, weight.tensor, out_axis)
                self._equal_groups(produced, groups, operation)
        bias = self._bias(operation, produced)
        self._record(operation, weight.tensor, bias, groups, positions, is_depthwise, transposed)
        view = produced.reshape(1, -1, *(1,) * (len(operation.shape) - 2))
        return Value(ids=view.expand(operation.shape))

    def _equal_groups(self, ids: Tensor, groups: int, operation: Operation) -> None:
        if groups > 1:
            rows = ids.reshape(groups, -1)
            self._merge(
                rows[:1].expand_as(rows).reshape(-1), rows.reshape(-1), f"shares a group {self._place(operation)}"
            )

    def _consume(self, tensor: str, axis: int, ids: Tensor) -> None:
        self._bind(tensor, axis, ids)
        self.result.consumer_slots[tensor, axis] = None

    def _produce(self, operation: Operation, tensor: str, axis: int) -> Tensor:
        """Hand out the ids of a layer's output channels; a layer called twice makes the same channels twice."""
        count = self.tensor_shapes[tensor][axis]
        produced = self._fresh(count)
        self._bind(tensor, axis, produced)
        self.result.producer_slots.setdefault((tensor, axis), operation.module or tensor)
        return produced

    def _bias(self, operation: Operation, produced: Tensor) -> str | None:
        argument = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("bias")
        if argument is None:
            return None
        bias = self._value(argument)
        if bias.tensor is None or not self._is_whole(bias):
            self._freeze(produced, f"has a computed bias {self._place(operation)}")
            return None
        self._bind(bias.tensor, 0, produced)
        return bias.tensor

    def _is_whole(self, value: Value) -> bool:
        """Whether a parameter arrives as it is stored, not sliced or reshaped."""
        assert value.tensor is not None
        assert value.elements is not None
        shape = self.tensor_shapes[value.tensor]
        return tuple(value.elements.shape) == shape

    def _record(
        self,
        operation: Operation,
        weight: str,
        bias: str | None,
        groups: int,
        positions: int,
        is_depthwise: bool,
        is_transposed: bool,
    ) -> None:
        self.result.layers.append(
            LayerRecord(operation.name, operation.module, weight, bias, groups, positions, is_depthwise, is_transposed)
        )


def _content(value: Value) -> Tensor:
    content = value.elements if value.elements is not None else value.constant
    if content is None:
        raise TraceError(
            "a value that is neither activation, parameter nor constant entered an operator; report this network"
        )
    return content


def _indexes_axis(elements: Tensor, shape: Sequence[int], axis: int) -> bool:
    """Whether row ``k`` of ``elements`` holds exactly elements of slice ``k`` of a tensor of ``shape`` along ``axis``."""
    below = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    coordinate = (elements // below) % shape[axis]
    return bool((coordinate == torch.arange(elements.shape[0]).unsqueeze(1)).all())
