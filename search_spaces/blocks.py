"""Residual blocks that can be removed as a whole: ``shortcut + branch`` becomes ``shortcut``.

A branch is removable when identity is legal: its sum has the shape of both sides, everything in it depends on the
shortcut's value alone, nothing in it is read elsewhere, and its layers are called nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from search_spaces.graph import NetworkGraph, Operation, Ref
from search_spaces.groups import ChannelGroup, GroupRules
from search_spaces.provenance import LayerRecord

#: Operators that turn a first argument of zeros into zeros.
_ZERO_PRESERVING = frozenset(
    [
        "_to_copy",
        "adaptive_avg_pool2d",
        "alias",
        "avg_pool2d",
        "clone",
        "contiguous",
        "detach",
        "div",
        "dropout",
        "elu",
        "expand",
        "feature_dropout",
        "flatten",
        "gelu",
        "getitem",
        "hardswish",
        "leaky_relu",
        "mean",
        "movedim",
        "neg",
        "permute",
        "relu",
        "reshape",
        "select",
        "silu",
        "slice",
        "softsign",
        "squeeze",
        "sum",
        "tanh",
        "to",
        "transpose",
        "unflatten",
        "unsqueeze",
        "view",
    ]
)
#: Operators whose MACs belong to no layer, so that removing them would change the count by an unknown amount.
_MATRIX_PRODUCTS = frozenset(
    [
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "addbmm",
        "addmm",
        "baddbmm",
        "bilinear",
        "bmm",
        "einsum",
        "gru",
        "lstm",
        "matmul",
        "mm",
        "scaled_dot_product_attention",
    ]
)


@dataclass(frozen=True)
class ResidualBlock:
    """One removable branch.

    Attributes:
        name: Path of the module that holds the branch.
        entry: Name of the value that enters the branch and passes by it.
        branch: Name of the branch's result.
        modules: Paths of the maximal modules that lie wholly inside, in order of execution.
        entering: Those of them that would be handed something else than zeros.
        layers: Paths of the convolutions and linears inside.
        parameters: Qualified names of the parameters that go with it.
    """

    name: str
    entry: str
    branch: str
    modules: tuple[str, ...]
    entering: frozenset[str]
    layers: tuple[str, ...]
    parameters: frozenset[str]


class ZeroBranch(nn.Module):
    """Stands for modules of a removed branch: returns zeros of its input's shape, whatever else is passed."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return zeros like ``x``."""
        return x.new_zeros(x.shape)


def find_blocks(
    graph: NetworkGraph,
    layers: Sequence[LayerRecord],
    rules: GroupRules,
    parameter_names: Sequence[str],
    taken_names: Sequence[str],
) -> tuple[ResidualBlock, ...]:
    """Return the removable residual branches of a network, in order; of nested ones the innermost."""
    finder = _Finder(graph, layers, parameter_names)
    blocks: list[ResidualBlock] = []
    taken = set(taken_names)
    used: set[str] = set()
    for operation in graph.operations:
        block = finder.block_of(operation)
        if block is None or used & block.parameters or _excluded(block, rules):
            continue
        name, count = block.name, 1
        while name in taken:
            count += 1
            name = f"{block.name}#{count}"
        taken.add(name)
        used |= block.parameters
        blocks.append(ResidualBlock(**{**vars(block), "name": name}))
    return tuple(blocks)


def block_groups(blocks: Sequence[ResidualBlock], start: int) -> tuple[ChannelGroup, ...]:
    """Return one group of one gene per block; the first gene is ``start``."""
    return tuple(
        ChannelGroup(block.name, start + index, 1, 1, 0, 1, block.layers, "block") for index, block in enumerate(blocks)
    )


