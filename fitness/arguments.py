"""Arguments of a candidate's operations: values for references, and channel numbers as the genome leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fitness.folding import keep_mask
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, IntArray
from search_spaces.graph import Operation, Ref


def arguments_of(
    operation: Operation,
    values: Mapping[str, Any],
    space: SearchSpace,
    kept: BoolArray,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Any], dict[str, Any]]:
    """Return what ``operation`` is called with in the network of one genome.

    Args:
        operation: Of the dense network.
        values: What has been computed, by name.
        space: Knows which sizes and paddings count channels.
        kept: ``(n_genes,)`` the genome.
        dtype: What the network runs in. The graph was traced in float32, so that it stands there for it, as in the
            conversion of a mask.
    """
    arguments = [_resolve(argument, values, dtype) for argument in operation.args]
    if operation.op == "unflatten" and operation.name in space.view_genes:
        start, sizes = int(arguments[1]), arguments[2]
        genes = space.view_genes[operation.name]
        start %= genes.ndim - len(sizes) + 1  # counted in the tensor that is unflattened
        whole = _kept_sizes(operation.shape, genes, kept)[start : start + len(sizes)]
        arguments[2] = [size if size < 0 else left for size, left in zip(sizes, whole, strict=True)]
    elif operation.name in space.view_genes and len(arguments) > 1:
        arguments[1] = _kept_sizes(arguments[1], space.view_genes[operation.name], kept)
    if operation.op in ("pad", "constant_pad_nd") and operation.module in space.pad_genes:
        arguments[1] = _kept_padding(arguments[1], keep_mask(space.pad_genes[operation.module], kept))
    return arguments, {key: _resolve(value, values, dtype) for key, value in operation.kwargs.items()}


def _resolve(item: Any, values: Mapping[str, Any], dtype: torch.dtype) -> Any:
    if isinstance(item, Ref):
        return values[item.name]
    if isinstance(item, (list, tuple)):
        return type(item)(_resolve(part, values, dtype) for part in item)
    return dtype if item is torch.float32 else item


def _kept_padding(widths: Sequence[int], kept: BoolArray) -> list[int]:
    """Return pad widths with the channel padding (the outermost non-zero pair) shrunk to the kept channels."""
    result = list(widths)
    pair = max(k for k in range(len(result) // 2) if result[2 * k] or result[2 * k + 1])
    before, after = result[2 * pair], result[2 * pair + 1]
    result[2 * pair] = int(kept[:before].sum())
    result[2 * pair + 1] = int(kept[len(kept) - after :].sum())
    return result


def _kept_sizes(sizes: Sequence[int], genes: IntArray, kept: BoolArray) -> list[int]:
    """Return the sizes of a view with every channel dimension shrunk to the kept slices.

    Args:
        sizes: As the dense network's code gave them.
        genes: Gene of each element, size 1 along dimensions in which it does not vary.
        kept: ``(n_genes,)``.
    """
    keep = keep_mask(genes, kept)
    result = list(sizes)
    for dim, size in enumerate(genes.shape):
        if size > 1 and len(result) == genes.ndim and result[dim] == size:
            result[dim] = int(keep.any(axis=tuple(d for d in range(genes.ndim) if d != dim)).sum())
    return result
