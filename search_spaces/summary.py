"""What a search space says about a network: what may be removed, what is frozen and why, what can be reached."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from search_spaces.groups import ChannelGroup
from search_spaces.space import SearchSpace


@dataclass(frozen=True)
class GroupSummary:
    """One channel group.

    Attributes:
        name: Its root layer; for a block gene the path of the block.
        n_channels: Output channels of the root layer in it.
        channels_per_gene: Channels that stay or go together; more than one in grouped convolutions.
        min_keep: Genes that always stay.
        step: Kept genes are a multiple of it, or all.
        kind: ``channel``, or ``block`` for a gene that removes a whole residual block.
        layers: Every layer whose output channels are coupled in it; of a block, the layers inside.
        macs_share: Share of the dense MACs in layers that it touches; shares overlap, since a layer has two sides.
        params_share: Share of the dense parameters in layers that it touches.
    """

    name: str
    n_channels: int
    channels_per_gene: int
    min_keep: int
    step: int
    kind: str
    layers: tuple[str, ...]
    macs_share: float
    params_share: float


@dataclass(frozen=True)
class FrozenSummary:
    """Channels that cannot be removed, and why."""

    name: str
    n_channels: int
    reason: str


@dataclass(frozen=True)
class SpaceSummary:
    """A search space for people and machines.

    Attributes:
        model: Name of the network.
        input_shape: ``(C, H, W)``.
        n_genes: Bits of a genome.
        log10_size: Decimal logarithm of the number of allowed genomes.
        groups: What may be removed, in order of the network.
        frozen: What may not, and why.
        macs_dense: Multiply-adds per image of the dense network.
        macs_range: Smallest and largest that can be reached.
        macs_share_prunable: Share of the dense MACs in layers that at least one gene changes.
        n_params_dense: Parameters of the dense network.
        n_params_range: Smallest and largest that can be reached.
        params_share_prunable: Share of the parameters in tensors that at least one gene changes.
        activation_bytes_dense: Bytes that convolutions and linear layers write for one image, in float32.
        activation_bytes_range: Smallest and largest that can be reached.
        fingerprint: Identity of the space.
    """

    model: str
    input_shape: tuple[int, ...]
    n_genes: int
    log10_size: float
    groups: tuple[GroupSummary, ...]
    frozen: tuple[FrozenSummary, ...]
    macs_dense: int
    macs_range: tuple[int, int]
    macs_share_prunable: float
    n_params_dense: int
    n_params_range: tuple[int, int]
    params_share_prunable: float
    activation_bytes_dense: int
    activation_bytes_range: tuple[int, int]
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


def summarise_space(space: SearchSpace, model: str, input_shape: tuple[int, ...]) -> SpaceSummary:
    """Return what ``space``, traced from the network ``model``, offers."""
    sizes = space.lattice.sizes
    macs_shares, params_shares = space.macs_cost.group_share(sizes), space.params_cost.group_share(sizes)
    return SpaceSummary(
        model=model,
        input_shape=tuple(input_shape),
        n_genes=space.n_genes,
        log10_size=log10_size(space),
        groups=tuple(
            GroupSummary(
                name=group.name,
                n_channels=group.n_channels,
                channels_per_gene=group.channels_per_gene,
                min_keep=group.min_keep,
                step=group.step,
                kind=group.kind,
                layers=tuple(group.layers),
                macs_share=float(macs_share),
                params_share=float(params_share),
            )
            for group, macs_share, params_share in zip(space.groups, macs_shares, params_shares, strict=True)
        ),
        frozen=tuple(FrozenSummary(item.name, int(item.n_channels), item.reason) for item in space.frozen),
        macs_dense=int(space.macs_dense),
        macs_range=(int(space.macs_range[0]), int(space.macs_range[1])),
        macs_share_prunable=space.macs_cost.prunable_share(sizes),
        n_params_dense=int(space.n_params_dense),
        n_params_range=(int(space.n_params_range[0]), int(space.n_params_range[1])),
        params_share_prunable=space.params_cost.prunable_share(sizes),
        activation_bytes_dense=space.cost_range("activation-bytes")[1],
        activation_bytes_range=space.cost_range("activation-bytes"),
        fingerprint=space.fingerprint,
    )


def log10_size(space: SearchSpace) -> float:
    """Return the decimal logarithm of the number of genomes that respect ``min_keep`` and ``step`` of every group."""
    known: dict[tuple[int, int, int], float] = {}
    total = 0.0
    for group in space.groups:
        key = (group.size, group.min_keep, group.step)
        if key not in known:
            known[key] = math.log10(sum(math.comb(group.size, kept) for kept in _allowed(group)))
        total += known[key]
    return total


def _allowed(group: ChannelGroup) -> list[int]:
    return [
        k for k in range(group.min_keep, group.size + 1) if k % group.step == 0 or k in (group.min_keep, group.size)
    ]
