"""Convolutions and linear layers with the batch norm behind them folded in, and what a genome keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces import SearchSpace
from search_spaces.cost import made_axis
from search_spaces.genome import BoolArray, IntArray
from search_spaces.graph import Operation, Ref
from search_spaces.groups import KEPT
from search_spaces.provenance import LayerRecord

BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm of the dense network, ``y = scale (x - mean) + shift`` with ``scale = gamma / deviation``.

    Attributes:
        scale: ``(channels,)``.
        shift: ``(channels,)`` its beta: the mean of ``y`` over the images it was trained on.
        deviation: ``(channels,)`` ``sqrt(running_var + epsilon)``.
        epsilon: Added to the variance.
        tensors: Graph names of gamma, beta, running mean and variance; gamma and beta are empty where there are none.
    """

    scale: Tensor
    shift: Tensor
    deviation: Tensor
    epsilon: float
    tensors: tuple[str, str, str, str]


@dataclass(frozen=True)
class FoldedLayer:
    """A convolution or linear layer with its batch norm folded in.

    Attributes:
        name: Name of the operation in the graph.
        record: What the trace knows about it.
        output: Name of the value that holds its result after the folded batch norm.
        weight: ``(out, in / groups, ...)``; a transposed convolution has the input channels first.
        bias: ``(out,)``; zero where the network has none.
        out_genes: ``(out,)`` gene of each output channel, -1 = always kept.
        in_genes: ``(in / groups,)`` gene of each input slice; ``None`` where the input side is not sliced.
        stride: Per spatial dimension; empty for a linear layer, and likewise below.
        padding: Zeros on either side, per spatial dimension.
        dilation: Per spatial dimension.
        is_shared: The network calls it more than once, so its weights cannot follow one call alone.
        is_lopsided: It pads one side more than the other (``padding="same"`` with an even kernel).
        folded_norm: The batch norm that is folded in, or None.
    """

    name: str
    record: LayerRecord
    output: str
    weight: Tensor
    bias: Tensor
    out_genes: IntArray
    in_genes: IntArray | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    is_shared: bool
    is_lopsided: bool
    folded_norm: FoldedNorm | None = None

    @property
    def has_bias(self) -> bool:
        """Whether the network can hold a bias for it: one of its own, or in the batch norm."""
        return self.folded_norm is not None or self.record.bias is not None

    @property
    def is_solvable(self) -> bool:
        """Whether its input weights are those of a plain regression: one call, one group, not transposed."""
        plain = self.record.groups == 1 and not self.record.is_transposed
        plain = plain and not self.is_shared and not self.is_lopsided
        return plain and self.in_genes is not None and len(self.kernel) in (0, 2)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel; empty for a linear layer."""
        return tuple(self.weight.shape[2:])


def keep_mask(genes: IntArray, genome: BoolArray) -> BoolArray:
    """Return which slices ``genome`` keeps, given the gene of each."""
    return np.where(genes == KEPT, True, genome[np.maximum(genes, 0)])


def slice_layer(layer: FoldedLayer, genome: BoolArray) -> tuple[Tensor, Tensor]:
    """Return the kept slices ``(weight, bias)`` of one layer."""
    weight, bias = layer.weight, layer.bias
    keep_out = keep_mask(layer.out_genes, genome)
    out_axis = made_axis(layer.record)
    if not keep_out.all():
        index = torch.from_numpy(np.flatnonzero(keep_out)).to(weight.device)
        bias = bias[index]
        if layer.record.is_depthwise and layer.record.is_transposed:  # (channels, multiplier, ...): a channel at a time
            weight = weight.index_select(0, index[:: weight.shape[1]] // weight.shape[1])
        else:
            per_group = index[: len(index) // layer.record.groups] if out_axis == 1 else index
            weight = weight.index_select(out_axis, per_group)
    if layer.in_genes is not None:
        keep_in = keep_mask(layer.in_genes, genome)
        if not keep_in.all():
            kept = torch.from_numpy(np.flatnonzero(keep_in)).to(weight.device)
            weight = weight.index_select(1 - out_axis, kept)
    return weight, bias


def fold_layer(
    space: SearchSpace,
    tensors: Mapping[str, Tensor],
    operation: Operation,
    record: LayerRecord,
    norm: Operation | None,
) -> FoldedLayer:
    """Return the layer that ``operation`` calls, with ``norm`` folded in.

    Args:
        space: Gives the genes of its slices.
        tensors: Parameters and buffers by graph name.
        operation: A convolution or linear call.
        record: What the trace knows about it.
        norm: The batch norm that alone reads its result, or None.
    """
    weight, bias = _own_tensors(operation, record, tensors)
    folded = None
    if norm is not None:
        folded, shift = _fold_norm(norm, tensors)
        weight = weight * _per_output(folded.scale, weight, record)
        bias = bias * folded.scale + shift
    kernel = tuple(weight.shape[2:])
    out_genes, in_genes = _genes_of(space, record, weight)
    return FoldedLayer(
        name=operation.name,
        record=record,
        output=norm.name if norm is not None else operation.name,
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        out_genes=out_genes,
        in_genes=in_genes,
        stride=_per_dimension(_argument(operation, 3, 1), len(kernel)),
        padding=_padding(operation, kernel),
        dilation=_per_dimension(_argument(operation, 7 if record.is_transposed else 5, 1), len(kernel)),
        is_lopsided=_argument(operation, 4, 0) == "same" and any(size % 2 == 0 for size in kernel),
        is_shared=sum(other.weight == record.weight for other in space.layers) > 1,
        folded_norm=folded,
    )


def _own_tensors(operation: Operation, record: LayerRecord, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return weight and bias in float32, the bias zero where there is none."""
    weight = tensors[operation.args[1].name].float()
    bias = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("bias")
    if bias is not None:
        return weight, tensors[bias.name].float()
    n_out = weight.shape[1] * record.groups if record.is_transposed else weight.shape[0]
    return weight, torch.zeros(n_out, device=weight.device)


