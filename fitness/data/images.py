"""Images held as bytes, their three splits, and the one place where they become normalised floats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.errors import DataError
from search_spaces.genome import IntArray

ChannelFigures = tuple[float, float, float]

MEAN: ChannelFigures = (0.485, 0.456, 0.406)
STD: ChannelFigures = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageBatch:
    """Images with labels.

    Attributes:
        images: ``(n, C, H, W)`` uint8.
        labels: ``(n,)`` int64; of a mixed image the class with the larger share.
        soft_labels: ``(n, n_classes)`` float32 with rows that sum to 1, where images were mixed; else None.
    """

    images: Tensor
    labels: Tensor
    soft_labels: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return the batch on ``device``."""
        soft_labels = None if self.soft_labels is None else self.soft_labels.to(device)
        return ImageBatch(self.images.to(device), self.labels.to(device), soft_labels)


class ImageSplit(Protocol):
    """One split of a data set; the images have a fixed order."""

    def __len__(self) -> int:
        """Return the number of images."""

    @property
    def labels(self) -> Tensor:
        """All labels, ``(n,)`` int64."""

    def take(self, indices: IntArray) -> ImageBatch:
        """Return the images at ``indices`` ``(k,)``, in that order; repeats are allowed."""

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """Yield all images in order, ``batch_size`` at a time; the last batch may be smaller."""


class InMemorySplit:
    """A split whose images lie in memory as one uint8 tensor."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Keep ``images`` ``(n, 3, H, W)`` uint8 and ``labels`` ``(n,)`` int64 as they are, without a copy."""
        self.images = images
        self._labels = labels

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def labels(self) -> Tensor:
        """All labels, ``(n,)`` int64."""
        return self._labels

    def take(self, indices: IntArray) -> ImageBatch:
        """Return the images at ``indices`` ``(k,)``, in that order."""
        rows = torch.from_numpy(np.asarray(indices, np.int64))
        return ImageBatch(self.images[rows], self._labels[rows])

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """Yield all images in order, as views."""
        for images, labels in zip(self.images.split(batch_size), self._labels.split(batch_size), strict=True):
            yield ImageBatch(images, labels)


@dataclass(frozen=True)
class ImageData:
    """A data set in three splits.

    Calibration images come from ``train``, fitness from ``val``, and ``test`` is read once, at the end.

    Attributes:
        name: What the user asked for, without paths.
        train: Training images.
        val: Validation images.
        test: Test images.
        n_classes: Number of classes.
        mean: Per channel, of images in [0, 1].
        std: Per channel, of images in [0, 1].
        input_shape: ``(C, H, W)`` of every image.
        content_hash: BLAKE2b-128 over images, labels, normalisation and name, in hexadecimal.
        may_flip: Whether a mirrored image keeps its class.
    """

    name: str
    train: ImageSplit
    val: ImageSplit
    test: ImageSplit
    n_classes: int
    mean: ChannelFigures
    std: ChannelFigures
    input_shape: tuple[int, int, int]
    content_hash: str
    may_flip: bool = True


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return ``(images / 255 - mean) / std`` of uint8 ``images`` ``(n, C, H, W)`` as ``dtype``, channels last."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, -1, 1, 1)
    floats = images.to(torch.float32, memory_format=torch.channels_last)
    return torch.addcmul(shift, floats, scale).to(dtype, memory_format=torch.channels_last)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Return uint8 ``images`` ``(n, C, H, W)`` bilinearly resized (antialiased when shrunk), as uint8."""
    if tuple(images.shape[-2:]) == (height, width):
        return images
    chunks = [
        functional.interpolate(chunk.float(), (height, width), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for chunk in images.split(1024)
    ]
    return torch.cat(chunks)


def stratified_split(labels: Tensor, shares: Sequence[float], *, rng: np.random.Generator) -> list[IntArray]:
    """Return disjoint, sorted index arrays, one per share, each with about that share of every class.

    Args:
        labels: ``(n,)``.
        shares: Positive, summing to at most 1; what is left over belongs to no part.
        rng: Draws which image goes where.
    """
    parts: list[list[IntArray]] = [[] for _ in shares]
    limits = np.concatenate(([0.0], np.cumsum(shares)))
    for label in np.unique(labels.numpy()):
        members = rng.permutation(np.flatnonzero(labels.numpy() == label))
        cuts = np.rint(limits * len(members)).astype(np.int64)
        for part, first, last in zip(parts, cuts, cuts[1:], strict=False):
            part.append(members[first:last])
    return [np.sort(np.concatenate(part)) for part in parts]


def in_memory_data(
    name: str,
    splits: Sequence[tuple[Tensor, Tensor]],
    *,
    n_classes: int,
    mean: ChannelFigures,
    std: ChannelFigures,
    may_flip: bool,
) -> ImageData:
    """Return the data set of three ``(images uint8 (n, 3, H, W), labels int64 (n,))``: train, val, test.

    Raises:
        DataError: A split is empty.
    """
    digest = content_digest(name, mean, std)
    for split_name, (images, labels) in zip(("train", "val", "test"), splits, strict=True):
        if not len(images):
            raise DataError(f"every split must hold images, but the {split_name} split of {name} is empty")
        digest.update(f"{split_name}:{tuple(images.shape)};".encode())
        digest.update(images.permute(0, 2, 3, 1).contiguous().numpy().data)
        digest.update(labels.contiguous().numpy().data)
    train, val, test = (InMemorySplit(images, labels) for images, labels in splits)
    n_channels, height, width = splits[0][0].shape[1:]
    return ImageData(
        name=name,
        train=train,
        val=val,
        test=test,
        n_classes=n_classes,
        mean=mean,
        std=std,
        input_shape=(n_channels, height, width),
        content_hash=digest.hexdigest(),
        may_flip=may_flip,
    )


def content_digest(name: str, mean: ChannelFigures, std: ChannelFigures) -> hashlib.blake2b:
    """Return the hash object of a data set, fed with everything but its images and labels."""
    return hashlib.blake2b(f"{name}:{mean}:{std};".encode(), digest_size=16)
