"""From the flat graph of a network to the steps of a program: what is folded, what runs when, what dies where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fitness.folding import BATCH_NORMS, FoldedLayer, fold_layer
from search_spaces import SearchSpace
from search_spaces.graph import Operation, Ref


@dataclass(frozen=True)
class Step:
    """One operation of the program.

    Attributes:
        operation: What is called, and with what.
        layer: Set for convolutions and linear layers.
        dying: Values that it reads as the last one, outputs left out.
    """

    operation: Operation
    layer: FoldedLayer | None
    dying: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockRemoval:
    """What a program does without a residual block.

    Attributes:
        replaced: The block's sum, with the name of the value that stands for it: the shortcut.
        unneeded: Steps whose values nobody needs any more.
    """

    replaced: Mapping[str, str]
    unneeded: frozenset[str]


@dataclass(frozen=True)
class CompiledNetwork:
    """The steps of a network.

    Attributes:
        steps: In order of execution.
        layers: By the name of their operation, in the order of the graph.
        outputs: Names of the output values.
        removals: By the name of the residual block.
    """

    steps: tuple[Step, ...]
    layers: Mapping[str, FoldedLayer]
    outputs: tuple[str, ...]
    removals: Mapping[str, BlockRemoval]


def compile_network(space: SearchSpace, tensors: Mapping[str, Tensor]) -> CompiledNetwork:
    """Return the steps of the network that ``space`` was traced from, batch norms folded into the layers before them.

    Args:
        space: Its search space.
        tensors: Parameters and buffers by graph name.
    """
    graph = space.graph
    norms = _foldable_norms(space)
    stand_in = _stand_ins(graph.operations, norms)
    records = {record.operation: record for record in space.layers}
    layers: dict[str, FoldedLayer] = {}
    steps: list[Step] = []
    for operation in graph.operations:
        name = operation.name
        if name in stand_in:
            continue
        if name in records:
            layers[name] = fold_layer(space, tensors, operation, records[name], norms.get(name))
        steps.append(Step(_without_updates(_reading(operation, stand_in)), layers.get(name)))
    outputs = tuple(stand_in.get(name, name) for name in graph.outputs)
    ordered = _with_deaths(_shortcuts_first(steps, outputs), outputs)
    removals = {
        block.name: _without(stand_in.get(block.branch, block.branch), ordered, outputs) for block in space.blocks
    }
    return CompiledNetwork(tuple(ordered), layers, outputs, removals)


def _foldable_norms(space: SearchSpace) -> dict[str, Operation]:
    """Return, by layer, the batch norm that is its only reader.

    Its statistics are tensors of its own: with those of the batch, or computed ones, nothing is fixed, and a norm
    behind several layers cannot be taken apart again for each of them.
    """
    consumers, outputs = space.graph.consumers(), set(space.graph.outputs)
    norms: dict[str, Operation] = {}
    for name in [record.operation for record in space.layers if record.operation not in outputs]:
        readers = consumers.get(name, [])
        if len(readers) != 1 or readers[0].op not in BATCH_NORMS or readers[0].args[0] != Ref(name):
            continue
        if _is_by_batch(readers[0]):
            continue
        own = [argument.name for argument in readers[0].args[1:5] if isinstance(argument, Ref)]
        has_statistics = all(isinstance(argument, Ref) for argument in readers[0].args[3:5])
        if has_statistics and all(tensor in space.graph.tensors and len(consumers[tensor]) == 1 for tensor in own):
            norms[name] = readers[0]
    return norms


def _is_by_batch(operation: Operation) -> bool:
    """Return whether ``operation`` is a batch norm in training mode: it normalises by the batch at hand."""
    return operation.op == "batch_norm" and operation.args[5] is not False


def _without_updates(operation: Operation) -> Operation:
    """Return ``operation`` without running statistics where it would only update them: a program changes no tensor."""
    if not _is_by_batch(operation):
        return operation
    return replace(operation, args=(*operation.args[:3], None, None, *operation.args[5:]))


def _stand_ins(operations: Sequence[Operation], norms: Mapping[str, Operation]) -> dict[str, str]:
    """Return, for every value that folding makes superfluous, the layer whose result stands for it."""
    stand_in = {norm.name: layer for layer, norm in norms.items()}
    for operation in operations:
        if operation.op == "getitem" and operation.args[0].name in stand_in:
            stand_in[operation.name] = stand_in[operation.args[0].name]
    return stand_in


def _reading(operation: Operation, stand_in: Mapping[str, str]) -> Operation:
    """Return ``operation`` with every value that it reads replaced by what stands for it."""

    def resolve(item: Any) -> Any:
        if isinstance(item, Ref):
            return Ref(stand_in.get(item.name, item.name))
        if isinstance(item, (list, tuple)):
            return type(item)(resolve(part) for part in item)
        return item

    kwargs = {key: resolve(value) for key, value in operation.kwargs.items()}
    return replace(operation, args=resolve(operation.args), kwargs=kwargs)


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


def _with_deaths(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """Return ``steps`` that know which values nobody reads after them."""
    last = {name: index for index, step in enumerate(steps) for name in step.operation.refs()}
    return [
        replace(
            step,
            dying=tuple(
                name for name in dict.fromkeys(step.operation.refs()) if last[name] == index and name not in outputs
            ),
        )
        for index, step in enumerate(steps)
    ]


def _without(branch: str, steps: Sequence[Step], outputs: Sequence[str]) -> BlockRemoval:
    """Return what changes where the block goes whose residual branch ends in the value ``branch``."""
    replaced: dict[str, str] = {}
    for step in steps:
        operands = [argument.name for argument in step.operation.args[:2] if isinstance(argument, Ref)]
        if step.operation.op == "add" and branch in operands:
            replaced[step.operation.name] = operands[1 - operands.index(branch)]
    needed = set(outputs)
    for step in reversed(steps):
        name = step.operation.name
        if name in needed:
            needed.update([replaced[name]] if name in replaced else step.operation.refs())
    return BlockRemoval(replaced, frozenset(s.operation.name for s in steps if s.operation.name not in needed))
