"""A drawing of a network and its coupled channels, as one self-contained SVG.

Layers stand in topological order from top to bottom, parallel ones side by side. Layers whose output channels are
coupled share a colour; frozen ones are grey; a layer inside a removable block has a dashed frame.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from search_spaces.graph import Operation
from search_spaces.groups import KEPT
from search_spaces.provenance import LayerRecord
from search_spaces.space import SearchSpace

_WIDTH, _HEIGHT = 176, 40
_COLUMN, _ROW = 200, 66
_MARGIN, _TOP = 24, 74
_JOINS = {"add": "+", "sub": "-", "mul": "*", "cat": "cat", "concat": "cat", "stack": "stack", "matmul": "@"}
_GREY = "#d5d8dc"


@dataclass
class _Node:
    """A box or a joint: ``sources`` are the nodes it reads, ``level`` and ``column`` its place."""

    label: str
    detail: str = ""
    tip: str = ""
    colour: str = "#ffffff"
    is_joint: bool = False
    is_dashed: bool = False
    sources: list[int] = field(default_factory=list)
    level: int = 0
    column: float = 0.0


def draw_space(space: SearchSpace, title: str = "") -> str:
    """Return an SVG document that shows the layers of the network of ``space`` and how their channels are coupled.

    Args:
        space: The search space.
        title: Name of the network, shown on top.
    """
    nodes = _nodes(space)
    _place(nodes)
    taken: dict[int, list[float]] = {}
    for node in nodes:
        taken.setdefault(node.level, []).append(node.column)
    columns = max(node.column for node in nodes) + 1
    rows = max(node.level for node in nodes) + 1
    width = max(int(2 * _MARGIN + columns * _COLUMN + 60), 720)
    height = _TOP + rows * _ROW + _MARGIN
    n_frozen = sum(item.n_channels for item in space.frozen)
    about = (
        f"{space.n_genes:,} genes in {len(space.groups)} groups; {n_frozen:,} channels frozen; "
        f"{space.macs_dense:,} MACs, {space.n_params_dense:,} parameters"
    )
    size = f'width="{width}" height="{height}"'
    legend = "same colour = coupled channels, grey = frozen, dashed = removable block"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} font-family="sans-serif">',
        f'<rect {size} fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="26" font-size="17" font-weight="600">{escape(title or "search space")}</text>',
        f'<text x="{_MARGIN}" y="43" font-size="12" fill="#566573">{escape(about)}</text>',
        f'<text x="{_MARGIN}" y="59" font-size="12" fill="#566573">{escape(legend)}</text>',
        *[_edge(nodes[source], node, taken) for node in nodes for source in node.sources],
        *[_box(node) for node in nodes],
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _nodes(space: SearchSpace) -> list[_Node]:
    """Return layers, joints, inputs and outputs in topological order."""
    colours = _colours(len(space.groups))
    group_of_gene = [index for index, group in enumerate(space.groups) for _ in range(group.size)]
    shares = space.macs_cost.group_share(space.lattice.sizes).tolist()
    layers = {layer.operation: layer for layer in space.layers}
    in_blocks = {layer for block in space.blocks for layer in block.layers}
    nodes: list[_Node] = []
    made_by: dict[str, list[int]] = {}
    for name, shape in zip(space.graph.inputs, space.graph.input_shapes, strict=True):
        made_by[name] = [len(nodes)]
        nodes.append(_Node(name, " x ".join(str(size) for size in shape[1:]), "input"))
    for operation in space.graph.operations:
        sources = list(dict.fromkeys(node for name in operation.refs() for node in made_by.get(name, ())))
        made_by[operation.name] = sources
        if operation.name in layers:
            node = _layer_node(space, layers[operation.name], operation, group_of_gene, colours, shares)
            node.is_dashed = layers[operation.name].module in in_blocks
        elif operation.op in _JOINS and len(sources) > 1:
            node = _Node(_JOINS[operation.op], tip=f"{operation.op} in {operation.module or 'forward'}", is_joint=True)
        else:
            continue
        node.sources = sources
        made_by[operation.name] = [len(nodes)]
        nodes.append(node)
    ends = list(dict.fromkeys(node for name in space.graph.outputs for node in made_by.get(name, ())))
    nodes.append(_Node("output", tip="output", sources=ends))
    return nodes


def _layer_node(
    space: SearchSpace,
    layer: LayerRecord,
    operation: Operation,
    group_of_gene: Sequence[int],
    colours: Sequence[str],
    shares: Sequence[float],
) -> _Node:
    weight = layer.weight or ""
    made = space.slot_genes.get((weight, 1 if layer.is_transposed and not layer.is_depthwise else 0))
    n_out = operation.shape[1 if operation.op.startswith("conv") else -1]
    kind = operation.op.replace("_transpose", "T ").replace("conv", "conv ")
    detail = f"{kind}{', depthwise' if layer.is_depthwise else f', {layer.groups} groups' if layer.groups > 1 else ''}"
    detail += f" → {n_out}"
    label = layer.module or weight
    genes = np.empty(0, np.int64) if made is None else made[made != KEPT]
    if not len(genes):
        reason = next((item.reason for item in space.frozen if item.name == label), "frozen")
        return _Node(label, detail, f"{label}: {n_out} channels stay ({reason})", _GREY)
    members = [group_of_gene[int(gene)] for gene in genes]
    groups = sorted(set(members), key=lambda index: -members.count(index))
    names = ", ".join(f"{space.groups[g].name} ({space.groups[g].size} genes, {shares[g]:.1%} of MACs)" for g in groups)
    free = len(genes) / len(made) if made is not None else 0.0
    if free < 1:
        detail += f", {1 - free:.0%} frozen"
    return _Node(label, detail, f"{label}: coupled in {names}", colours[groups[0]])


def _colours(n: int) -> list[str]:
    """Return ``n`` light colours, neighbours far apart (golden-angle hues)."""
    colours = []
    for index in range(n):
        red, green, blue = colorsys.hls_to_rgb((index * 0.618034) % 1.0, 0.82 - 0.04 * (index % 3), 0.65)
        colours.append(f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")
    return colours


def _place(nodes: Sequence[_Node]) -> None:
    """Set level (longest way from the inputs) and column (near the sources, no two in one place)."""
    for node in nodes:
        node.level = max((nodes[source].level + 1 for source in node.sources), default=0)
    levels: dict[int, list[_Node]] = {}
    for node in nodes:
        levels.setdefault(node.level, []).append(node)
    for level in sorted(levels):
        row = levels[level]
        wanted = [float(np.mean([nodes[s].column for s in node.sources])) if node.sources else 0.0 for node in row]
        free = -np.inf
        for index in np.argsort(wanted, kind="stable").tolist():
            row[index].column = max(free, wanted[index])
            free = row[index].column + 1
        shift = float(np.mean(wanted)) - float(np.mean([node.column for node in row]))  # fans open to both sides
        for node in row:
            node.column += shift
    leftmost = min(node.column for node in nodes)
    for node in nodes:
        node.column -= leftmost


def _centre(node: _Node) -> tuple[float, float]:
    return _MARGIN + node.column * _COLUMN + _WIDTH / 2, _TOP + node.level * _ROW + _HEIGHT / 2


def _edge(source: _Node, target: _Node, taken: Mapping[int, Sequence[float]]) -> str:
    (x1, y1), (x2, y2) = _centre(source), _centre(target)
    y1 += 11 if source.is_joint else _HEIGHT / 2
    y2 -= 11 if target.is_joint else _HEIGHT / 2
    between = range(source.level + 1, target.level)
    if any(
        abs(column - source.column) < 0.9 for level in between for column in taken[level]
    ):  # passes by what stands between
        reach = _WIDTH / 2 + 16 - abs(x1 - x2) / 2 + 3 * min(len(between), 8)
        bend = (
            max(x1, x2) + max(reach, 16) * 4 / 3
        )  # a cubic curve goes three quarters of the way to its control points
        path = f"M{x1:.0f},{y1:.0f} C{bend:.0f},{y1 + 26:.0f} {bend:.0f},{y2 - 26:.0f} {x2:.0f},{y2:.0f}"
    else:
        last = y1 if not between else y2 - (_ROW - _HEIGHT)
        path = f"M{x1:.0f},{y1:.0f} V{last:.0f} C{x1:.0f},{last + 14:.0f} {x2:.0f},{y2 - 14:.0f} {x2:.0f},{y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#85929e" stroke-width="1.3"/>'


def _box(node: _Node) -> str:
    x, y = _centre(node)
    tip = f"<title>{escape(node.tip)}</title>"
    if node.is_joint:
        return (
            f'<g>{tip}<circle cx="{x:.0f}" cy="{y:.0f}" r="11" fill="#fdfefe" stroke="#85929e"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" font-size="{10 if len(node.label) > 1 else 14}" '
            f'text-anchor="middle">{escape(node.label)}</text></g>'
        )
    dash = ' stroke-dasharray="5 3" stroke-width="1.6"' if node.is_dashed else ""
    label = node.label if len(node.label) <= 26 else "…" + node.label[-25:]
    middle = y + 4 if not node.detail else y - 3
    lines = f'<text x="{x:.0f}" y="{middle:.0f}" font-size="12" text-anchor="middle">{escape(label)}</text>'
    if node.detail:
        lines += (
            f'<text x="{x:.0f}" y="{y + 12:.0f}" font-size="10" fill="#424949" text-anchor="middle">'
            f"{escape(node.detail)}</text>"
        )
    return (
        f'<g>{tip}<rect x="{x - _WIDTH / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" '
        f'fill="{node.colour}" stroke="#5d6d7e"{dash}/>{lines}</g>'
    )
