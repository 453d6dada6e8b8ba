"""Merging: a kept channel takes over what a dropped one gave to its consumers. No system is solved.

In every layer that reads a dropped channel ``i``, a kept channel ``j`` of the same layer is put in its place,
``x_i ~ a x_j + b``: the weights of ``i``, times ``a``, are added to those of ``j``, and ``b`` goes into the bias. It is
least squares with one regressor per dropped channel instead of all of them: one table of second moments per layer, and
from then on no image for any genome.

References:
    The sum of the weights of channels that are alike: HASTE (arXiv 2309.17211), where the map that stays is the mean of
    a bucket. Here it is a kept channel of the bucket, since surgery leaves no mean behind; regressing the dropped map
    on the kept one, and choosing the kept one by what the regression leaves, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitness.compensation import Prefix, solved_before
from fitness.folding import FoldedLayer, slice_layer
from fitness.program import Program, SlicedTensors
from fitness.regression import finite_columns
from search_spaces.errors import GenomeShapeError, UnknownNameError, check_rules
from search_spaces.genome import BoolArray, FloatArray, IntArray

MERGE_RULES = {
    "regression": "the dropped map is regressed on the kept one",
    "sum": "the weights are added as they are, where that is better than nothing",
}
#: A map with less than this share of its mean square as variance counts as constant.
_CONSTANT = 1e-10


@dataclass(frozen=True)
class MergeOptions:
    """How channels are merged.

    Attributes:
        rule: A name of :data:`MERGE_RULES`.
        batch_size: Images per forward pass.
    """

    rule: Literal["regression", "sum"] = "regression"
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check name and count.

        Raises:
            UnknownNameError: There is no such rule.
            OptionError: ``batch_size`` is not positive.
        """
        if self.rule not in MERGE_RULES:
            raise UnknownNameError("merge rule", self.rule, MERGE_RULES)
        check_rules([("batch_size >= 1", self.batch_size >= 1, self.batch_size)])


@dataclass(frozen=True)
class InputMoments:
    """Moments of the maps of those genes of one layer's input that stand for equally many input channels each.

    Attributes:
        genes: ``(g,)`` sorted.
        places: ``(g, m)`` input channels of each gene, counted within a convolution group.
        mean: ``(g,)`` over images, positions and the ``m`` channels.
        second: ``(g, g)`` raw second moments, likewise.
    """

    genes: IntArray
    places: IntArray
    mean: FloatArray
    second: FloatArray


@dataclass(frozen=True)
class Replacements:
    """What stands in for the dropped genes of one layer: ``x_dropped ~ scale * x_partner + shift``.

    Attributes:
        dropped: ``(n,)`` indices into the moments' genes.
        partner: ``(n,)`` likewise, kept; -1 = nobody, the shift alone.
        scale: ``(n,)``.
        shift: ``(n,)``; 0 where the layer holds no bias.
    """

    dropped: IntArray
    partner: IntArray
    scale: FloatArray
    shift: FloatArray


def replacements(
    moments: InputMoments, is_kept: BoolArray, *, rule: str, has_bias: bool, partners: IntArray | None = None
) -> Replacements:
    """Return who replaces the dropped genes of one layer: the kept gene that leaves the least squared error.

    Ties go to the lower index.

    Args:
        moments: Of the layer's input.
        is_kept: ``(g,)``.
        rule: A name of :data:`MERGE_RULES`. ``regression``: ``scale = cov_ij / var_j`` and ``shift = mean_i - scale
            mean_j``; without a bias raw moments and no shift. ``sum``: scale 1 and the difference of the means; nothing
            is merged where dropping alone is nearer.
        has_bias: Whether the layer can hold a shift.
        partners: ``(g,)`` indices into the genes, of the one that takes over should the gene be dropped, or -1; the
            best one by default. One that is dropped itself takes over nothing. With given partners, ``sum`` merges in
            any case.
    """
    mean = moments.mean if has_bias else np.zeros_like(moments.mean)
    covariance = moments.second - np.outer(mean, mean)
    variance = np.diagonal(covariance).copy()
    variance[variance <= _CONSTANT * np.diagonal(moments.second)] = 0.0
    dropped = np.flatnonzero(~is_kept)
    cross = covariance[dropped]
    if rule == "sum":
        scale = np.ones_like(cross)
        gain = 2 * cross - variance[None]
    else:
        scale = np.divide(cross, variance, out=np.zeros_like(cross), where=(variance > 0)[None].repeat(len(cross), 0))
        gain = scale * cross
    if partners is None:
        allowed = np.broadcast_to(is_kept & (variance > 0), cross.shape)
        best = np.where(allowed, gain, -np.inf).argmax(axis=1) if cross.size else np.zeros(0, np.int64)
        is_taken = (allowed & (gain > 0))[np.arange(len(dropped)), best]
    else:
        best = partners[dropped]
        is_taken = (best >= 0) & is_kept[best]
    partner = np.where(is_taken, best, -1)
    factor = np.where(is_taken, scale[np.arange(len(dropped)), best], 0.0)
    return Replacements(dropped, partner, factor, mean[dropped] - factor * mean[best])


