"""A network as a folded, sliceable program: the engine under every evaluator that looks at activations.

The flat graph of the search space is taken over once: every batch norm that follows a convolution or linear layer is
folded into it, so that a candidate is nothing but a set of sliced weight matrices. Slicing and folding commute, hence
the dense network is folded once and no module is ever copied for a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitness.arguments import arguments_of
from fitness.compilation import Step, compile_network
from fitness.folding import FoldedLayer, slice_layer
from fitness.small_maps import SmallMapMatrices, convolve_small_maps, is_cheaper_as_matrix
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, IntArray
from search_spaces.graph import Operation, Ref
from search_spaces.groups import KEPT
from search_spaces.surgery import slice_tensor

#: Element-wise operators that may overwrite what a layer made, where nobody else reads it.
_IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.ops.aten.relu_.default,
    "hardswish": torch.ops.aten.hardswish_.default,
    "silu": torch.ops.aten.silu_.default,
}


@dataclass
class SlicedTensors:
    """The tensors of one candidate.

    Attributes:
        weights: By layer name.
        biases: By layer name.
        others: The remaining ones by graph name, those that the network's code made itself among them.
        kept: ``(n_genes,)`` the genome.
        uncompensated: Layers that a compensation left as they were, since their system is ill-conditioned.
        dtype: What the network runs in.
        matrices: Of those of its convolutions that run as matrix products, made when first needed.
    """

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    others: dict[str, Tensor]
    kept: BoolArray
    uncompensated: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    matrices: SmallMapMatrices = field(default_factory=SmallMapMatrices, repr=False, compare=False)

    def cast(self, dtype: torch.dtype) -> SlicedTensors:
        """Return the same tensors in ``dtype``; integer ones stay as they are."""

        def convert(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.to(dtype) if t.is_floating_point() else t for name, t in table.items()}

        weights, biases, others = (convert(table) for table in (self.weights, self.biases, self.others))
        matrices = SmallMapMatrices()
        return replace(self, weights=weights, biases=biases, others=others, dtype=dtype, matrices=matrices)


class Program:
    """The folded network. Immutable; safe to run from several threads.

    Args:
        space: The network's search space.
        tensors: Every parameter and buffer by qualified name, :func:`search_spaces.surgery.named_tensors`; not changed.

    Attributes:
        steps: In order of execution.
        layers: Convolutions and linear layers by name, in the order of the graph.
        outputs: Names of the output values.
    """

    def __init__(self, space: SearchSpace, tensors: Mapping[str, Tensor]) -> None:
        self.space = space
        self._tensors = {name: tensors[qualified].detach() for name, qualified in space.graph.tensors.items()}
        compiled = compile_network(space, self._tensors)
        self.steps, self.layers, self.outputs = compiled.steps, compiled.layers, compiled.outputs
        self._removals = compiled.removals
        used = {name for step in self.steps for name in step.operation.refs()}
        self._others = {name: t for name, t in self._tensors.items() if name in used}
        readers = self.readers()
        self._read_once = {name for name in self.layers if len(readers.get(name, [])) == 1}
        device = next((t.device for t in self._tensors.values()), torch.device("cpu"))
        self._constants = {name: t.to(device) for name, t in space.graph.constants.items()}

    # ------------------------------------------------------------------ what it holds

    @cached_property
    def raw_tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers of the network by qualified name, nothing folded; not to be changed."""
        return {qualified: self._tensors[name] for name, qualified in self.space.graph.tensors.items()}

    @cached_property
    def input_of(self) -> Mapping[str, str]:
        """Name of the value that each layer reads, by layer name."""
        return {step.layer.name: step.operation.args[0].name for step in self.steps if step.layer is not None}

    def layer_order(self) -> Iterator[FoldedLayer]:
        """Yield the layers in order of execution."""
        return (step.layer for step in self.steps if step.layer is not None)

    def readers(self) -> dict[str, list[Operation]]:
        """Return, per value, the operations that read it."""
        readers: dict[str, list[Operation]] = {}
        for step in self.steps:
            for name in dict.fromkeys(step.operation.refs()):
                readers.setdefault(name, []).append(step.operation)
        return readers

    def first_step_of(self, genes: IntArray) -> int:
        """Return the index of the first step whose tensors depend on ``genes``; the number of steps if none does.

        Every value before that step is the same for all genomes that agree on the other genes.
        """
        return int(self.first_steps[genes].min(initial=len(self.steps)))

    @cached_property
    def first_steps(self) -> IntArray:
        """``(n_genes,)`` index of the first step whose tensors depend on each gene, or the number of steps."""
        first = np.full(self.space.n_genes, len(self.steps), np.int64)
        genes_of_tensor: dict[str, list[IntArray]] = {}
        for (name, _), genes in self.space.slot_genes.items():
            genes_of_tensor.setdefault(name, []).append(genes)
        for index in reversed(range(len(self.steps))):
            for genes in self._genes_behind(self.steps[index], genes_of_tensor):
                first[genes[genes != KEPT]] = index
        return first

    def _genes_behind(self, step: Step, genes_of_tensor: Mapping[str, Sequence[IntArray]]) -> Iterator[IntArray]:
        """Yield the genes that decide what ``step`` does."""
        space, operation = self.space, step.operation
        tensors = {space.graph.tensors[name] for name in operation.refs() if name in space.graph.tensors}
        if step.layer is not None and step.layer.record.weight is not None:
            tensors.add(step.layer.record.weight)
        for name in tensors:
            yield from genes_of_tensor.get(name, [])
        if operation.module in space.pad_genes:
            yield space.pad_genes[operation.module]
        for gene, block in enumerate(space.blocks, start=space.n_genes - len(space.blocks)):
            removal = self._removals[block.name]
            if operation.name in removal.replaced or operation.name in removal.unneeded:
                yield np.array([gene])

    # ------------------------------------------------------------------ candidates

    def slice(self, genome: BoolArray) -> SlicedTensors:
        """Return the tensors of the network that ``genome`` ``(n_genes,)`` describes, uncompensated."""
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            weights[name], biases[name] = slice_layer(layer, genome)
        qualified = self.space.graph.tensors
        others = {name: slice_tensor(qualified[name], t, self.space, genome) for name, t in self._others.items()}
        return SlicedTensors(weights, biases, {**self._constants, **others}, genome)

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
        protected = set(keep) | set(self.outputs) | set(env or ())
        replaced: dict[str, str] = {}
        unneeded: set[str] = set()
        for block in self.space.removed_blocks(tensors.kept):
            replaced.update(self._removals[block.name].replaced)
            unneeded |= self._removals[block.name].unneeded
        for step in self.steps[start:stop]:
            name = step.operation.name
            if name not in unneeded:
                if name in replaced:
                    values[name] = values[replaced[name]]
                elif step.layer is not None:
                    if on_layer is not None:
                        on_layer(step.layer, values)
                    values[name] = self._run_layer(step, values, tensors)
                else:
                    values[name] = self._run_other(step, values, tensors, protected)
                if on_value is not None:
                    on_value(name, values[name])
            for dead in step.dying:
                if dead not in protected:
                    values.pop(dead, None)
        return values

    def _run_layer(self, step: Step, values: Mapping[str, Any], tensors: SlicedTensors) -> Tensor:
        operation, layer = step.operation, step.layer
        assert layer is not None
        weight, bias = tensors.weights[layer.name], tensors.biases[layer.name]
        value = values[operation.args[0].name].to(weight.dtype)  # code may have mixed in float32 of its own
        if operation.op == "linear":
            return nn.functional.linear(value, weight, bias)
        if is_cheaper_as_matrix(layer, value):
            return convolve_small_maps(layer, weight, bias, value, tensors.matrices)
        rest = list(operation.args[3:])
        if layer.record.is_depthwise:
            rest = [*rest, *[(1,), (0,), (1,)][len(rest) :]] if len(rest) < 3 else rest
            rest[3:4] = [weight.shape[0] * layer.record.groups // layer.weight.shape[0]]
        kwargs = {name: argument for name, argument in operation.kwargs.items() if name != "bias"}
        result: Tensor = operation.target(value, weight, bias, *rest, **kwargs)
        return result

    def _run_other(self, step: Step, values: dict[str, Any], tensors: SlicedTensors, protected: Collection[str]) -> Any:
        operation = step.operation
        arguments, kwargs = arguments_of(operation, values, self.space, tensors.kept, tensors.dtype)
        target = operation.target
        read = operation.args[0].name if operation.args and isinstance(operation.args[0], Ref) else ""
        is_alone = read in self._read_once and read not in protected  # another reader may have made a view of it
        if is_alone and operation.op in _IN_PLACE and len(operation.args) == 1:
            target = _IN_PLACE[operation.op]
        return target(*arguments, **kwargs)


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
