"""From a network to its flat graph, by ``torch.export``: no control flow, no in-place updates, no dead code."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind

from search_spaces.errors import TraceError
from search_spaces.graph import NetworkGraph, Operation, Ref, as_inputs

_EXPORT_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch.export")


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
    doubled = tuple(torch.cat([value, value]) if value.shape[0] == 1 else value.clone() for value in inputs)
    dynamic = ShapesCollection()  # by tensor, so that variadic arguments are no obstacle; it leaves a mark on them
    for value in doubled:
        dynamic[value] = {0: Dim.DYNAMIC}
    program: ExportedProgram | None = None
    with torch.no_grad(), warnings.catch_warnings(), _quiet_export():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, doubled, dynamic_shapes=dynamic)
        except TraceError:
            raise
        except Exception:  # exporters raise whatever they meet; the sizes as they are come next
            program = None
        is_dynamic = program is not None
        if program is None:
            try:
                program = torch.export.export(model, tuple(value.clone() for value in inputs))
            except TraceError:
                raise
            except Exception as error:  # exporters raise whatever they meet
                raise TraceError(_export_failure(model, inputs, error)) from error
        _check_is_flat(model, program.graph)
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


def _check_is_flat(model: nn.Module, graph: fx.Graph) -> None:
    """Check that no operator runs a graph of its own.

    Raises:
        TraceError: One does; the message names it.
    """
    for node in graph.nodes:
        if node.op == "get_attr":
            names = {_bare_name(user) for user in node.users}
            regions = ", ".join(sorted(names)) or node.name
            place = next(reversed((node.meta.get("nn_module_stack") or {"": ("", "")}).values()))[0]
            raise TraceError(
                f"a network must be one flat graph, but {type(model).__name__} holds {regions}"
                f"{f' in {place!r}' if place else ''}; take torch.autocast, torch.cond and the like out of its forward "
                "(autocast may be entered around the call of the network)"
            )


def _bare_name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name != "contiguous_"


def _has_aliased_updates(graph: fx.Graph) -> bool:
    """Whether an in-place operator changes an input, or memory that an earlier value shares and is read from later.

    Values under whose names the updated one is read anyway do not count; see :func:`_operations_of`.
    """
    nodes = list(graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_read = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    parts = _parts(nodes)
    sharing: dict[int, list[fx.Node]] = {}
    current: dict[str, str] = {}
    for node in nodes:
        storage = _storage_of(node)
        if node.op == "call_function" and _is_in_place(_bare_name(node)) and isinstance(node.args[0], fx.Node):
            updated = node.args[0]
            aliases = sharing.get(_storage_of(updated), [])
            if any(alias.op == "placeholder" for alias in aliases):
                return True
            for alias in aliases:
                is_renamed = alias is updated or current.get(alias.name) == updated.name
                is_apart = any(parts[alias].get(whole, part) != part for whole, part in parts[updated].items())
                if last_read[alias] > position[node] and not is_renamed and not is_apart:
                    return True
            _rename(current, updated.name, node.name)
        if storage:
            sharing.setdefault(storage, []).append(node)
    return False


def _parts(nodes: Sequence[fx.Node]) -> dict[fx.Node, dict[fx.Node, int]]:
    """Return, for every value, which part it is, or lies in, of everything that was split into parts before it."""
    parts: dict[fx.Node, dict[fx.Node, int]] = {}
    for node in nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        parts[node] = {}
        if source is None:
            continue
        if node.target is operator.getitem:
            parts[node] = {**parts[source], source: int(node.args[1])}  # type: ignore[arg-type]  # an index
        elif _storage_of(node) in (0, _storage_of(source)):
            parts[node] = parts[source]
    return parts


def _storage_of(node: fx.Node) -> int:
    """Return the identity of the memory that a value lies in, 0 where it is not one tensor."""
    value = node.meta.get("val")
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else 0


def _rename(current: dict[str, str], updated: str, name: str) -> None:
    """Record in ``current`` that ``updated``, and whatever is read under its name, is now the value ``name``."""
    current[updated] = name
    for old, new in list(current.items()):
        if new == updated:
            current[old] = name


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
    """Return the graph that ``program`` of ``model`` holds, in our own terms."""
    signature, canonical = program.graph_signature, _first_names(model)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    tensors: dict[str, str] = {}
    parameters: set[str] = set()
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    for spec in signature.input_specs:
        name = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensors[name] = canonical.get(str(spec.target), str(spec.target))
            if spec.kind is InputKind.PARAMETER:
                parameters.add(tensors[name])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = torch.as_tensor(program.constants[str(spec.target)])
        else:
            inputs.append(name)
    operations, current = _operations_of(program.graph)
    mutated = {
        spec.arg.name
        for spec in signature.output_specs
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
    }
    outputs = [
        current.get(spec.arg.name, spec.arg.name)
        for spec in signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT and getattr(spec.arg, "name", None) in values
    ]
    graph = NetworkGraph(
        operations=tuple(operations),
        inputs=tuple(inputs),
        input_shapes=tuple(_shape_of(values[name]) for name in inputs),
        tensors=tensors,
        parameters=frozenset(parameters),
        constants=constants,
        outputs=tuple(outputs),
        batch_is_dynamic=is_dynamic,
    )
    return _without_dead_code(graph, mutated)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return, for every qualified name of a parameter or buffer, the first name of the same tensor."""
    first_name: dict[int, str] = {}
    named: list[tuple[str, Tensor]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first_name.setdefault(id(tensor), name) for name, tensor in named}


def _operations_of(graph: fx.Graph) -> tuple[list[Operation], dict[str, str]]:
    """Return the calls in ``graph``, and the last value of everything that is updated in place, by its first name."""
    current: dict[str, str] = {}

    def convert(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Ref(current.get(value.name, value.name))
        if isinstance(value, (list, tuple)):
            items = [convert(item) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        return value

    operations: list[Operation] = []
    for node in graph.nodes:
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
            _rename(current, node.args[0].name, node.name)
    return operations, current


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
