"""A data set that a very small network learns in a second."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fitness.data import ImageData
from fitness.data.images import MEAN, STD, in_memory_data


def bars(n_train: int = 96, *, seed: int = 0) -> ImageData:
    """Return 8 x 8 images of a bright bar, class 0 upright and class 1 lying, in noise."""
    rng = np.random.default_rng(seed)

    def split(n: int) -> tuple[Tensor, Tensor]:
        images = rng.integers(0, 60, (n, 3, 8, 8), dtype=np.uint8)
        labels = np.arange(n) % 2
        for image, label, place in zip(images, labels, rng.integers(2, 6, n), strict=True):
            image[(slice(None), slice(None), place) if label == 0 else (slice(None), place)] += 190
        return torch.from_numpy(images), torch.from_numpy(labels)

    return in_memory_data("bars", [split(n) for n in (n_train, 32, 32)], n_classes=2, mean=MEAN, std=STD, may_flip=True)


def small_network(n_classes: int = 2, n_channels: int = 8, dropout: float = 0.0) -> nn.Module:
    """Return a network that learns the bars."""
    return nn.Sequential(
        nn.Conv2d(3, n_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(n_channels),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(n_channels, n_classes),
    )
