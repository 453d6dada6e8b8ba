"""What the walk over the graph finds out, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from search_spaces.genome import IntArray

#: The id of an element that belongs to no removable channel.
FIXED = 0


@dataclass(frozen=True)
class LayerRecord:
    """One call of a convolution or linear layer.

    Attributes:
        operation: Name of the call in the graph.
        module: Path of the module; empty when the call stands in the network's own forward.
        weight: Qualified name of the weight, ``None`` when the weight is computed.
        bias: Qualified name of the bias, or ``None``.
        groups: As in ``torch.nn.Conv2d``; 1 for a linear layer.
        positions: Multiplications per pair of weight slices and sample: kernel elements times output places
            (transposed: input), over everything that the layer is called on, divided by the batch size of the network.
        is_depthwise: Each group has one input channel.
        is_transposed: A transposed convolution, whose weight has the input channels first.
        weight_shape: Of the weight in the dense network.
    """

    operation: str
    module: str
    weight: str | None
    bias: str | None
    groups: int
    positions: float
    is_depthwise: bool
    is_transposed: bool
    weight_shape: tuple[int, ...]


@dataclass
class Value:
    """What is known of one value of the graph.

    ``ids`` is set for activations; ``tensor`` and ``elements`` for parameters (the flat index of each element, moved
    along with the data); ``constant`` for tensors whose content the code made itself.
    """

    ids: Tensor | None = None
    tensor: str | None = None
    elements: Tensor | None = None
    constant: Tensor | None = None


@dataclass
class Provenance:
    """Result of the walk.

    Attributes:
        n_ids: Number of ids handed out, :data:`FIXED` included.
        couplings: Pairs of ids that must be kept or dropped together, ``(n, 2)`` blocks.
        slots: ``(tensor name, axis)`` to the id of each slice along that axis.
        consumer_slots: Those slots whose slices read a channel (input side of a layer).
        producer_slots: Those slots whose slices make a channel.
        frozen: Id to the reason for which it is always kept (the first one wins).
        layers: Every convolution and linear call, in order.
        pads: Module path of a shrinkable pad to the ids of its output channels.
        norms: Module path of a norm layer to the ids of its channels.
        views: Operation that gives a value another shape to the ids of its result, size 1 where they do not vary.
    """

    n_ids: int = 1
    couplings: list[IntArray] = field(default_factory=list)
    slots: dict[tuple[str, int], IntArray] = field(default_factory=dict)
    consumer_slots: dict[tuple[str, int], None] = field(default_factory=dict)
    producer_slots: dict[tuple[str, int], str] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    layers: list[LayerRecord] = field(default_factory=list)
    pads: dict[str, IntArray] = field(default_factory=dict)
    norms: dict[str, IntArray] = field(default_factory=dict)
    views: dict[str, Tensor] = field(default_factory=dict)
