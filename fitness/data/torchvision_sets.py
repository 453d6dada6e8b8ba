"""Data sets that torchvision downloads on first use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitness.data.images import ChannelFigures, ImageData, in_memory_data, resized, stratified_split
from search_spaces.errors import DataError

_VAL_SHARE = 0.1


@dataclass(frozen=True)
class TorchvisionSet:
    """How one data set is asked for.

    Attributes:
        class_name: In ``torchvision.datasets``.
        train: Keywords of the training part.
        test: Keywords of the test part.
        n_classes: Number of classes.
        may_flip: Whether a mirrored image keeps its class.
    """

    class_name: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    n_classes: int
    may_flip: bool


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}

TORCHVISION_SETS: Mapping[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet("CIFAR10", **_BY_FLAG, n_classes=10, may_flip=True),
    "cifar100": TorchvisionSet("CIFAR100", **_BY_FLAG, n_classes=100, may_flip=True),
    "fashion-mnist": TorchvisionSet("FashionMNIST", **_BY_FLAG, n_classes=10, may_flip=True),
    "svhn": TorchvisionSet("SVHN", **_BY_SPLIT, n_classes=10, may_flip=False),
}


def torchvision_data(
    name: str, root: Path, *, size: tuple[int, int], mean: ChannelFigures, std: ChannelFigures, seed: int
) -> ImageData:
    """Return the data set ``name``, downloaded to ``root`` where it is not there yet; a tenth of train becomes val.

    Raises:
        DataError: The download failed, or ``root`` cannot be written.
    """
    recipe = TORCHVISION_SETS[name]
    images, labels = _part(name, root, recipe.class_name, recipe.train, size)
    test = _part(name, root, recipe.class_name, recipe.test, size)
    parts = stratified_split(labels, (1 - _VAL_SHARE, _VAL_SHARE), rng=np.random.default_rng(seed))
    train, val = ((images[part], labels[part]) for part in map(torch.from_numpy, parts))
    return in_memory_data(
        name, [train, val, test], n_classes=recipe.n_classes, mean=mean, std=std, may_flip=recipe.may_flip
    )


def _part(
    name: str, root: Path, class_name: str, keywords: Mapping[str, Any], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    import torchvision  # a second to import, and needed by these sets only

    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to results
            dataset = getattr(torchvision.datasets, class_name)(str(root), download=True, **keywords)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"{name} could not be downloaded to, or read from {root} ({error}); connect this machine for the first "
            "use, put torchvision's files there yourself, name another --data-root, or take --data digits"
        ) from error
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images[:, None].expand(-1, 3, -1, -1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(dataset.labels if hasattr(dataset, "labels") else dataset.targets)
    return resized(images, *size), labels.to(torch.int64)
