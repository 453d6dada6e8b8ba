"""Criteria that train one gate per gene for a few steps while all weights stay frozen.

A gene whose gate the loss never feels (a dead channel) is worth least: nothing it says reaches the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.gating import checked_logits, run_gated
from fitness.criteria.inputs import CriterionInput
from fitness.folding import FoldedLayer
from search_spaces.errors import check_rules
from search_spaces.genome import FloatArray, IntArray

#: A gate has been felt if its slope ever exceeded this share of the steepest one of that step.
_FELT = 1e-9
_START = 4.0  # the logistic function of it is 0.982: nearly open, and not yet flat


@dataclass(frozen=True)
class PruneNet:
    """Gates on what consumers read, pulled shut by a penalty: ``min_a E[CE(f(x; a))] + lambda sum a``, a in (0, 1).

    A gate is the logistic function of a free number, descended by Adam. ``lambda`` is set once such that at the start
    the penalty pulls as hard as the loss does on average: ``lambda = penalty * mean |dCE/da|``.

    Attributes:
        n_steps: Steps of the descent, one batch each.
        learning_rate: Of the free numbers.
        penalty: Of the gates, relative to the loss's mean slope.
    """

    n_steps: int = 24
    learning_rate: float = 0.2
    penalty: float = 1.0

    name = "prunenet"
    summary = "gates trained for a few steps against a penalty, weights frozen; one ranking for the whole network"
    roles = frozenset({"scores", "widths"})
    reference = (
        "PruneNet, arXiv 2005.11282 (abstract only); the objective is our reconstruction, the descent, the choice of "
        "lambda and predictions where there are no labels are ours"
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: One is not positive.
        """
        _check_positive(self, "n_steps", "learning_rate", "penalty")

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores and widths.

        * scores: the gates, larger = more wanted, comparable over the network; 0 for a gate that was never felt.
        * widths: share of a group among the better half of all genes: the published cut through one ranking.
        """
        free = torch.full((data.space.n_genes,), _START, device=data.device, requires_grad=True)
        descent = torch.optim.Adam([free], lr=self.learning_rate)
        felt = torch.zeros(len(free), dtype=torch.bool, device=data.device)
        weight: float | None = None
        for images, _, labels in batches(data, self.name, self.n_steps):
            gates = torch.sigmoid(free)
            loss = nn.functional.cross_entropy(gated_logits(data, gates, images), labels)
            (slope,) = torch.autograd.grad(loss, gates, retain_graph=True)
            felt |= _is_felt(slope)
            if weight is None:
                weight = self.penalty * float(slope.abs().mean())
            free.grad = torch.autograd.grad(gates, free, slope + weight)[0]
            descent.step()
        scores = _of_channels(data, torch.where(felt, torch.sigmoid(free.detach()), 0.0))
        return ChannelKnowledge(data.sizes, scores=scores, is_global=True, widths=global_cut(data, scores))


@dataclass(frozen=True)
class Scop:
    """Gates that mix a channel with its knockoff: a channel matters as far as it beats a copy that knows no label.

    Before the non-linearity ``A`` becomes ``b A + (1 - b) A'`` with ``b`` in [0, 1], 0.5 at the start, and ``A'`` what
    the dense network makes of the knockoff image. SCOP draws that image from a generative network; ours has none: it is
    another calibration image, of the same distribution and independent of the label. Mixing behind the folded batch
    norm equals mixing before it, since the norm is affine and the shares sum to 1.

    Attributes:
        n_steps: Steps of the descent, one batch each.
        learning_rate: Of Adam with betas (0.5, 0.9); as published 0.004 for 20 epochs, here larger for few steps.
    """

    n_steps: int = 24
    learning_rate: float = 0.02

    name = "scop"
    summary = "gates between a channel and its knockoff (another image: our variant without a generator)"
    roles = frozenset({"scores"})
    reference = (
        "SCOP, arXiv 2010.10732, Sec. 3: score |gamma| (b - (1 - b)); knockoffs without a generator, and predictions "
        "where there are no labels, are our variant"
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: One is not positive.
        """
        _check_positive(self, "n_steps", "learning_rate")

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return ``|gamma| (2 b - 1)``, larger = more wanted, comparable within a group.

        ``|gamma|`` is the mean over the batch norms that the gene passes, 1 without any. A gate that was never felt
        ranks behind all others.
        """
        gates = torch.full((data.space.n_genes,), 0.5, device=data.device, requires_grad=True)
        descent = torch.optim.Adam([gates], lr=self.learning_rate, betas=(0.5, 0.9))
        felt = torch.zeros(len(gates), dtype=torch.bool, device=data.device)
        for images, knockoffs, labels in batches(data, self.name, self.n_steps):
            loss = nn.functional.cross_entropy(mixed_logits(data, gates, images, knockoffs), labels)
            (slope,) = torch.autograd.grad(loss, gates)
            felt |= _is_felt(slope)
            gates.grad = slope
            descent.step()
            with torch.no_grad():
                gates.clamp_(0.0, 1.0)
        scores = norm_scales(data) * (2 * gates.detach().double().cpu().numpy() - 1)
        is_felt = felt.cpu().numpy()
        scores[~is_felt] = scores.min(initial=0.0) - 0.1 * float(np.ptp(scores)) - 1e-6
        return ChannelKnowledge(data.sizes, scores=_of_channels(data, scores))


def batches(data: CriterionInput, stream: str, n_steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ``n_steps`` batches of images, knockoff images and labels.

    Images come in a fresh random order per pass; an image's knockoff is the next one in that order.
    """
    rng = data.rng(stream)
    labels, n = data.target_labels, len(data.inputs)
    done = 0
    while done < n_steps:
        order = torch.from_numpy(rng.permutation(n)).to(data.device)
        following = order.roll(-1)
        for part, other in zip(order.split(data.batch_size), following.split(data.batch_size), strict=True):
            yield data.inputs[part].float(), data.inputs[other].float(), labels[part]
            done += 1
            if done == n_steps:
                return