def inner_groups(
    blocks: Sequence[ResidualBlock], groups: Sequence[ChannelGroup], slots: Mapping[tuple[str, int], Any]
) -> tuple[tuple[int, ...], ...]:
    """Return, per block, the indices of the channel groups that live inside it alone."""
    tensors: dict[int, set[str]] = {index: set() for index in range(len(groups))}
    group_of_gene = [index for index, group in enumerate(groups) for _ in range(group.size)]
    for (tensor, _axis), genes in slots.items():
        for gene in {int(gene) for gene in genes if gene >= 0}:
            tensors[group_of_gene[gene]].add(tensor)

    def is_inside(block: ResidualBlock, owned: set[str]) -> bool:
        return bool(owned) and all(any(name.startswith(f"{path}.") for path in block.modules) for name in owned)

    return tuple(
        tuple(i for i, group in enumerate(groups) if group.kind == "channel" and is_inside(block, tensors[i]))
        for block in blocks
    )


def remove_block(small: nn.Module, block: ResidualBlock) -> None:
    """Replace the modules of the branch in ``small``: those at its entry give zeros, the others pass them on."""
    for path in block.modules:
        parent, _, name = path.rpartition(".")
        setattr(small.get_submodule(parent), name, ZeroBranch() if path in block.entering else nn.Identity())


@contextlib.contextmanager
def silenced(model: nn.Module, blocks: Sequence[ResidualBlock]) -> Iterator[None]:
    """Make every module of the ``blocks`` return zeros while the block lasts; its hooks are removed on any exit."""

    def zeros(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.new_zeros(output.shape) if isinstance(output, Tensor) else output

    handles: list[RemovableHandle] = []
    try:
        for block in blocks:
            handles.extend(model.get_submodule(path).register_forward_hook(zeros) for path in block.modules)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _excluded(block: ResidualBlock, rules: GroupRules) -> bool:
    paths = (block.name, *block.layers)

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)

    return matches(rules.protect) or bool(rules.only and not matches(rules.only))


