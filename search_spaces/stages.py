"""The stages of a network: its groups in the order of execution, cut where something changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

import numpy as np

from search_spaces.errors import OptionError
from search_spaces.genome import IntArray
from search_spaces.space import SearchSpace

STAGINGS: Mapping[str, str] = {
    "resolution": "a stage ends where the size of the maps changes",
    "blocks": "a stage per module that holds the layers, such as a residual block",
    "PATTERN,PATTERN,...": "a stage per pattern of group names; groups that match none form the last stage",
}


@dataclass(frozen=True)
class Stage:
    """Groups that belong together.

    Attributes:
        name: For people; unique among the stages of a network.
        groups: ``(n,)`` ascending indices into ``space.groups``, at least one.
    """

    name: str
    groups: IntArray


def stages_of(space: SearchSpace, staging: str) -> tuple[Stage, ...]:
    """Return the stages of a network, first executed first; every group is in exactly one.

    Args:
        space: Its search space.
        staging: ``resolution``, ``blocks``, or patterns of group names separated by commas (a group belongs to the
            first that it matches).

    Raises:
        OptionError: A pattern is empty or matches no group that is left for it.
    """
    names = [group.name for group in space.groups]
    places = _places(space)
    order = np.argsort([places[name][0] for name in names], kind="stable").tolist()
    if staging == "resolution":
        labels = {index: places[names[index]][1] for index in order}
    elif staging == "blocks":
        labels = {index: _block_of(space, index) for index in order}
    else:
        return _by_patterns(names, staging, order)
    stages: list[Stage] = []
    for label, members in groupby(order, key=lambda index: labels[index]):
        n_before = sum(stage.name.split("#")[0] == label for stage in stages)
        name = label if not n_before else f"{label}#{n_before + 1}"
        stages.append(Stage(name, np.sort(np.array(list(members), np.int64))))
    return tuple(stages)


def _by_patterns(names: Sequence[str], staging: str, order: Sequence[int]) -> tuple[Stage, ...]:
    left = list(order)
    stages = []
    for pattern in (part.strip() for part in staging.split(",")):
        found = [index for index in left if fnmatchcase(names[index], pattern)]
        if not found:
            raise OptionError(
                f"every pattern of stages must match a group that no earlier one does, but {pattern!r} of {staging!r} "
                f"does not; groups: {', '.join(names)} (or give one of {', '.join(list(STAGINGS)[:2])})"
            )
        stages.append(Stage(pattern, np.sort(np.array(found, np.int64))))
        left = [index for index in left if index not in found]
    if left:
        stages.append(Stage("others", np.sort(np.array(left, np.int64))))
    return tuple(stages)


def _places(space: SearchSpace) -> dict[str, tuple[int, str]]:
    """Return, per group name, when its first layer runs and the size of that layer's maps."""
    when = {operation.name: index for index, operation in enumerate(space.graph.operations)}
    shapes = {operation.name: operation.shape for operation in space.graph.operations}
    layers: dict[str, tuple[int, str]] = {}
    for record in space.layers:
        assert record.weight is not None
        size = "x".join(str(side) for side in shapes[record.operation][2:]) or "vector"
        layers.setdefault(record.weight.rpartition(".")[0] or record.weight, (when[record.operation], size))
    inside = {block.name: block.layers for block in space.blocks}
    found = {}
    for group in space.groups:
        members = inside[group.name] if group.kind == "block" else group.layers
        found[group.name] = min(layers[layer] for layer in members if layer in layers)
    return found


def _block_of(space: SearchSpace, index: int) -> str:
    group = space.groups[index]
    return group.name if group.kind == "block" else group.name.rpartition(".")[0] or group.name
