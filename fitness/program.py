"""A network as a folded, sliceable program: the engine under every evaluator that looks at activations.

The flat graph of the search space is taken over once: every batch norm that follows a convolution or linear layer is
folded into it, so that a candidate is nothing but a set of sliced weight matrices. Slicing and folding commute, hence
the dense network is folded once and no module is ever copied for a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import SearchSpace
from search_spaces.blocks import ResidualBlock
from search_spaces.genome import BoolArray, IntArray
from search_spaces.graph import Operation, Ref
from search_spaces.groups import KEPT
from search_spaces.provenance import LayerRecord
from search_spaces.surgery import slice_tensor

BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
#: Element-wise operators that may overwrite a value which nobody else reads.
_IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.ops.aten.relu_.default,
    "hardswish": torch.ops.aten.hardswish_.default,
    "silu": torch.ops.aten.silu_.default,
}


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm of the dense network, ``y = scale (x - mean) + shift`` with ``scale = gamma / deviation``.

    Attributes:
        scale: ``(channels,)``.
        shift: ``(channels,)`` its beta: the mean of ``y`` over the images it was trained on.
        deviation: ``(channels,)`` ``sqrt(running_var + epsilon)``.
        epsilon: Added to the variance.
    """

    scale: Tensor
    shift: Tensor
    deviation: Tensor
    epsilon: float


