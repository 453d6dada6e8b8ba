"""The network that everybody can have for free: channels of largest L1 norm, an equal share of every group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from evoprune.search import Repairer, make_generator, normalise_scores, uniform_genomes
from evoprune.search.guides import positions_in_groups
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, FloatArray

_N_BISECTIONS = 30


def l1_scores(model: nn.Module, space: SearchSpace) -> FloatArray:
    """Return ``(n_genes,)`` the L1 norm of the weights that make each gene's channels, over all coupled layers.

    Larger = more wanted; comparable within a group only.

    References:
        Li 2017, Pruning filters for efficient ConvNets, Sec. 3.1; the sum over coupled layers is our reading.
    """
    scores = np.zeros(space.n_genes)
    tensors: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    for layer in dict.fromkeys(layer for group in space.groups for layer in group.layers):
        name = f"{layer}.weight"
        for axis in (0, 1):  # transposed convolutions have their output channels second
            genes = space.slot_genes.get((name, axis))
            if genes is None or (name, axis) in space.consumer_slots:
                continue
            norms = tensors[name].detach().float().abs().transpose(0, axis).flatten(1).sum(1).double().cpu().numpy()
            np.add.at(scores, genes[genes >= 0], norms[genes >= 0])
    return scores


def uniform_l1_genome(model: nn.Module, space: SearchSpace, budgets: Mapping[str, float], seed: int) -> BoolArray:
    """Return the ``(n_genes,)`` genome that keeps an equal share of channels, as large as ``budgets`` allow.

    As published, channels that several layers make together (a residual stream) stay whole, which is also the stronger
    baseline; where the budget cannot be met so, every group keeps the same share. Blocks stay as long as it can be met
    by widths.

    Args:
        model: The dense network.
        space: Its search space.
        budgets: Shares in (0, 1] of the dense costs by metric; all hold.
        seed: Master seed; breaks ties.

    Raises:
        BudgetError: A budget cannot be reached.

    References:
        Li 2017, Pruning filters for efficient ConvNets, Sec. 3.1 and 3.3.
    """
    repairer = Repairer(space, dict(budgets))
    scores = normalise_scores(l1_scores(model, space), repairer.lattice)
    rng = make_generator(seed, "baseline")
    is_shrunk = np.array([group.kind == "channel" and len(group.layers) == 1 for group in space.groups])
    genome = _uniform_genome(repairer, scores, is_shrunk)
    if genome is None:
        return uniform_genomes(repairer, np.zeros(1), rng=rng, scores=scores)[0]
    return repairer(genome[None], rng=rng, preference=scores)[0]


def _uniform_genome(repairer: Repairer, scores: FloatArray, is_shrunk: BoolArray) -> BoolArray | None:
    """Return the genome whose groups in ``is_shrunk`` keep the largest feasible equal share; None where none is."""
    lattice = repairer.lattice
    positions = positions_in_groups(scores[None], lattice)[0]

    def at(share: float) -> BoolArray:
        counts = lattice.floor(np.floor(share * lattice.sizes).astype(np.int64)[None])[0]
        return positions < np.repeat(np.where(is_shrunk, counts, lattice.sizes), lattice.sizes)

    low, high = 0.0, 1.0
    if not repairer.is_feasible(at(low)[None])[0]:
        return None
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if repairer.is_feasible(at(middle)[None])[0] else (low, middle)
    return at(low)
