"""Recalibration: batch-norm statistics estimated anew on calibration images, no gradient step taken."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch norm by their mean over ``batches``; return how many there are.

    Norms without running statistics are left alone. Mode, momentum and gradients of ``model`` are as before on return,
    also when the forward pass raises.

    Args:
        model: Changed in place.
        batches: Normalised inputs ``(batch, ...)``, at least two images each.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    momenta = {module: module.momentum for module in norms}
    model.eval()
    try:
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # cumulative average
            module.train()
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for part, mode in modes.items():
            part.training = mode
        for module, momentum in momenta.items():
            module.momentum = momentum
    return len(norms)
