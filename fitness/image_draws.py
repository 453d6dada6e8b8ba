"""Which images are drawn for what: every draw has a stream of its own, so that none depends on another."""

from __future__ import annotations

import numpy as np

from fitness.data import ImageBatch
from fitness.data.images import ImageSplit
from search_spaces.genome import IntArray

#: Second entropy word, after the master seed, of every generator that draws images.
IMAGE_STREAM = 0x1A6E5


def draw(split: ImageSplit, n: int, rng: np.random.Generator) -> ImageBatch:
    """Return ``n`` images of ``split``, or all where it has fewer, drawn without replacement."""
    return split.take(draw_indices(len(split), n, rng))


def draw_indices(n_images: int, n: int, rng: np.random.Generator) -> IntArray:
    """Return ``n`` distinct indices below ``n_images``, or all, in ascending order."""
    return np.sort(rng.choice(n_images, min(n, n_images), replace=False))


def evenly(n_images: int, n: int) -> IntArray:
    """Return at most ``n`` indices below ``n_images``, evenly spread."""
    n_chosen = min(n, n_images)
    return np.arange(n_chosen) * n_images // max(n_chosen, 1)


def unseen_first(n_images: int, seen: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """Return ``n`` of ``n_images`` indices, or all; those in ``seen`` only where the others do not suffice."""
    unseen = np.setdiff1d(np.arange(n_images), seen)
    n_unseen = min(n, len(unseen))
    again = rng.choice(seen, min(n, n_images) - n_unseen, replace=False)
    return np.sort(np.concatenate([rng.choice(unseen, n_unseen, replace=False), again]))