def merged_layer(layer: FoldedLayer, moments: InputMoments, found: Replacements) -> FoldedLayer:
    """Return ``layer`` with the weights of dropped channels added to their partners'; all channels still there.

    A shift is exact where the kernel does not reach into the padding.
    """
    device = layer.weight.device
    sources = torch.from_numpy(moments.places[found.dropped]).to(device)  # (n, m)
    parts = layer.weight[:, sources]  # (out, n, m, ...)
    ones = [1] * (parts.ndim - 2)
    shift = torch.from_numpy(found.shift).to(parts).reshape(1, -1, *ones)
    bias = layer.bias + (parts * shift).flatten(1).sum(dim=1)
    is_taken = torch.from_numpy(found.partner >= 0).to(device)
    targets = torch.from_numpy(moments.places[found.partner[found.partner >= 0]]).to(device)
    scale = torch.from_numpy(found.scale).to(parts).reshape(1, -1, *ones)
    weight = layer.weight.index_add(1, targets.flatten(), (parts * scale)[:, is_taken].flatten(1, 2))
    return replace(layer, weight=weight, bias=bias)


class MergeCompensation:
    """Slices networks with the weights of dropped channels merged into kept ones, from the dense network's moments.

    Depthwise layers read no other channel, and transposed layers and those that the network calls more than once keep
    their weights.
    """

    def __init__(self, program: Program, inputs: Tensor, options: MergeOptions = MergeOptions()) -> None:
        """Run the dense network once and gather the moments of every layer's input.

        Args:
            program: The folded network.
            inputs: ``(n, ...)`` calibration images, normalised, in the dtype that networks are run in.
            options: How to merge.
        """
        self.program = program
        self.options = options
        self.moments = input_moments(program, inputs, options.batch_size)

    def __call__(
        self, genome: BoolArray, prefix: Prefix | None = None, *, partners: IntArray | None = None
    ) -> SlicedTensors:
        """Return the sliced tensors of ``genome`` in float32, merged.

        Args:
            genome: ``(n_genes,)``.
            prefix: What :meth:`prefix` returned; its tensors are taken over.
            partners: ``(n_genes,)`` the gene that takes over should this one be dropped, for instance another of its
                class (HASTE's rule, with ``rule="sum"``); itself or -1 = nobody. The best of each layer by default.

        Raises:
            GenomeShapeError: ``partners`` does not fit the space.
        """
        if partners is not None and (
            partners.shape != genome.shape or not ((partners >= -1) & (partners < len(genome))).all()
        ):
            raise GenomeShapeError(
                f"partners must be {len(genome)} gene indices or -1, but got shape {partners.shape} with values "
                f"{partners.min(initial=0)} to {partners.max(initial=0)}; they belong to another search space"
            )
        tensors = self.program.slice(genome)
        done = prefix.solved.weights if prefix is not None else {}
        with torch.no_grad():
            for name, parts in self.moments.items():
                if name in done:
                    assert prefix is not None
                    tensors.weights[name], tensors.biases[name] = done[name], prefix.solved.biases[name]
                else:
                    merged = self._merged(self.program.layers[name], parts, genome, partners)
                    tensors.weights[name], tensors.biases[name] = slice_layer(merged, genome)
        return tensors

    def prefix(self, genome: BoolArray, open_genes: IntArray) -> Prefix:
        """Return what all genomes share that differ from ``genome`` in ``open_genes`` only: tensors, no activation."""
        step = self.program.first_step_of(open_genes)
        return Prefix(step, {}, solved_before(self.program, self(genome), step))

    def _merged(
        self, layer: FoldedLayer, parts: tuple[InputMoments, ...], genome: BoolArray, partners: IntArray | None
    ) -> FoldedLayer:
        merged = layer
        for moments in parts:
            is_kept = genome[moments.genes]
            if is_kept.all():
                continue
            within = None if partners is None else _positions(moments.genes, partners[moments.genes])
            found = replacements(moments, is_kept, rule=self.options.rule, has_bias=layer.has_bias, partners=within)
            merged = merged_layer(merged, moments, found)  # parts share no channel: their order does not matter
        return merged