def _per_output(scale: Tensor, weight: Tensor, record: LayerRecord) -> Tensor:
    """Return ``scale`` ``(out,)`` in a shape that multiplies the slices of ``weight`` by output channel."""
    taps = [1] * (weight.ndim - 2)
    if not record.is_transposed:
        return scale.reshape(-1, 1, *taps)
    n_inputs = weight.shape[0] // record.groups
    by_input = scale.reshape(record.groups, -1).repeat_interleave(n_inputs, 0)
    return by_input.reshape(*weight.shape[:2], *taps)


def _fold_norm(norm: Operation, tensors: Mapping[str, Tensor]) -> tuple[FoldedNorm, Tensor]:
    """Return a batch norm in evaluation mode, and what it adds to ``scale`` times its input."""
    first, second, third, fourth = (a.name if isinstance(a, Ref) else "" for a in norm.args[1:5])
    names = first, second, third, fourth
    gamma, beta, mean, var = (tensors[name].float() if name else None for name in names)
    epsilon = float(norm.args[7] if norm.op == "batch_norm" else norm.args[6])
    assert mean is not None
    assert var is not None
    deviation = torch.sqrt(var + epsilon)
    scale = (torch.ones_like(var) if gamma is None else gamma) / deviation
    beta = torch.zeros_like(mean) if beta is None else beta
    return FoldedNorm(scale, beta, deviation, epsilon, names), beta - mean * scale


def _genes_of(space: SearchSpace, record: LayerRecord, weight: Tensor) -> tuple[IntArray, IntArray | None]:
    """Return the genes of the output channels, and those of the input slices, None where these are not sliced."""
    assert record.weight is not None
    out_axis = made_axis(record)
    out_genes = space.slot_genes.get((record.weight, out_axis), np.full(weight.shape[out_axis], KEPT, np.int64))
    if record.is_transposed and record.is_depthwise:
        out_genes = np.repeat(out_genes, weight.shape[1])
    elif record.is_transposed and record.groups > 1:
        out_genes = np.tile(out_genes, record.groups)
    return out_genes, None if record.is_depthwise else space.slot_genes.get((record.weight, 1 - out_axis))


def _argument(operation: Operation, index: int, default: int) -> Any:
    return operation.args[index] if len(operation.args) > index else default


def _per_dimension(value: int | Sequence[int], n_dimensions: int) -> tuple[int, ...]:
    """Return one number per spatial dimension, from one for all of them or a list of one or of all."""
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple((numbers * n_dimensions)[:n_dimensions])


def _padding(operation: Operation, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return the zeros on the smaller side of every spatial dimension."""
    value = _argument(operation, 4, 0)
    if not isinstance(value, str):
        return _per_dimension(value, len(kernel))
    if value != "same":
        return (0,) * len(kernel)
    gaps = _per_dimension(_argument(operation, 5, 1), len(kernel))
    return tuple(gap * (size - 1) // 2 for gap, size in zip(gaps, kernel, strict=True))
