"""From channel provenance to genes: coupled channels become one gene, genes with the same producers one group."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray, IntArray
from search_spaces.provenance import FIXED, Provenance

#: Gene index of a slice that is always kept.
KEPT = -1

_ROUNDING = 1e-9


def kept_slices(genes: IntArray, genome: BoolArray) -> BoolArray:
    """Return which slices of a tensor a genome keeps.

    Args:
        genes: ``(n_slices,)`` gene of each slice, or :data:`KEPT`.
        genome: ``(n_genes,)``, True = keep.
    """
    return np.append(genome, True)[genes]  # KEPT is -1, the appended element


@dataclass(frozen=True)
class ChannelGroup:
    """Genes whose channels live in the same layers: the unit that people read.

    Attributes:
        name: Path of the root layer, the first one that makes these channels.
        start: Index of the first gene.
        size: Number of genes.
        channels_per_gene: Output channels of the root layer that one gene stands for (> 1 in grouped convolutions).
        min_keep: Fewest genes that may be kept.
        step: Kept counts are multiples of it, or ``size``.
        layers: All layers that make these channels; they are coupled.
        kind: ``channel``, or ``block`` for a gene that removes a whole residual block.
    """

    name: str
    start: int
    size: int
    channels_per_gene: int
    min_keep: int
    step: int
    layers: tuple[str, ...]
    kind: str = "channel"

    @property
    def stop(self) -> int:
        """Index behind the last gene."""
        return self.start + self.size

    @property
    def n_channels(self) -> int:
        """Output channels of the root layer that belong to the group."""
        return self.size * self.channels_per_gene


@dataclass(frozen=True)
class FrozenChannels:
    """Channels that no genome may remove, and why."""

    name: str
    n_channels: int
    reason: str


@dataclass(frozen=True)
class GroupRules:
    """Limits on what a genome may remove, as the user gave them.

    Attributes:
        protect: Glob patterns; a group with a matching layer is frozen.
        only: Glob patterns; when given, every group without a matching layer is frozen.
        min_channels: Fewest channels per group: a whole count, or a fraction of the group in (0, 1).
        round_to: Kept channels per group are a multiple of it, or all.
    """

    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    min_channels: int | float = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: ``min_channels`` is not a positive count or a fraction below 1, or ``round_to`` is below 1.
        """
        value = self.min_channels
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not (value >= 1 if isinstance(value, numbers.Integral) else 0 < value < 1):
            raise OptionError(
                "min_channels must be a count >= 1 or a fraction in (0, 1), "
                f"but got min_channels={self.min_channels!r}; pass for instance 8 or 0.1"
            )
        if self.round_to < 1:
            raise OptionError(f"round_to must be >= 1, but got round_to={self.round_to}; pass 1, 4, 8 or 16")

    def min_keep(self, name: str, n_genes: int, channels_per_gene: int) -> tuple[int, int]:
        """Return ``(min_keep, step)`` in genes for one group.

        Raises:
            OptionError: The group has fewer channels than ``min_channels``.
        """
        n_channels = n_genes * channels_per_gene
        is_count = isinstance(self.min_channels, numbers.Integral)
        # what floats round away counts as kept: 0.07 of 100 channels is 7
        wanted = self.min_channels if is_count else math.ceil(float(self.min_channels) * n_channels - _ROUNDING)
        if wanted > n_channels:
            raise OptionError(
                f"min_channels <= n_channels must hold for group {name!r}, but got min_channels={wanted}, "
                f"n_channels={n_channels}; lower min_channels or protect the group"
            )
        step = self.round_to // math.gcd(self.round_to, channels_per_gene)
        keep = math.ceil(max(wanted, 1) / channels_per_gene)
        return min(math.ceil(keep / step) * step, n_genes), step