class _Finder:
    """Finds the branch of one sum at a time."""

    def __init__(self, graph: NetworkGraph, layers: Sequence[LayerRecord], parameter_names: Sequence[str]) -> None:
        self.graph = graph
        self.position = {operation.name: index for index, operation in enumerate(graph.operations)}
        self.readers = graph.consumers()
        self.parameter_names = parameter_names
        self.layer_of = {layer.operation: layer for layer in layers}
        self.inside_of: dict[str, list[int]] = {}
        for index, operation in enumerate(graph.operations):
            path = operation.module
            while path and not _is_size(operation):
                self.inside_of.setdefault(path, []).append(index)
                path = path.rpartition(".")[0]

    def block_of(self, operation: Operation) -> ResidualBlock | None:
        """Return the block that ends in ``operation``, if it is a sum of an entry and a branch that depends on it."""
        if operation.op != "add" or operation.kwargs or len(operation.args) != 2:
            return None
        left, right = operation.args
        if not (isinstance(left, Ref) and isinstance(right, Ref)) or left == right:
            return None
        for entry, branch in ((left.name, right.name), (right.name, left.name)):
            block = self._branch(operation, entry, branch)
            if block is not None:
                return block
        return None

    def _branch(self, add: Operation, entry: str, branch: str) -> ResidualBlock | None:
        operations = self.graph.operations
        if branch not in self.position or not self._same_shape(add, entry, branch):
            return None
        inside = self._between(entry, branch)
        if not inside:
            return None
        names = {operations[index].name for index in inside}
        for index in inside:
            operation = operations[index]
            readers = {reader.name for reader in self.readers.get(operation.name, ())}
            if not readers <= names | ({add.name} if operation.name == branch else set()):
                return None
            if operation.op in _MATRIX_PRODUCTS or operation.name in self.graph.outputs:
                return None
        modules = self._maximal_modules(inside)
        covered = {index for path in modules for index in self.inside_of[path]}
        layers = [self.layer_of[operations[i].name] for i in sorted(inside) if operations[i].name in self.layer_of]
        if not layers or any(self.position[layer.operation] not in covered for layer in layers):
            return None
        zeros = self._zeros(inside, covered)
        if branch not in zeros:
            return None
        parameters = frozenset(
            name for name in self.parameter_names if any(name.startswith(f"{path}.") for path in modules)
        )
        if self._read_outside(parameters, names):
            return None
        entering = {path for path in modules if not self._reads(path) <= zeros}
        return ResidualBlock(
            name=_name([layer.module for layer in layers], add.module),
            entry=entry,
            branch=branch,
            modules=modules,
            entering=frozenset(entering),
            layers=tuple(dict.fromkeys(layer.module for layer in layers)),
            parameters=parameters,
        )

    def _same_shape(self, add: Operation, entry: str, branch: str) -> bool:
        operations = self.graph.operations
        shape = operations[self.position[entry]].shape if entry in self.position else None
        return shape is not None and shape == operations[self.position[branch]].shape == add.shape

    def _between(self, entry: str, branch: str) -> set[int] | None:
        """Return the operations from ``entry`` to ``branch``; ``None`` when the branch reads another value too."""
        inside: set[int] = set()
        stack = [branch]
        reaches_entry = False
        start = self.position[entry]
        while stack:
            name = stack.pop()
            if name == entry:
                reaches_entry = True
                continue
            if name in self.graph.tensors or name in self.graph.constants:
                continue
            index = self.position.get(name)
            if index is None:
                return None  # an input of the network
            operation = self.graph.operations[index]
            if index in inside or _is_size(operation):
                continue
            if index < start:
                return None  # depends on what came before the entry
            inside.add(index)
            stack.extend(operation.refs())
        return inside if reaches_entry else None

    def _maximal_modules(self, inside: set[int]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for index in sorted(inside):
            path, best = self.graph.operations[index].module, ""
            while path and set(self.inside_of[path]) <= inside:
                best, path = path, path.rpartition(".")[0]
            if best:
                found[best] = None
        return tuple(found)

    def _read_outside(self, parameters: frozenset[str], names: set[str]) -> bool:
        graph_names = [name for name, qualified in self.graph.tensors.items() if qualified in parameters]
        return any(reader.name not in names for name in graph_names for reader in self.readers.get(name, ()))

    def _zeros(self, inside: set[int], covered: set[int]) -> set[str]:
        """Return the values of a branch that are zero when all its ``covered`` modules return zeros."""
        zeros: set[str] = set()
        for index in sorted(inside):
            operation = self.graph.operations[index]
            flags = [name in zeros for name in operation.refs() if not self._is_plain(name)]
            if (
                index in covered
                or (operation.op in ("mul", "multiply") and any(flags))
                or (
                    operation.op in ("add", "sub", "cat") and len(flags) > 0 and all(flags) and _only_tensors(operation)
                )
                or (operation.op in _ZERO_PRESERVING and flags[:1] == [True])
            ):
                zeros.add(operation.name)
        return zeros

    def _reads(self, path: str) -> set[str]:
        """Return the activations that the calls under module ``path`` read from outside of it."""
        calls = [self.graph.operations[index] for index in self.inside_of[path]]
        made = {operation.name for operation in calls}
        return {
            name for operation in calls for name in operation.refs() if name not in made and not self._is_plain(name)
        }

    def _is_plain(self, name: str) -> bool:
        """Whether a value is a parameter, a constant or a size, and no activation."""
        if name in self.position:
            return _is_size(self.graph.operations[self.position[name]])
        return name in self.graph.tensors or name in self.graph.constants


def _only_tensors(operation: Operation) -> bool:
    """Whether both sides of a sum are tensors; ``x + 1`` does not keep zeros."""
    return operation.op == "cat" or all(isinstance(argument, Ref) for argument in operation.args[:2])


def _is_size(operation: Operation) -> bool:
    return operation.op.startswith("sym_") or (
        not operation.shape and getattr(operation.target, "overloadpacket", None) is None
    )


def _name(layers: Sequence[str], module: str) -> str:
    """Return the path that holds the branch: the module of the sum, or what its layers have in common."""
    if module and all(layer.startswith(f"{module}.") for layer in layers):
        return module
    shared: list[str] = []
    for parts in zip(*(layer.split(".") for layer in layers), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or layers[0]