@dataclass(frozen=True)
class FoldedLayer:
    """A convolution or linear layer with its batch norm folded in.

    Attributes:
        name: Name of the operation in the graph.
        record: What the trace knows about it.
        output: Name of the value that holds its result after the folded batch norm.
        weight: ``(out, in / groups, ...)``; a transposed convolution has the input channels first.
        bias: ``(out,)``; zero where the network has none.
        norm: Path of the folded batch norm, or empty.
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
    norm: str
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
        return bool(self.norm) or self.record.bias is not None

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


@dataclass(frozen=True)
class Step:
    """One operation of the program; ``layer`` is set for convolutions and linear layers."""

    operation: Operation
    call: Callable[..., Any]
    source: str
    layer: FoldedLayer | None
    last_readers: tuple[str, ...]


#: Weight and bias per layer operation, and the remaining tensors by graph name.
@dataclass
class SlicedTensors:
    """The tensors of one candidate: ``weights`` and ``biases`` per layer name, ``others`` per graph name.

    ``uncompensated`` names the layers that a compensation left as they were, since their system is ill-conditioned.
    """

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    others: dict[str, Tensor]
    kept: BoolArray
    uncompensated: tuple[str, ...] = ()

    def cast(self, dtype: torch.dtype) -> SlicedTensors:
        """Return the same tensors in ``dtype``; integer ones stay as they are."""

        def convert(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.to(dtype) if t.is_floating_point() else t for name, t in table.items()}

        weights, biases, others = convert(self.weights), convert(self.biases), convert(self.others)
        return SlicedTensors(weights, biases, others, self.kept, self.uncompensated)


def keep_mask(genes: IntArray, genome: BoolArray) -> BoolArray:
    """Return which slices ``genome`` keeps, given the gene of each."""
    return np.where(genes == KEPT, True, genome[np.maximum(genes, 0)])


def largest_activation(program: Program, inputs: Tensor) -> int:
    """Return how many elements the largest value of the dense network has for ``inputs``."""
    largest = inputs.numel()

    def record(name: str, value: Any) -> None:
        del name
        nonlocal largest
        if isinstance(value, Tensor):
            largest = max(largest, value.numel())

    with torch.inference_mode():
        program.run(program.slice(program.space.all_ones()[0]), [inputs], on_value=record)
    return largest


class Program:
    """The folded network. Immutable; safe to run from several threads."""

    def __init__(self, space: SearchSpace, tensors: Mapping[str, Tensor]) -> None:
        """Fold the network that ``space`` was traced from.

        Args:
            space: Its search space.
            tensors: Every parameter and buffer by qualified name, :func:`search_spaces.surgery.named_tensors`; not
                changed.
        """
        self.space = space
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._tensors = {name: tensors[qualified] for name, qualified in space.graph.tensors.items()}
        self.layers: dict[str, FoldedLayer] = {}
        self.steps: list[Step] = []
        self._alias: dict[str, str] = {}
        self._compile()
        used = {name for step in self.steps for name in step.operation.refs()}
        self._others = {name: t for name, t in self._tensors.items() if name in used}

    # ------------------------------------------------------------------ compilation

    def _compile(self) -> None:
        graph = self.space.graph
        consumers = graph.consumers()
        outputs = set(graph.outputs)
        records = {record.operation: record for record in self.space.layers}
        folded: dict[str, Operation] = {}
        for operation in graph.operations:
            if operation.name in records and operation.name not in outputs:
                readers = consumers.get(operation.name, [])
                if len(readers) == 1 and readers[0].op in BATCH_NORMS and readers[0].args[0] == Ref(operation.name):
                    folded[readers[0].name] = operation
        norms = {layer.name: graph_norm for graph_norm, layer in folded.items()}
        by_name = {operation.name: operation for operation in graph.operations}
        for operation in graph.operations:
            if operation.name in folded:
                self._alias[operation.name] = folded[operation.name].name
                continue
            if operation.op == "getitem" and operation.args[0].name in self._alias:
                self._alias[operation.name] = self._alias[operation.args[0].name]
                continue
            layer = None
            if operation.name in records:
                norm = by_name[norms[operation.name]] if operation.name in norms else None
                layer = self._fold(operation, records[operation.name], norm)
                self.layers[operation.name] = layer
            self.steps.append(Step(self._resolved(operation), operation.target, "", layer, ()))
        self.steps = _shortcuts_first(self.steps, [self._alias.get(name, name) for name in graph.outputs])
        self._plan_memory()
        self._removal = {block.name: self._without(block) for block in self.space.blocks}

    def _without(self, block: ResidualBlock) -> tuple[dict[str, str], frozenset[str]]:
        """Return what a removed block changes: its sum becomes the shortcut, and which steps nobody needs any more."""
        branch = self._alias.get(block.branch, block.branch)
        replaced: dict[str, str] = {}
        for step in self.steps:
            operands = [argument.name for argument in step.operation.args[:2] if isinstance(argument, Ref)]
            if step.operation.op == "add" and branch in operands:
                replaced[step.operation.name] = operands[1 - operands.index(branch)]
        needed = set(self.outputs)
        for step in reversed(self.steps):
            name = step.operation.name
            if name in needed:
                needed.update([replaced[name]] if name in replaced else step.operation.refs())
        return replaced, frozenset(s.operation.name for s in self.steps if s.operation.name not in needed)

    def _resolved(self, operation: Operation) -> Operation:
        def resolve(item: Any) -> Any:
            if isinstance(item, Ref):
                return Ref(self._alias.get(item.name, item.name))
            if isinstance(item, (list, tuple)):
                return type(item)(resolve(part) for part in item)
            return item

        return replace(
            operation,
            args=resolve(operation.args),
            kwargs={key: resolve(value) for key, value in operation.kwargs.items()},
        )

    def _fold(self, operation: Operation, record: LayerRecord, norm: Operation | None) -> FoldedLayer:
        weight = self._tensors[operation.args[1].name].float()
        bias_argument = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("bias")
        out_axis = 1 if record.is_transposed else 0
        n_out = weight.shape[out_axis] * (record.groups if record.is_transposed else 1)
        bias = (
            torch.zeros(n_out, device=weight.device)
            if bias_argument is None
            else self._tensors[bias_argument.name].float()
        )
        folded: FoldedNorm | None = None
        if norm is not None:
            folded, shift = self._norm_affine(norm)
            scale = folded.scale
            shape = [1] * weight.ndim
            shape[out_axis] = -1
            factor = scale if not record.is_transposed else scale.reshape(record.groups, -1)
            if record.is_transposed:
                per_input = weight.shape[0] // record.groups
                weight = weight * factor.repeat_interleave(per_input, 0).reshape(
                    *weight.shape[:2], *[1] * (weight.ndim - 2)
                )
            else:
                weight = weight * scale.reshape(shape)
            bias = bias * scale + shift
        assert record.weight is not None
        slots = self.space.slot_genes
        made, read = (record.weight, out_axis), (record.weight, 1 - out_axis)
        out_genes = slots.get(made, np.full(weight.shape[out_axis], KEPT, np.int64))
        if record.is_transposed and record.groups > 1 and not record.is_depthwise:
            out_genes = np.tile(out_genes, record.groups)
        spatial = weight.ndim - 2 if operation.op != "linear" else 0
        same = len(operation.args) > 4 and operation.args[4] == "same"

        def numbers(index: int, default: int) -> tuple[int, ...]:
            value = operation.args[index] if len(operation.args) > index else default
            if isinstance(value, str):
                dilations = numbers(5, 1)
                spans = [gap * (size - 1) for gap, size in zip(dilations, weight.shape[2:], strict=True)]
                value = [span // 2 if value == "same" else 0 for span in spans]
            return tuple([value] * spatial if isinstance(value, int) else (list(value) * spatial)[:spatial])

        return FoldedLayer(
            name=operation.name,
            record=record,
            output=norm.name if norm is not None else operation.name,
            weight=weight.contiguous(),
            bias=bias.contiguous(),
            norm=norm.module if norm is not None else "",
            out_genes=out_genes,
            in_genes=None if record.is_depthwise else slots.get(read),
            stride=numbers(3, 1),
            padding=numbers(4, 0),
            dilation=numbers(7 if record.is_transposed else 5, 1),
            is_lopsided=same and any(size % 2 == 0 for size in weight.shape[2:]),
            is_shared=sum(other.weight == record.weight for other in self.space.layers) > 1,
            folded_norm=folded,
        )

    def _norm_affine(self, norm: Operation) -> tuple[FoldedNorm, Tensor]:
        """Return a batch norm in evaluation mode, and what it adds to ``scale`` times its input."""
        gamma, beta, mean, var = (
            self._tensors[argument.name].float() if isinstance(argument, Ref) else None for argument in norm.args[1:5]
        )
        epsilon = float(norm.args[7] if norm.op == "batch_norm" else norm.args[6])
        assert mean is not None
        assert var is not None
        deviation = torch.sqrt(var + epsilon)
        scale = (torch.ones_like(var) if gamma is None else gamma) / deviation
        beta = torch.zeros_like(mean) if beta is None else beta
        return FoldedNorm(scale, beta, deviation, epsilon), beta - mean * scale

    def _plan_memory(self) -> None:
        """Note after which step each value dies, and let element-wise steps overwrite values that die there."""
        last: dict[str, int] = {}
        readers: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            for name in dict.fromkeys(step.operation.refs()):
                last[name] = index
                readers[name] = readers.get(name, 0) + 1
        outputs = {self._alias.get(name, name) for name in self.space.graph.outputs}
        planned = []
        for index, step in enumerate(self.steps):
            dying = tuple(n for n in dict.fromkeys(step.operation.refs()) if last[n] == index and n not in outputs)
            planned.append(replace(step, last_readers=dying))
        self.steps = planned
        self.outputs = tuple(self._alias.get(name, name) for name in self.space.graph.outputs)

    @cached_property
    def raw_tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers of the network by qualified name, nothing folded; not to be changed."""
        return {qualified: self._tensors[name] for name, qualified in self.space.graph.tensors.items()}

    # ------------------------------------------------------------------ candidates

    def slice(self, genome: BoolArray) -> SlicedTensors:
        """Return the tensors of the network that ``genome`` ``(n_genes,)`` describes, uncompensated."""
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            weights[name], biases[name] = slice_layer(layer, genome)
        qualified = self.space.graph.tensors
        others = {name: slice_tensor(qualified[name], t, self.space, genome) for name, t in self._others.items()}
        return SlicedTensors(weights, biases, others, genome)

    def run(
        self,
        tensors: SlicedTensors,
        inputs: Sequence[Tensor],
        *,
        on_layer: Callable[[FoldedLayer, dict[str, Any]], None] | None = None,
        on_value: Callable[[str, Any], None] | None = None,
        keep: Collection[str] = (),
        env: Mapping[str, Any] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> dict[str, Any]:
        """Run steps ``start`` to ``stop`` and return the values that are alive at the end, outputs included.

        Args:
            tensors: What :meth:`slice` returned, in the dtype of ``inputs``.
            inputs: ``(batch, ...)`` tensors; ignored when ``env`` holds them already.
            on_layer: Called before each layer runs, with the values so far; may replace the layer's tensors.
            on_value: Called after each step with the name and value that it made.
            keep: Names of values that must stay alive.
            env: Values to start from, not changed.
            start: First step.
            stop: Step before which to stop; the end by default.
        """
        values: dict[str, Any] = dict(env or {})
        values.update(zip(self.space.graph.inputs, inputs, strict=False))
        values.update(tensors.others)
        values.update(self.space.graph.constants)
        protected = set(keep) | set(self.outputs) | set(env or ())
        replaced: dict[str, str] = {}
        skipped: set[str] = set()
        for block in self.space.removed_blocks(tensors.kept):
            replaced.update(self._removal[block.name][0])
            skipped |= self._removal[block.name][1]
        for step in self.steps[start:stop]:
            operation = step.operation
            if operation.name in skipped:
                pass
            elif operation.name in replaced:
                values[operation.name] = values[replaced[operation.name]]
            elif step.layer is not None:
                if on_layer is not None:
                    on_layer(step.layer, values)
                values[operation.name] = self._run_layer(step, values, tensors)
            else:
                values[operation.name] = self._run_other(step, values, tensors.kept, protected)
            if on_value is not None and operation.name not in skipped:
                on_value(operation.name, values[operation.name])
            for name in step.last_readers:
                if name not in protected:
                    values.pop(name, None)
        return values

    def _run_layer(self, step: Step, values: Mapping[str, Any], tensors: SlicedTensors) -> Tensor:
        operation, layer = step.operation, step.layer
        assert layer is not None
        weight, bias = tensors.weights[layer.name], tensors.biases[layer.name]
        value = values[operation.args[0].name]
        if operation.op == "linear":
            return nn.functional.linear(value, weight, bias)
        rest = list(operation.args[3:])
        if layer.record.is_depthwise:
            rest = [*rest, *[(1,), (0,), (1,)][len(rest) :]] if len(rest) < 3 else rest
            rest[3:4] = [weight.shape[0] * layer.record.groups // layer.weight.shape[0]]
        result: Tensor = operation.target(
            value, weight, bias, *rest, **{k: v for k, v in operation.kwargs.items() if k != "bias"}
        )
        return result

    def _run_other(self, step: Step, values: dict[str, Any], kept: BoolArray, protected: Collection[str]) -> Any:
        operation = step.operation
        pad_genes = self.space.pad_genes.get(operation.module) if operation.op in ("pad", "constant_pad_nd") else None
        arguments = [_resolve(argument, values) for argument in operation.args]
        if operation.name in self.space.view_genes and len(arguments) > 1:
            arguments[1] = _kept_sizes(arguments[1], self.space.view_genes[operation.name], kept)
        if pad_genes is not None:
            arguments[1] = _kept_padding(arguments[1], keep_mask(pad_genes, kept))
        target = operation.target
        read = operation.args[0].name if operation.args and isinstance(operation.args[0], Ref) else ""
        dies_here = read in step.last_readers and read not in protected and read in self.layers
        if dies_here and operation.op in _IN_PLACE and len(operation.args) == 1:
            target = _IN_PLACE[operation.op]
        return target(*arguments, **{key: _resolve(value, values) for key, value in operation.kwargs.items()})

    def first_step_of(self, genes: IntArray) -> int:
        """Return the index of the first step whose tensors depend on ``genes``; the number of steps if none does.

        Every value before that step is the same for all genomes that agree on the other genes.
        """
        return int(self.first_steps[genes].min(initial=len(self.steps)))

    @cached_property
    def first_steps(self) -> IntArray:
        """``(n_genes,)`` index of the first step whose tensors depend on each gene, or the number of steps."""
        first = np.full(self.space.n_genes, len(self.steps), np.int64)
        n_channel_genes = self.space.n_genes - len(self.space.blocks)
        slots: dict[str, list[IntArray]] = {}
        for (name, _), genes in self.space.slot_genes.items():
            slots.setdefault(name, []).append(genes)
        graph_tensors = self.space.graph.tensors
        for index in reversed(range(len(self.steps))):
            step = self.steps[index]
            names = {graph_tensors[name] for name in step.operation.refs() if name in graph_tensors}
            if step.layer is not None and step.layer.record.weight is not None:
                names.add(step.layer.record.weight)
            touched = [genes for name in names for genes in slots.get(name, [])]
            if step.operation.module in self.space.pad_genes:
                touched.append(self.space.pad_genes[step.operation.module])
            for genes in touched:
                first[genes[genes != KEPT]] = index
            for place, block in enumerate(self.space.blocks):
                replaced, unneeded = self._removal[block.name]
                if step.operation.name in replaced or step.operation.name in unneeded:
                    first[n_channel_genes + place] = index
        return first

    def readers(self) -> dict[str, list[Operation]]:
        """Return, per value, the operations that read it."""
        readers: dict[str, list[Operation]] = {}
        for step in self.steps:
            for name in dict.fromkeys(step.operation.refs()):
                readers.setdefault(name, []).append(step.operation)
        return readers

    def layer_order(self) -> Iterator[FoldedLayer]:
        """Yield the layers in order of execution."""
        return (step.layer for step in self.steps if step.layer is not None)


def _shortcuts_first(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """Return ``steps`` in an order in which a sum's shortcut is ready before the layer that is added to it runs.

    Compensation lets that layer absorb what the shortcut lost, so it has to know it. The order is a depth-first one
    from the outputs; among the two sides of a sum the layer comes last.
    """
    by_name = {step.operation.name: step for step in steps}
    done: dict[str, Step] = {}
    stack = [(name, False) for name in reversed(outputs)]
    while stack:
        name, is_expanded = stack.pop()
        if name in done or name not in by_name:
            continue
        step = by_name[name]
        if is_expanded:
            done[name] = step
            continue
        stack.append((name, True))
        needs = list(dict.fromkeys(step.operation.refs()))
        if step.operation.op == "add":
            needs.sort(key=lambda need: need in by_name and by_name[need].layer is not None)
        stack.extend((need, False) for need in reversed(needs))
    return list(done.values())


def slice_layer(layer: FoldedLayer, genome: BoolArray) -> tuple[Tensor, Tensor]:
    """Return the kept slices ``(weight, bias)`` of one layer."""
    weight, bias = layer.weight, layer.bias
    keep_out = keep_mask(layer.out_genes, genome)
    out_axis, in_axis = (1, 0) if layer.record.is_transposed else (0, 1)
    if layer.record.is_depthwise and layer.record.is_transposed:
        out_axis = 0
    if not keep_out.all():
        index = torch.from_numpy(np.flatnonzero(keep_out)).to(weight.device)
        bias = bias[index]
        per_group = index[: len(index) // layer.record.groups] if out_axis == 1 else index
        weight = weight.index_select(out_axis, per_group)
    if layer.in_genes is not None:
        keep_in = keep_mask(layer.in_genes, genome)
        if not keep_in.all():
            kept = torch.from_numpy(np.flatnonzero(keep_in)).to(weight.device)
            weight = weight.index_select(in_axis, kept)
    return weight, bias


def _resolve(item: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(item, Ref):
        return values[item.name]
    if isinstance(item, (list, tuple)):
        return type(item)(_resolve(part, values) for part in item)
    return item


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
