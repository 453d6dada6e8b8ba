"""Folders of image files, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fitness.data.images import ChannelFigures, ImageBatch, ImageData, content_digest, stratified_split
from search_spaces.errors import DataError
from search_spaces.genome import IntArray

_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_CARVED_SHARE = 0.1
#: What Pillow raises for damaged files; for a broken chunk of a PNG that is a ``SyntaxError``.
_DECODING_ERRORS = (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_LAYOUT = (
    "the layout is PATH/train/<class>/<image>, and likewise PATH/val and PATH/test, which are else taken off train"
)


@dataclass(frozen=True)
class _Files:
    """Image files of one split with their labels, in a fixed order."""

    paths: tuple[Path, ...]
    labels: Tensor

    def at(self, indices: IntArray) -> _Files:
        return _Files(tuple(self.paths[i] for i in indices), self.labels[torch.from_numpy(indices)])


class StreamedSplit(Dataset[ImageBatch]):
    """A split whose images are decoded on demand, by a few threads, and never kept."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: tuple[int, int]) -> None:
        """Keep ``paths``, their ``labels`` ``(n,)`` int64 and the ``(H, W)`` that every image is brought to."""
        self.paths = tuple(paths)
        self.size = size
        self._labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> Tensor:
        """All labels, ``(n,)`` int64."""
        return self._labels

    def take(self, indices: IntArray) -> ImageBatch:
        """Return the images at ``indices`` ``(k,)``, in that order.

        Raises:
            DataError: A file cannot be decoded.
        """
        return self.__getitems__(np.asarray(indices, np.int64).tolist())

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """Yield all images in order.

        Raises:
            DataError: A file cannot be decoded.
        """
        # Decoding releases the interpreter lock, so threads do what worker processes would, without their start-up.
        yield from DataLoader(self, batch_size=batch_size, collate_fn=_as_it_is)

    def __getitem__(self, index: int) -> ImageBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            images = list(threads.map(lambda index: _decoded(self.paths[index], self.size), indices))
        stacked = torch.stack(images) if images else torch.empty((0, 3, *self.size), dtype=torch.uint8)
        return ImageBatch(stacked, self._labels[torch.tensor(indices, dtype=torch.int64)])


def imagefolder_data(
    path: Path, *, size: tuple[int, int], mean: ChannelFigures, std: ChannelFigures, seed: int
) -> ImageData:
    """Return the data set under ``path``; a tenth of the training images each stands in for an absent val and test.

    The content hash covers relative file names and sizes, not the pixels.

    Raises:
        DataError: No folder, no class folders or no images; classes of ``val`` or ``test`` that ``train`` has not.
    """
    if not path.is_dir():
        raise DataError(f"image folder {path} does not exist or is not a folder; {_LAYOUT}")
    classes = sorted(folder.name for folder in _folders(path / "train"))
    if len(classes) < 2:
        raise DataError(
            f"{path / 'train'} must hold a folder of images for at least two classes, "
            f"but found {', '.join(classes) or 'none'}; {_LAYOUT}"
        )
    splits = {"train": _files(path / "train", classes)}
    rng = np.random.default_rng(seed)
    for split in ("val", "test"):
        if (path / split).is_dir():
            splits[split] = _files(path / split, classes)
        else:
            splits["train"], splits[split] = _carved(splits["train"], path, split, rng)
    digest = content_digest("imagefolder", mean, std)
    digest.update(f"{size};{classes};".encode())
    for split, files in sorted(splits.items()):
        names = (f"{split}:{file.relative_to(path).as_posix()}:{file.stat().st_size};" for file in files.paths)
        digest.update("".join(names).encode())
    streams = {split: StreamedSplit(files.paths, files.labels, size) for split, files in splits.items()}
    return ImageData(
        name="imagefolder",
        train=streams["train"],
        val=streams["val"],
        test=streams["test"],
        n_classes=len(classes),
        mean=mean,
        std=std,
        input_shape=(3, *size),
        content_hash=digest.hexdigest(),
    )


def _as_it_is(batch: Any) -> Any:
    """Return what ``__getitems__`` made, which is a batch already."""
    return batch


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _files(path: Path, classes: Sequence[str]) -> _Files:
    strange = sorted({folder.name for folder in _folders(path)} - set(classes))
    if strange:
        raise DataError(f"{path} must hold classes of train only, but found {', '.join(strange[:4])}; {_LAYOUT}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = path / name
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
        if not files and path.name == "train":
            raise DataError(f"{folder} must hold images ({', '.join(sorted(_SUFFIXES))}), but it is empty")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"{path} must hold images ({', '.join(sorted(_SUFFIXES))}), but it is empty; {_LAYOUT}")
    return _Files(tuple(paths), torch.tensor(labels, dtype=torch.int64))


def _carved(train: _Files, path: Path, split: str, rng: np.random.Generator) -> tuple[_Files, _Files]:
    rest, part = stratified_split(train.labels, (1 - _CARVED_SHARE, _CARVED_SHARE), rng=rng)
    if not len(part):
        raise DataError(
            f"{path} has no folder {split!r}, and classes of train have too few images to take off a tenth; "
            f"add {path / split}"
        )
    return train.at(rest), train.at(part)


def _decoded(path: Path, size: tuple[int, int]) -> Tensor:
    """Return the image as ``(3, *size)`` uint8: scaled to cover the size, its centre cut out."""
    height, width = size
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except _DECODING_ERRORS as error:
        raise DataError(f"{path} could not be decoded as an image ({error}); mend or remove the file") from error
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.array(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)
