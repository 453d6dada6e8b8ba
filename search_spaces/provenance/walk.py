"""The walk over the graph, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from search_spaces.errors import TraceError
from search_spaces.graph import NetworkGraph, Operation
from search_spaces.provenance.elementwise import CONSTANT_FACTORIES, ELEMENTWISE
from search_spaces.provenance.layers import LAYERS
from search_spaces.provenance.movement import MOVEMENT, RESHAPES
from search_spaces.provenance.records import Provenance, Value
from search_spaces.provenance.state import Handler, Walk, content_of, narrow_views

#: How each operator treats the ids; whatever is missing here freezes what enters it.
HANDLERS: Mapping[str, Handler] = {**ELEMENTWISE, **MOVEMENT, **LAYERS}


def trace_provenance(graph: NetworkGraph, tensor_shapes: dict[str, tuple[int, ...]]) -> Provenance:
    """Return where every channel of the network goes.

    Args:
        graph: The flat graph.
        tensor_shapes: Shape of every parameter and buffer by qualified name.
    """
    walk = Walk(graph, tensor_shapes)
    for name, shape in zip(graph.inputs, graph.input_shapes, strict=True):
        walk.env[name] = Value(ids=walk.fixed(shape))
    for name, qualified in graph.tensors.items():
        shape = tensor_shapes[qualified]
        count = int(np.prod(shape, dtype=np.int64))
        walk.env[name] = Value(tensor=qualified, elements=torch.arange(count).reshape(shape))
    for name, constant in graph.constants.items():
        walk.env[name] = Value(constant=constant)
    with torch.no_grad():
        for operation in graph.operations:
            walk.env[operation.name] = value = _step(walk, operation)
            if isinstance(value, Value) and value.ids is not None and operation.op in RESHAPES:
                walk.result.views[operation.name] = narrow_views(value.ids)
    for operation in graph.operations:
        places = _ids_of_moved(walk, walk.env[operation.name]) if operation.op in RESHAPES else None
        if places is not None:
            walk.result.views[operation.name] = places
    for name in graph.outputs:
        value = walk.env.get(name)
        if isinstance(value, Value) and value.ids is not None:
            walk.freeze(value.ids, "is an output of the network")
    for qualified, reason in walk.opaque_tensors.items():
        for (name, _axis), ids in walk.result.slots.items():
            if name == qualified:
                walk.freeze_ids(ids, reason)
    return walk.result


def _ids_of_moved(walk: Walk, value: object) -> Tensor | None:
    """Return the ids of a parameter that was given another shape, size 1 along dimensions in which they do not vary.

    They are known at the end of the walk, when the parameter has met all that it meets. None for any other value, and
    where not exactly one axis of the parameter is sliced.
    """
    if not isinstance(value, Value) or value.tensor is None or value.elements is None:
        return None
    shape = walk.tensor_shapes[value.tensor]
    axes = [axis for axis in range(len(shape)) if (value.tensor, axis) in walk.result.slots]
    if len(axes) != 1:
        return None
    below = int(np.prod(shape[axes[0] + 1 :], dtype=np.int64))
    places = narrow_views(value.elements) // below % shape[axes[0]]
    return torch.from_numpy(walk.result.slots[value.tensor, axes[0]])[places]


def _step(walk: Walk, operation: Operation) -> object:
    """Return what is known of the value that ``operation`` makes."""
    if not any(isinstance(walk.env.get(name), (Value, list, tuple)) for name in operation.refs()):
        if operation.shape or operation.op in CONSTANT_FACTORIES:
            return Value(ids=walk.fixed(operation.shape))
        return operation.target(*walk.plain(operation.args), **walk.plain(operation.kwargs))  # arithmetic on sizes
    handler = HANDLERS.get(operation.op)
    try:
        if operation.op.startswith("sym_size"):
            value = walk.value(operation.args[0])
            return (value.ids if value.ids is not None else content_of(value)).shape[operation.args[1]]
        if handler is not None:
            return handler(walk, operation)
    except TraceError:
        raise
    except Exception as error:  # an unforeseen form of a known operator costs channels, never the network
        first = (str(error).splitlines() or [""])[0]
        return walk.opaque(operation, f"operator {operation.op!r} was not followed: {type(error).__name__}: {first}")
    return walk.opaque(operation, f"operator {operation.op!r} mixes or hides channels")
