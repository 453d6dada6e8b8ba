"""A network as one flat list of ATen operations, free of Python control flow and of in-place updates.

The list comes from ``torch.export`` and is all that the search space, the cost model and the fitness engine read. It is
plain data (names, constants, references), so that it can be inspected, printed and sent to a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search_spaces.errors import TraceError


@dataclass(frozen=True)
class Ref:
    """A reference to the value of the operation, input or tensor called ``name``."""

    name: str


@dataclass(frozen=True)
class Operation:
    """One call in the flat graph.

    Attributes:
        name: Unique name of the value that the operation produces.
        target: The operator, an ATen overload or a Python builtin on sizes.
        args: Positional arguments; values of the graph appear as :class:`Ref`, also inside lists.
        kwargs: Keyword arguments, likewise.
        module: Path of the innermost module whose forward made the call; empty for the network itself.
        module_type: Qualified name of that module's class.
        shape: Shape of the produced tensor in the example run, batch size included; empty when it is not one tensor.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str
    module_type: str
    shape: tuple[int, ...]

    @property
    def op(self) -> str:
        """The operator's bare name: ``conv2d`` for ``aten.conv2d.default``, ``getitem`` for the Python builtin."""
        packet = getattr(self.target, "overloadpacket", None)
        return str((packet or self.target).__name__)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields with the operator under its name, since ATen overloads cannot be pickled."""
        target: Any = self.target
        packet = getattr(target, "overloadpacket", None)
        name = None if packet is None else (packet._qualified_op_name, target._overloadname)
        return {**self.__dict__, "target": name or target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look the operator up again."""
        if isinstance(state["target"], tuple):
            qualified, overload = state["target"]
            namespace, bare = qualified.split("::")
            state = {**state, "target": getattr(getattr(getattr(torch.ops, namespace), bare), overload)}
        self.__dict__.update(state)

    def refs(self) -> Iterator[str]:
        """Yield the names of all values that the operation reads, in order of appearance."""
        stack: list[Any] = [*reversed([*self.args, *self.kwargs.values()])]
        while stack:
            item = stack.pop()
            if isinstance(item, Ref):
                yield item.name
            elif isinstance(item, (list, tuple)):
                stack.extend(reversed(item))


@dataclass(frozen=True)
class NetworkGraph:
    """The flat graph of a network in evaluation mode.

    Attributes:
        operations: In topological order.
        inputs: Names of the user inputs, in call order.
        input_shapes: Their example shapes.
        tensors: Graph name to the qualified name of each parameter and buffer; tied tensors share the first name.
        parameters: Qualified names of those that are parameters.
        constants: Graph name to value of tensors that the code made itself.
        outputs: Names of the output values.
        batch_is_dynamic: Whether any batch size >= 2 may be passed.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    tensors: Mapping[str, str]
    parameters: frozenset[str]
    constants: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    batch_is_dynamic: bool

    def consumers(self) -> dict[str, list[Operation]]:
        """Return, for every value, the operations that read it, in order."""
        readers: dict[str, list[Operation]] = {}
        for operation in self.operations:
            for name in dict.fromkeys(operation.refs()):
                readers.setdefault(name, []).append(operation)
        return readers


def as_inputs(example_input: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the example input as a tuple of tensors.

    Raises:
        TraceError: An input is no tensor, or has no batch dimension.
    """
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    for index, value in enumerate(inputs):
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] < 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TraceError(
                f"every example input must be a tensor with a batch dimension first, but input {index} is {got}; "
                "pass for instance torch.zeros(1, 3, 32, 32)"
            )
    return inputs
