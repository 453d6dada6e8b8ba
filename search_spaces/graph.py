"""A network as one flat list of ATen operations, free of Python control flow and of in-place updates.

The list comes from ``torch.export`` and is all that the search space, the cost model and the fitness engine read. It is
plain data (names, constants, references), so that it can be inspected, printed and sent to a worker.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind

from search_spaces.errors import TraceError

#: Operators that return a view of their first argument.
VIEW_OPERATORS = frozenset(
    [
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
        "expand",
        "expand_as",
        "flatten",
        "narrow",
        "permute",
        "movedim",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "swapaxes",
        "t",
        "tensor_split",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
    ]
)

_EXPORT_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch.export")


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


@contextlib.contextmanager
def time_limit(seconds: float, doing: str) -> Iterator[None]:
    """Raise :class:`TraceError` when the block takes longer than ``seconds``.

    Works by an interval timer, hence only in the main thread of a POSIX process; elsewhere the block runs without
    limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(_signum: int, _frame: FrameType | None) -> None:
        raise TraceError(
            f"{doing} must end within time_limit_s={seconds:g} s, but did not; raise the limit, or pass a network "
            "without loops that unroll"
        )

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


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


def export_graph(model: nn.Module, example_input: Tensor | Sequence[Tensor]) -> NetworkGraph:
    """Return the flat graph of ``model`` in evaluation mode.

    The batch dimension is left open where the network's code allows it, and fixed to the example's otherwise.

    Args:
        model: Must be in evaluation mode; pass a copy when its forward keeps state.
        example_input: ``(batch, ...)`` tensor, or a sequence of such.

    Raises:
        TraceError: The network cannot be exported (data-dependent control flow, unsupported operator, an error of its
            own).
    """
    inputs = as_inputs(example_input)
    doubled = tuple(torch.cat([value, value]) if value.shape[0] == 1 else value for value in inputs)
    dynamic = ShapesCollection()  # by tensor, so that variadic arguments are no obstacle
    for value in doubled:
        dynamic[value] = {0: Dim.DYNAMIC}
    program: ExportedProgram | None = None
    with torch.no_grad(), warnings.catch_warnings(), _quiet_export():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, doubled, dynamic_shapes=dynamic)
        except TraceError:
            raise
        except Exception:
            program = None
        is_dynamic = program is not None
        if program is None:
            try:
                program = torch.export.export(model, inputs)
            except TraceError:
                raise
            except Exception as error:  # exporters raise whatever they meet
                raise TraceError(_export_failure(model, inputs, error)) from error
        if _has_aliased_updates(program.graph):
            program = program.run_decompositions({})
    return _flatten(model, program, is_dynamic)


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Keep the logs of a failed attempt off the user's terminal; the error that follows says all that matters."""
    loggers = [logging.getLogger(name) for name in _EXPORT_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stderr(io.StringIO()):  # torch prints the half-made graph of a failed attempt
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export_failure(model: nn.Module, inputs: tuple[Tensor, ...], error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    place = next((line for line in reversed(lines) if line.startswith("File ") or " in forward" in line), "")
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
    return (
        f"{type(model).__name__} could not be traced with input {shapes}: {type(error).__name__}: {first}"
        f"{f' ({place})' if place else ''}; a network is traceable when torch.export accepts it: no branch or loop "
        "that depends on values, tensors in and out, and an input of the right shape"
    )


def _bare_name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name != "contiguous_"


def _has_aliased_updates(graph: fx.Graph) -> bool:
    """Whether an in-place operator changes a value that is read later under another name."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or not _is_in_place(_bare_name(node)):
            continue
        base = node.args[0]
        while isinstance(base, fx.Node):
            parent = base.args[0] if base.op == "call_function" and _bare_name(base) in VIEW_OPERATORS else None
            if base is not node.args[0] and any(position[user] > position[node] for user in base.users):
                return True
            if base.op == "placeholder":
                return True
            base = parent
    return False


def _functional(target: Any) -> Any:
    """Return the out-of-place twin of an in-place ATen overload, or ``target`` itself."""
    packet = getattr(target, "overloadpacket", None)
    if packet is None or not _is_in_place(packet.__name__):
        return target
    twin = getattr(torch.ops.aten, packet.__name__[:-1], None)
    if twin is None:
        return target
    overload = target._overloadname
    return getattr(twin, overload) if overload in twin.overloads() else target


def _flatten(model: nn.Module, program: ExportedProgram, is_dynamic: bool) -> NetworkGraph:
    first_name: dict[int, str] = {}
    canonical: dict[str, str] = {}
    named: list[tuple[str, Tensor]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        canonical[name] = first_name.setdefault(id(tensor), name)
    tensors: dict[str, str] = {}
    parameters: set[str] = set()
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    shapes: list[tuple[int, ...]] = []
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for spec in program.graph_signature.input_specs:
        graph_name = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            qualified = canonical.get(str(spec.target), str(spec.target))
            tensors[graph_name] = qualified
            if spec.kind is InputKind.PARAMETER:
                parameters.add(qualified)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[graph_name] = torch.as_tensor(program.constants[str(spec.target)])
        else:
            inputs.append(graph_name)
            shapes.append(_shape_of(values[graph_name]))

    current: dict[str, str] = {}  # after an in-place update, readers of the old name get the new value

    def convert(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Ref(current.get(value.name, value.name))
        if isinstance(value, (list, tuple)):
            return tuple(convert(item) for item in value) if isinstance(value, tuple) else [convert(v) for v in value]
        return value

    operations: list[Operation] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {"": ("", "")}
        path, kind = list(stack.values())[-1]
        operations.append(
            Operation(
                name=node.name,
                target=_functional(node.target),
                args=tuple(convert(argument) for argument in node.args),
                kwargs={key: convert(value) for key, value in node.kwargs.items()},
                module=str(path),
                module_type=kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}",
                shape=_shape_of(node.meta.get("val")),
            )
        )
        if _is_in_place(_bare_name(node)) and isinstance(node.args[0], fx.Node):
            updated = node.args[0].name
            current[updated] = node.name
            for old, new in list(current.items()):
                if new == updated:
                    current[old] = node.name
    mutated = {
        spec.arg.name
        for spec in program.graph_signature.output_specs
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
    }
    outputs = [
        current.get(spec.arg.name, spec.arg.name)
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT and getattr(spec.arg, "name", None) in values
    ]
    graph = NetworkGraph(
        operations=tuple(operations),
        inputs=tuple(inputs),
        input_shapes=tuple(shapes),
        tensors=tensors,
        parameters=frozenset(parameters),
        constants=constants,
        outputs=tuple(outputs),
        batch_is_dynamic=is_dynamic,
    )
    return _without_dead_code(graph, mutated)


def _without_dead_code(graph: NetworkGraph, also_live: set[str]) -> NetworkGraph:
    live = set(graph.outputs) | also_live
    kept: list[Operation] = []
    for operation in reversed(graph.operations):
        if operation.name in live:
            live.update(operation.refs())
            kept.append(operation)
    return replace(graph, operations=tuple(reversed(kept)))


def _shape_of(value: Any) -> tuple[int, ...]:
    """Return the example shape; symbolic sizes are resolved to the hint of the example run."""
    if not isinstance(value, Tensor):
        return ()
    return tuple(_as_int(size) for size in value.shape)


def _as_int(size: Any) -> int:
    if isinstance(size, int):
        return size
    node = getattr(size, "node", None)
    hint = getattr(node, "hint", None)
    return int(hint) if hint is not None else operator.index(size)
