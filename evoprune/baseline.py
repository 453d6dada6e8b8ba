"""The network that everybody can have for free: channels of largest L1 norm, an equal share of every group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from evoprune.search import Repairer, make_generator, normalise_scores, uniform_genomes
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, FloatArray


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
    """Return the ``(n_genes,)`` genome that keeps an equal share of every group, as large as ``budgets`` allow.

    Args:
        model: The dense network.
        space: Its search space.
        budgets: ``macs`` or ``params`` as shares in (0, 1] of the dense cost.
        seed: Master seed; breaks ties.

    Raises:
        BudgetError: A budget cannot be reached.
    """
    repairer = Repairer(space, dict(budgets))
    scores = normalise_scores(l1_scores(model, space), repairer.lattice)
    return uniform_genomes(repairer, np.zeros(1), rng=make_generator(seed, "baseline"), scores=scores)[0]
