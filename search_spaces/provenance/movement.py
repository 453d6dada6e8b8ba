"""Operators that move data: the very same operator runs on the ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces.graph import Operation
from search_spaces.provenance.records import Value
from search_spaces.provenance.state import Handler, Walk, content_of, narrow_views, varies

MOVES = frozenset(
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
#: Movement whose arguments hold the sizes of its result.
RESHAPES = frozenset(["expand", "view", "reshape", "unflatten", "_unsafe_view"])
LITERAL_CUTS = frozenset(["slice", "split", "split_with_sizes", "narrow", "select", "tensor_split"])


def _movement(walk: Walk, operation: Operation) -> Any:
    parts = [walk.env[name] for name in operation.refs()]
    parts = [p for p in parts if isinstance(p, (Value, list, tuple))]
    flat = [v for part in parts for v in (part if isinstance(part, (list, tuple)) else [part]) if isinstance(v, Value)]
    if operation.op == "getitem":
        source = walk.env[operation.args[0].name]
        if not isinstance(source, (list, tuple)):
            return walk.opaque(operation, "indexing by position")
        value = source[operation.args[1]]
        if value.ids is None and value.tensor is None and value.constant is None:
            return Value(ids=walk.fixed(operation.shape))
        return value
    if operation.op == "index_select":
        return _index_select(walk, operation)
    if len(flat) == 1 and flat[0].ids is None:  # a moved parameter or constant
        content = content_of(flat[0])
        moved = operation.target(*_substitute(walk, operation.args, content), **walk.plain(operation.kwargs))
        wrap: Callable[[Tensor], Value] = lambda part: (  # noqa: E731
            Value(tensor=flat[0].tensor, elements=part) if flat[0].tensor else Value(constant=part)
        )
        return wrap(moved) if isinstance(moved, Tensor) else [wrap(part) for part in moved]
    ids = [value.ids if value.ids is not None else walk.fixed(content_of(value).shape) for value in flat]
    for value in flat:
        if value.ids is None and value.tensor is not None:
            walk.opaque_tensors.setdefault(value.tensor, f"is moved together with activations {walk.place(operation)}")
    if operation.op in ("cat", "concat"):
        return _concatenation(operation, ids)
    if operation.op in RESHAPES and operation.op != "expand":  # which splits no dimension
        _equal_parts_of_split_dimensions(walk, operation, ids[0])
    if operation.op in ("channel_shuffle", "native_channel_shuffle"):
        groups = int(operation.args[1])
        rows = narrow_views(ids[0]).movedim(1, 0)
        rows = rows.reshape(groups, rows.shape[0] // groups, -1)
        walk.merge(rows[:1].expand_as(rows), rows, f"is shuffled {walk.place(operation)}")
    queue = iter(ids)
    target = torch.ops.aten.reshape.default if operation.op in ("view", "_unsafe_view") else operation.target
    moved = target(*walk.refill(operation.args, queue), **walk.plain(operation.kwargs))
    if operation.op == "chunk":
        return _equal_chunks(walk, operation, moved)
    results = [moved] if isinstance(moved, Tensor) else list(moved)
    if operation.op in LITERAL_CUTS:
        _check_literal_cut(walk, operation, ids[0], results)
    values = [Value(ids=part) for part in results]
    return values[0] if isinstance(moved, Tensor) else values


def _substitute(walk: Walk, args: Any, content: Tensor) -> Any:
    return walk.refill(args, iter([content]))


def _concatenation(operation: Operation, ids: list[Tensor]) -> Value:
    dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    dim = int(dim) % ids[0].ndim
    compact = [narrow_views(part) for part in ids]
    shape = list(torch.broadcast_shapes(*[p.narrow(dim, 0, 1).shape for p in compact]))
    parts = [c.expand(*shape[:dim], p.shape[dim], *shape[dim + 1 :]) for c, p in zip(compact, ids, strict=True)]
    joined = torch.cat(parts, dim)
    full = list(ids[0].shape)
    full[dim] = joined.shape[dim]
    return Value(ids=joined.expand(full))


def _index_select(walk: Walk, operation: Operation) -> Any:
    value, index = walk.value(operation.args[0]), walk.value(operation.args[2])
    if value.ids is None or index.constant is None:
        return walk.opaque(operation, "operator 'index_select' by a buffer holds channel numbers")
    if varies(value.ids, int(operation.args[1])):
        walk.freeze(value.ids, f"is selected by literal channel numbers {walk.place(operation)}")
    return Value(ids=value.ids.index_select(int(operation.args[1]), index.constant))


def _equal_chunks(walk: Walk, operation: Operation, chunks: Sequence[Tensor]) -> list[Value]:
    """Couple position j of every chunk, so that the pruned tensor falls apart at the same places."""
    dim = operation.args[2] if len(operation.args) > 2 else 0
    for part in chunks[1:]:
        if part.shape != chunks[0].shape:
            for ids in chunks:
                walk.freeze(ids, f"is split into unequal chunks {walk.place(operation)}")
            break
        if varies(torch.cat([narrow_views(c) for c in (chunks[0], part)], int(dim)), int(dim)):
            walk.merge(narrow_views(chunks[0]), narrow_views(part), f"shares a chunk {walk.place(operation)}")
    return [Value(ids=part) for part in chunks]


def _equal_parts_of_split_dimensions(walk: Walk, operation: Operation, ids: Tensor) -> None:
    """Couple what a view that splits the channel dimension into (parts, rest) needs to keep its meaning.

    Where code writes the number of parts, every part must lose the same; where it leaves that number open (-1), whole
    parts go.
    """
    target = operation.shape
    written = walk.plain(operation.args[2 if operation.op == "unflatten" else 1])
    offset = int(operation.args[1]) % ids.ndim if operation.op == "unflatten" else 0
    for dim in range(ids.ndim):
        if not varies(ids, dim):
            continue
        before = int(np.prod(ids.shape[:dim], dtype=np.int64))
        size = ids.shape[dim]
        done, axis = 1, 0
        while axis < len(target) and (done < before or target[axis] == 1):
            done *= target[axis]
            axis += 1
        if done != before or axis >= len(target) or target[axis] >= size or size % target[axis]:
            continue  # merged or unchanged
        rows = narrow_views(ids).movedim(dim, 0)
        rows = rows.reshape(target[axis], size // target[axis], -1)
        is_open = 0 <= axis - offset < len(written) and written[axis - offset] == -1
        first = rows[:, :1] if is_open else rows[:1]
        walk.merge(first.expand_as(rows).reshape(-1), rows.reshape(-1), f"is split by a view {walk.place(operation)}")


def _check_literal_cut(walk: Walk, operation: Operation, ids: Tensor, results: Sequence[Tensor]) -> None:
    dim = operation.args[1] if operation.op in ("slice", "narrow", "select") and len(operation.args) > 1 else None
    if dim is None:
        dim = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("dim", 0)
    dim = int(dim) % ids.ndim
    unchanged = len(results) == 1 and results[0].shape == ids.shape
    if not unchanged and varies(ids, dim):
        walk.freeze(ids, f"is cut at a literal channel number by {operation.op!r} {walk.place(operation)}")


def _pad(walk: Walk, operation: Operation) -> Any:
    value = walk.value(operation.args[0])
    if value.ids is None:
        return walk.opaque(operation, "padding of a parameter")
    mode = operation.args[2] if operation.op == "pad" and len(operation.args) > 2 else "constant"
    fill_at = 3 if operation.op == "pad" else 2
    fill = operation.args[fill_at] if len(operation.args) > fill_at else operation.kwargs.get("value")
    widths = walk.plain(operation.args[1])
    ids = value.ids
    if fill not in (None, 0, 0.0):
        walk.freeze(ids, f"is padded with a value other than zero {walk.place(operation)}")
    for k in range(len(widths) // 2):
        dim = ids.ndim - 1 - k
        before, after = int(widths[2 * k]), int(widths[2 * k + 1])
        if before == after == 0:
            continue
        if not varies(ids, dim):
            shape = list(ids.shape)
            shape[dim] += before + after
            ids = ids.narrow(dim, 0, 1).expand(shape)
            continue
        if mode != "constant":
            return walk.opaque(operation, f"padding of channels in mode {mode!r}")
        compact = narrow_views(ids)
        shape = list(compact.shape)
        parts = []
        for width, where in ((before, 0), (0, 1), (after, 2)):
            if where == 1:
                parts.append(compact)
            elif width > 0:
                view = [1] * ids.ndim
                view[dim] = width
                parts.append(walk.fresh(width).reshape(view).expand(*shape[:dim], width, *shape[dim + 1 :]))
        joined = torch.cat(parts, dim)
        full = list(ids.shape)
        full[dim] = joined.shape[dim]
        ids = joined.expand(full)
        if operation.module_type.endswith("ChannelPad"):
            walk.result.pads[operation.module] = walk.along(ids, dim, operation).numpy().astype(np.int64)
        else:
            walk.freeze(ids, f"is padded by a literal number of channels {walk.place(operation)}")
    return Value(ids=ids)


MOVEMENT: Mapping[str, Handler] = {
    **dict.fromkeys(MOVES, _movement),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}