def gated_logits(data: CriterionInput, gates: Tensor, images: Tensor) -> Tensor:
    """Return the logits ``(n, n_classes)`` with ``gates`` ``(n_genes,)`` times the channels where layers read them.

    Raises:
        DataError: The network's first output is no matrix of logits.
    """

    def gate_of(layer: FoldedLayer, value: Tensor, axis: int) -> Tensor:
        assert layer.in_genes is not None
        return _along(per_channel(gates, layer.in_genes, value.shape[axis]), value, axis)

    return checked_logits(data.program, run_gated(data.program, images, gate_of))


def per_channel(gates: Tensor, genes: IntArray, n_channels: int) -> Tensor:
    """Return the gate of each of ``n_channels`` channels, 1 where none belongs to it; ``genes`` repeat over groups."""
    index = torch.from_numpy(np.tile(genes, n_channels // len(genes))).to(gates.device)
    return torch.where(index >= 0, gates[index.clamp(min=0)], gates.new_ones(()))


def mixed_logits(data: CriterionInput, gates: Tensor, images: Tensor, knockoffs: Tensor) -> Tensor:
    """Return the logits of ``images`` with every made channel mixed with what ``knockoffs`` make of it.

    Args:
        data: Gives the network.
        gates: ``(n_genes,)`` share of the real channel.
        images: ``(n, ...)``.
        knockoffs: ``(n, ...)``, seen by the dense network.

    Raises:
        DataError: The network's first output is no matrix of logits.
    """
    program = data.program
    dense = program.slice(program.space.all_ones()[0]).cast(torch.float32)
    made = {
        layer.name: layer
        for layer in program.layers.values()
        if not layer.record.is_depthwise and (layer.out_genes >= 0).any()
    }
    copies: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        if name in made:
            copies[name] = value

    with torch.no_grad():
        program.run(dense, [knockoffs], on_value=keep, keep=program.layers)
    alive: dict[str, dict[str, Any]] = {}

    def remember(layer: FoldedLayer, values: dict[str, Any]) -> None:
        alive[layer.name] = values

    def mix(name: str, value: Any) -> None:
        if name in made:
            axis = 1 if made[name].kernel else value.ndim - 1
            share = _along(per_channel(gates, made[name].out_genes, value.shape[axis]), value, axis)
            alive[name][name] = copies[name] + share * (value - copies[name])

    with torch.enable_grad():
        values = program.run(dense, [images], on_layer=remember, on_value=mix, keep=program.layers)
        return checked_logits(program, values)


def global_cut(data: CriterionInput, scores: FloatArray) -> FloatArray:
    """Return the share of each group ``(n_groups,)`` that a cut through the middle of all genes' scores keeps.

    Ties with the median are kept; a group keeps one gene at least, and groups of residual blocks all.
    """
    widths = np.ones(len(data.sizes))
    genes = np.concatenate([np.arange(g.start, g.stop) for _, g in data.groups] or [np.zeros(0, np.int64)])
    median = np.median(scores[genes]) if len(genes) else 0.0
    for index, group in data.groups:
        n_kept = int((scores[group.start : group.stop] >= median).sum())
        widths[index] = max(n_kept, 1) / group.size
    return widths


def norm_scales(data: CriterionInput) -> FloatArray:
    """Return ``(n_genes,)`` mean magnitude of the batch-norm scales that a gene passes, 1 without any."""
    scales = np.ones(data.space.n_genes)
    for index, group in data.groups:
        gammas = [gamma.abs().mean(dim=1) for gamma in data.gammas(index)]
        if gammas:
            scales[group.start : group.stop] = torch.stack(gammas).mean(dim=0).cpu().numpy()
    return scales


def _along(factors: Tensor, value: Tensor, axis: int) -> Tensor:
    """Return ``factors`` ``(n,)`` shaped such that they multiply ``value`` along ``axis``."""
    return factors.reshape([-1 if dimension == axis else 1 for dimension in range(value.ndim)])


def _is_felt(slope: Tensor) -> Tensor:
    return slope.abs() > _FELT * slope.abs().max()


def _of_channels(data: CriterionInput, scores: Tensor | FloatArray) -> FloatArray:
    array = scores.double().cpu().numpy() if isinstance(scores, Tensor) else scores
    return data.gather_scores({index: array[group.start : group.stop] for index, group in data.groups})


def _check_positive(options: object, *names: str) -> None:
    values = [(name, getattr(options, name)) for name in names]
    check_rules((f"0 < {name} < inf", 0 < value < float("inf"), value) for name, value in values)