def input_moments(program: Program, inputs: Tensor, batch_size: int) -> dict[str, tuple[InputMoments, ...]]:
    """Return, per layer that can merge, the moments of its input; one forward pass, no gradient.

    Positions are images times places of a map; sums are in float64. Positions with a value that is not finite are left
    out. Genes that stand for different numbers of input channels of a layer are apart.

    Args:
        program: The folded network.
        inputs: ``(n, ...)`` images in the dtype that the network is run in.
        batch_size: Images per forward pass.
    """
    places = {layer.name: _places(layer) for layer in program.layer_order() if _can_merge(layer)}
    sums: dict[str, list[list[Any]]] = {
        name: [[np.zeros(len(genes)), np.zeros((len(genes), len(genes))), 0] for genes, _ in parts]
        for name, parts in places.items()
    }

    def record(layer: FoldedLayer, values: Mapping[str, Any]) -> None:
        for (_, columns), entry in zip(places.get(layer.name, ()), sums.get(layer.name, ()), strict=True):
            rows = finite_columns(gene_rows(layer, values[program.input_of[layer.name]], columns))
            entry[0] += rows.sum(dim=1).cpu().numpy()
            entry[1] += (rows @ rows.T).cpu().numpy()
            entry[2] += rows.shape[1]

    dense = program.slice(program.space.all_ones()[0]).cast(inputs.dtype)
    with torch.inference_mode():
        for part in inputs.split(batch_size):
            program.run(dense, [part], on_layer=record)
    return {
        name: tuple(
            InputMoments(genes, columns, total / max(n, 1), second / max(n, 1))
            for (genes, columns), (total, second, n) in zip(places[name], entries, strict=True)
        )
        for name, entries in sums.items()
    }


def gene_rows(layer: FoldedLayer, value: Tensor, places: IntArray) -> Tensor:
    """Return float64 values ``(g, n)`` of the channels ``places`` ``(g, m)`` of a layer's input.

    ``n`` runs over images, convolution groups, the ``m`` channels and all places of a map.
    """
    n_genes, width = places.shape
    index = torch.from_numpy(places.ravel()).to(value.device)
    if not layer.kernel:
        rows = value.reshape(-1, value.shape[-1]).index_select(1, index).double()
        return rows.reshape(-1, n_genes, width).transpose(0, 1).flatten(1)
    groups = layer.record.groups
    maps = value.reshape(len(value) * groups, value.shape[1] // groups, -1).index_select(1, index).double()
    return maps.reshape(len(maps), n_genes, width, -1).transpose(0, 1).flatten(1)


def _can_merge(layer: FoldedLayer) -> bool:
    plain = not layer.record.is_transposed and not layer.is_shared
    return plain and layer.in_genes is not None and bool((layer.in_genes >= 0).any())


def _places(layer: FoldedLayer) -> tuple[tuple[IntArray, IntArray], ...]:
    """Return ``(genes (g,), places (g, m))`` of a layer's input, per ``m``."""
    assert layer.in_genes is not None
    genes, counts = np.unique(layer.in_genes[layer.in_genes >= 0], return_counts=True)
    order = np.argsort(layer.in_genes, kind="stable")
    starts = np.searchsorted(layer.in_genes[order], genes)
    parts = []
    for width in np.unique(counts):
        same = counts == width
        parts.append((genes[same], order[starts[same][:, None] + np.arange(width)]))
    return tuple(parts)


def _positions(genes: IntArray, wanted: IntArray) -> npt.NDArray[np.int64]:
    """Return where in ``genes`` each of ``wanted`` is, -1 where it is not."""
    place = np.minimum(np.searchsorted(genes, wanted), len(genes) - 1)
    return np.where(genes[place] == wanted, place, -1).astype(np.int64)
