"""scikit-learn's bundled handwritten digits: real images that need no network."""

from __future__ import annotations

import numpy as np
import torch

from fitness.data.images import ChannelFigures, ImageData, in_memory_data, resized, stratified_split


def digits_data(*, size: tuple[int, int], mean: ChannelFigures, std: ChannelFigures, seed: int) -> ImageData:
    """Return the 1,797 digits (8 x 8 grey levels of 0 to 16), resized to ``3 x size``, split 60 / 20 / 20 by class.

    References:
        Alpaydin 1998, Optical recognition of handwritten digits, UCI Machine Learning Repository (its test part).
    """
    from sklearn.datasets import load_digits  # slow to import, and needed by this set only

    bundle = load_digits()
    grey = torch.from_numpy(np.rint(bundle.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    images = resized(grey[:, None], *size).expand(-1, 3, -1, -1).contiguous()
    parts = stratified_split(labels, (0.6, 0.2, 0.2), rng=np.random.default_rng(seed))
    splits = [(images[part], labels[part]) for part in map(torch.from_numpy, parts)]
    return in_memory_data("digits", splits, n_classes=10, mean=mean, std=std, may_flip=False)
