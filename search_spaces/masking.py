"""Masking: the dense network with the effect of removed channels switched off, for as long as a block lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.cuttable import CuttableSpace
from search_spaces.genome import BoolArray
from search_spaces.groups import kept_slices
from search_spaces.surgery import named_tensors


@contextlib.contextmanager
def masked(model: nn.Module, space: CuttableSpace, genome: BoolArray) -> Iterator[nn.Module]:
    """Yield ``model`` with every consumer of a removed channel zeroed on that input slice; restored on any exit.

    Zeroing what *reads* a channel removes its effect exactly, whatever batch norm and non-linearity made of it on the
    way; zeroing what makes it would leak the batch norm's beta. The forward pass keeps the dense shapes and cost.

    Args:
        model: The network that ``space`` was traced from. Changed in place inside the block only.
        space: Its search space.
        genome: ``(n_genes,)``, True = keep.

    Raises:
        GenomeShapeError: The genome does not belong to the space.
    """
    space.check_genomes(genome[None])
    saved: list[tuple[Tensor, Tensor]] = []
    tensors = named_tensors(model)
    with contextlib.ExitStack() as stack:
        try:
            with torch.no_grad():
                for name, axis in space.consumer_slots:
                    dropped = np.flatnonzero(~kept_slices(space.genes.slot_genes[name, axis], genome))
                    if len(dropped):
                        weight = tensors[name]
                        saved.append((weight, weight.detach().clone()))
                        weight.detach().index_fill_(axis, torch.from_numpy(dropped).to(weight.device), 0)
            stack.enter_context(space.silenced_blocks(model, genome))
            yield model
        finally:
            with torch.no_grad():
                for weight, original in reversed(saved):
                    weight.detach().copy_(original)