@dataclass(frozen=True)
class Genes:
    """The genes of a network.

    Attributes:
        groups: In order of their first gene.
        frozen: What is not offered, by layer and reason.
        slot_genes: ``(tensor name, axis)`` to the gene of each slice, :data:`KEPT` where it always stays.
        pad_genes: Module path of a shrinkable pad to the gene of each output channel.
        norm_genes: Module path of a norm layer to the gene of each of its channels.
        view_genes: Operation that gives a value another shape to the gene of each element of its result; size 1 along
            dimensions in which they do not vary.
        gene_ids: Provenance ids of each gene, to freeze it later.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    slot_genes: Mapping[tuple[str, int], IntArray]
    pad_genes: Mapping[str, IntArray]
    norm_genes: Mapping[str, IntArray]
    view_genes: Mapping[str, IntArray]
    gene_ids: tuple[IntArray, ...]

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return self.groups[-1].stop if self.groups else 0


def build_genes(provenance: Provenance, rules: GroupRules) -> Genes:
    """Return the genes of a traced network under ``rules``.

    Raises:
        OptionError: A limit cannot hold for a group.
        UnknownNameError: A pattern matches no layer.
    """
    classes = _classes(provenance)
    n_classes = int(classes.max()) + 1
    reasons = _frozen_classes(provenance, classes)
    producers = _producers(provenance, classes, n_classes)
    for index in range(n_classes):
        if not producers[index]:
            reasons.setdefault(index, "no layer makes these channels")
    signature = _signatures(provenance, classes, n_classes)
    members: dict[bytes, list[int]] = {}
    order = sorted((made[0], index) for index, made in enumerate(producers) if made and index not in reasons)
    for _, index in order:
        members.setdefault(signature[index].tobytes(), []).append(index)

    all_layers = [name for made in producers for _, _, name in made]
    _check_patterns((*rules.protect, *rules.only), all_layers)
    groups: list[ChannelGroup] = []
    gene_of_class = np.full(n_classes, KEPT, np.int64)
    taken: dict[str, int] = {}
    start = 0
    for indices in members.values():
        layers = tuple(dict.fromkeys(name for _, _, name in producers[indices[0]]))
        reason = _excluded(layers, rules)
        if reason is None and len(indices) == 1:
            reason = "all channels of the layer are coupled to each other"
        if reason is not None:
            reasons.update(dict.fromkeys(indices, reason))
            continue
        root = producers[indices[0]][0]
        per_gene = sum(1 for made in producers[indices[0]] if made[0] == root[0])
        taken[layers[0]] = taken.get(layers[0], 0) + 1
        name = layers[0] if taken[layers[0]] == 1 else f"{layers[0]}#{taken[layers[0]]}"
        min_keep, step = rules.min_keep(name, len(indices), per_gene)
        groups.append(ChannelGroup(name, start, len(indices), per_gene, min_keep, step, layers))
        gene_of_class[indices] = np.arange(start, start + len(indices))
        start += len(indices)

    order_of_ids = np.argsort(classes, kind="stable")
    bounds = np.searchsorted(classes[order_of_ids], np.arange(n_classes + 1))
    ids_of_gene: list[IntArray] = [np.empty(0, np.int64)] * start
    for index in np.flatnonzero(gene_of_class != KEPT).tolist():
        ids_of_gene[gene_of_class[index]] = order_of_ids[bounds[index] : bounds[index + 1]]
    return Genes(
        groups=tuple(groups),
        frozen=_report(provenance, classes, reasons),
        slot_genes={slot: gene_of_class[classes[ids]] for slot, ids in provenance.slots.items()},
        pad_genes={path: gene_of_class[classes[ids]] for path, ids in provenance.pads.items()},
        norm_genes={path: gene_of_class[classes[ids]] for path, ids in provenance.norms.items()},
        view_genes={name: gene_of_class[classes[ids.numpy()]] for name, ids in provenance.views.items()},
        gene_ids=tuple(ids_of_gene),
    )


def _classes(provenance: Provenance) -> IntArray:
    """Return the class of every id; :data:`FIXED` is alone in its class."""
    n = provenance.n_ids
    pairs = np.concatenate([np.empty((0, 2), np.int64), *provenance.couplings])
    links = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _frozen_classes(provenance: Provenance, classes: IntArray) -> dict[int, str]:
    reasons = {int(classes[FIXED]): "always present"}
    for channel, reason in provenance.frozen.items():
        reasons.setdefault(int(classes[channel]), reason)
    return reasons


def _producers(provenance: Provenance, classes: IntArray, n_classes: int) -> list[list[tuple[int, int, str]]]:
    """Return, per class, ``(slot order, position, layer)`` of everything that makes its channels."""
    made: list[list[tuple[int, int, str]]] = [[] for _ in range(n_classes)]
    for order, (slot, layer) in enumerate(provenance.producer_slots.items()):
        for position, channel in enumerate(provenance.slots[slot]):
            if channel != FIXED:
                made[classes[channel]].append((order, position, layer))
    return made


def _signatures(provenance: Provenance, classes: IntArray, n_classes: int) -> IntArray:
    """Return how many slices of every slot belong to each class, ``(n_classes, n_slots)``."""
    counts = np.zeros((n_classes, len(provenance.slots)), np.int64)
    for column, ids in enumerate(provenance.slots.values()):
        counts[:, column] = np.bincount(classes[ids], minlength=n_classes)
    return counts


def _check_patterns(patterns: Sequence[str], layers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise UnknownNameError("layer pattern", pattern, dict.fromkeys(layers))


def _excluded(layers: Sequence[str], rules: GroupRules) -> str | None:
    def matches(patterns: Sequence[str]) -> str | None:
        return next((p for p in patterns for layer in layers if fnmatchcase(layer, p)), None)

    hit = matches(rules.protect)
    if hit is not None:
        return f"protected by {hit!r}"
    if rules.only and matches(rules.only) is None:
        return f"not among only={list(rules.only)}"
    return None


def _report(provenance: Provenance, classes: IntArray, reasons: Mapping[int, str]) -> tuple[FrozenChannels, ...]:
    report: list[FrozenChannels] = []
    for slot, layer in provenance.producer_slots.items():
        by_reason: dict[str, int] = {}
        for channel in provenance.slots[slot]:
            reason = reasons.get(int(classes[channel]))
            if reason is not None:
                by_reason[reason] = by_reason.get(reason, 0) + 1
        report.extend(FrozenChannels(layer, count, reason) for reason, count in by_reason.items())
    return tuple(report)
