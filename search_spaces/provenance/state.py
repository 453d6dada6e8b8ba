"""The state of one walk, and what every operator family does with ids: couple, freeze, bind to a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from search_spaces.graph import NetworkGraph, Operation, Ref
from search_spaces.provenance.records import FIXED, Provenance, Value


def narrow_views(ids: Tensor) -> Tensor:
    """Return ``ids`` with every stride-0 dimension narrowed to one element."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.stride(dim) == 0:
            ids = ids.narrow(dim, 0, 1)
    return ids


def varies(ids: Tensor, dim: int) -> bool:
    """Return whether different channels lie along ``dim``."""
    if ids.shape[dim] <= 1 or ids.stride(dim) == 0:
        return False
    compact = narrow_views(ids)
    return bool((compact != compact.narrow(dim, 0, 1)).any())


def content_of(value: Value) -> Tensor:
    """Return the element numbers of a parameter, or the content of a constant."""
    content = value.elements if value.elements is not None else value.constant
    if content is None:
        raise LookupError("a value of unknown content entered the operator")
    return content


def indexes_axis(elements: Tensor, shape: Sequence[int], axis: int) -> bool:
    """Whether row ``k`` of ``elements`` holds elements of slice ``k`` of a tensor of ``shape`` along ``axis`` only."""
    below = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    coordinate = (elements // below) % shape[axis]
    return bool((coordinate == torch.arange(elements.shape[0]).unsqueeze(1)).all())


class Walk:
    """The state of one walk over the graph.

    Attributes:
        graph: The flat graph.
        tensor_shapes: Shape of every parameter and buffer by qualified name.
        result: What was found so far.
        env: What is known of each value by name: a :class:`Value`, a sequence of such, or a plain size.
        opaque_tensors: Tensors that were used in a way that forbids to slice them, and the reason.
    """

    def __init__(self, graph: NetworkGraph, tensor_shapes: dict[str, tuple[int, ...]]) -> None:
        self.graph = graph
        self.tensor_shapes = tensor_shapes
        self.result = Provenance()
        self.env: dict[str, Any] = {}
        self.opaque_tensors: dict[str, str] = {}

    @property
    def n_samples(self) -> int:
        """Batch size of the example run."""
        return self.graph.input_shapes[0][0]

    def plain(self, item: Any) -> Any:
        """Replace references to sizes by the sizes; references to tensors stay."""
        if isinstance(item, Ref):
            value = self.env[item.name]
            return item if isinstance(value, (Value, list, tuple)) else value
        if isinstance(item, list):
            return [self.plain(part) for part in item]
        if isinstance(item, tuple):
            return tuple(self.plain(part) for part in item)
        if isinstance(item, dict):
            return {key: self.plain(part) for key, part in item.items()}
        return item

    def value(self, item: Any) -> Value:
        """Return what is known of the argument ``item``; an empty value when it is no tensor."""
        value = self.env[item.name] if isinstance(item, Ref) else None
        return value if isinstance(value, Value) else Value()

    def fixed(self, shape: Sequence[int]) -> Tensor:
        """Return ids of elements that always stay, without memory."""
        return torch.zeros((1,) * len(shape), dtype=torch.int64).expand(tuple(shape))

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new ids."""
        start = self.result.n_ids
        self.result.n_ids += count
        return torch.arange(start, start + count)

    def couple(self, left: Tensor, right: Tensor) -> None:
        """Record that the ids which meet at each position stay or go together."""
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)], dim=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            self.result.couplings.append(torch.unique(pairs, dim=0).numpy())

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Record that every id in ``ids`` always stays."""
        self.freeze_ids(torch.unique(narrow_views(ids)).numpy(), reason)

    def freeze_ids(self, ids: Iterable[int], reason: str) -> None:
        """Likewise, for plain numbers; the first reason wins."""
        for channel in ids:
            if channel != FIXED:
                self.result.frozen.setdefault(int(channel), reason)

    def place(self, operation: Operation) -> str:
        """Return where ``operation`` is called, for messages."""
        return f"in {operation.module!r}" if operation.module else "in the network's own forward"

    def opaque(self, operation: Operation, reason: str) -> Any:
        """Freeze everything that enters ``operation`` and hand out fixed elements."""
        where = f"{reason} ({self.place(operation)})"
        for name in operation.refs():
            values = self.env[name]
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(value, Value) and value.ids is not None:
                    self.freeze(value.ids, where)
                elif isinstance(value, Value) and value.tensor is not None:
                    self.opaque_tensors.setdefault(value.tensor, where)
        return Value(ids=self.fixed(operation.shape)) if operation.shape else [Value(ids=None)] * 16

    def bind(self, tensor: str, axis: int, ids: Tensor) -> None:
        """Record that slice ``k`` of ``tensor`` along ``axis`` belongs to ``ids[k]``."""
        known = self.result.slots.get((tensor, axis))
        if known is None:
            self.result.slots[tensor, axis] = ids.contiguous().numpy().astype(np.int64)
            return
        pairs = np.stack([known, ids.numpy()], axis=1)
        fixed = (pairs == FIXED).any(axis=1)
        self.freeze_ids(pairs[fixed].ravel(), f"tensor {tensor!r} is also used with fixed channels")
        self.couple(torch.from_numpy(pairs[~fixed, 0]), torch.from_numpy(pairs[~fixed, 1]))

    def along(self, ids: Tensor, dim: int, operation: Operation) -> Tensor:
        """Return the id of each slice along ``dim``; ids that share a slice are coupled."""
        rows = narrow_views(ids).movedim(dim, 0)
        if rows.shape[0] == 1 and ids.shape[dim] > 1:
            rows = rows.expand(ids.shape[dim], *rows.shape[1:])
        rows = rows.reshape(rows.shape[0], -1)
        first = rows[:, 0]
        if rows.shape[1] > 1:
            first = self.merge(rows[:, :1].expand_as(rows), rows, f"meets other channels {self.place(operation)}")[:, 0]
        return first.clone()

    def uniform(self, ids: Tensor, dims: Iterable[int], operation: Operation) -> Tensor:
        """Return ``ids`` with each of ``dims`` narrowed to one element; ids that meet along them are coupled."""
        for dim in dims:
            if varies(ids, dim):
                first = narrow_views(ids).narrow(dim, 0, 1)
                meets = f"meets other channels {self.place(operation)}"
                ids = self.merge(first.expand_as(narrow_views(ids)), narrow_views(ids), meets)
            ids = ids.narrow(dim, 0, 1)
        return ids

    def merge(self, left: Tensor, right: Tensor, reason: str) -> Tensor:
        """Return the joint ids of two id tensors of one shape; where one side is fixed, the other is frozen."""
        one_fixed = (left == FIXED) != (right == FIXED)
        if one_fixed.any():
            self.freeze(torch.where(left == FIXED, right, left)[one_fixed], reason)
        both = (left != FIXED) & (right != FIXED)
        if both.any():
            self.couple(left[both], right[both])
        return torch.where(left == FIXED, right, left)

    def is_stored(self, argument: Any) -> bool:
        """Whether ``argument`` is a parameter or buffer as it is stored, untouched by any operator."""
        return isinstance(argument, Ref) and argument.name in self.graph.tensors

    def refill(self, item: Any, queue: Any) -> Any:
        """Return ``item`` with tensor references replaced by the next id tensor, sizes by their value."""
        if isinstance(item, Ref):
            value = self.env[item.name]
            return next(queue) if isinstance(value, (Value, list, tuple)) else value
        if isinstance(item, list):
            return [self.refill(part, queue) for part in item]
        if isinstance(item, tuple):
            return tuple(self.refill(part, queue) for part in item)
        return item


#: Returns what is known of the value that an operation makes.
Handler: TypeAlias = Callable[[Walk, Operation], Any]
