"""Data sets in one ``.npz`` file of the MedMNIST layout."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitness.data.images import ChannelFigures, ImageData, in_memory_data, resized
from search_spaces.errors import DataError

_SPLITS = ("train", "val", "test")
_LAYOUT = (
    "the layout is {train,val,test}_images (n, H, W[, 3]) uint8 and {train,val,test}_labels (n,) or (n, 1) integer"
)


def npz_data(path: Path, *, size: tuple[int, int] | None, mean: ChannelFigures, std: ChannelFigures) -> ImageData:
    """Return the data set in ``path``; grey images are repeated to three channels, ``size`` resizes.

    Raises:
        DataError: The file is missing, truncated or no ``.npz``, or its arrays break the layout.
    """
    arrays = _read(path)
    splits = []
    for split in _SPLITS:
        images = _checked_images(arrays[f"{split}_images"], f"{split}_images", path)
        labels = _checked_labels(arrays[f"{split}_labels"], f"{split}_labels", path)
        if len(images) != len(labels):
            raise DataError(f"{path}: {split} must have a label per image, but got {len(images)} and {len(labels)}")
        splits.append((images if size is None else resized(images, *size), labels))
    n_classes = int(splits[0][1].max()) + 1
    if n_classes < 2:
        raise DataError(f"{path}: train_labels must hold at least two classes, but all are 0")
    for split, (images, labels) in zip(_SPLITS, splits, strict=True):
        if images.shape[1:] != splits[0][0].shape[1:]:
            raise DataError(
                f"{path}: all images must have one shape, but {split}_images have {tuple(images.shape[1:])} "
                f"and train_images {tuple(splits[0][0].shape[1:])} (C, H, W)"
            )
        if int(labels.max()) >= n_classes:
            raise DataError(
                f"{path}: {split}_labels must be classes of train_labels (0 to {n_classes - 1}), "
                f"but one is {int(labels.max())}"
            )
    return in_memory_data("npz", splits, n_classes=n_classes, mean=mean, std=std, may_flip=True)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"data file {path} does not exist or is not a file; check --data npz:PATH")
    names = [f"{split}_{what}" for split in _SPLITS for what in ("images", "labels")]
    try:
        with path.open("rb") as file:  # np.load leaves a file open that it opened and could not read
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array and no .npz archive; {_LAYOUT}")
            missing = [name for name in names if name not in archive.files]
            if missing:
                found = ", ".join(archive.files[:8]) or "nothing"
                raise DataError(f"{path} must hold {', '.join(missing)}, but it holds {found}; {_LAYOUT}")
            return {name: archive[name] for name in names}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is no complete .npz file of plain arrays ({error}); "
            f"it may be truncated or of another kind; {_LAYOUT}"
        ) from error


def _checked_images(array: npt.NDArray[Any], name: str, path: Path) -> Tensor:
    if array.dtype != np.uint8:
        raise DataError(f"{path}: {name} must be uint8, but got {array.dtype}; store pixels as 0 to 255")
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise DataError(f"{path}: {name} must be (n, H, W) or (n, H, W, 3), but got {array.shape}")
    if not array.size:
        raise DataError(f"{path}: {name} must hold images, but got {array.shape}")
    images = torch.from_numpy(np.ascontiguousarray(array))
    return images[:, None].repeat(1, 3, 1, 1) if array.ndim == 3 else images.permute(0, 3, 1, 2)


def _checked_labels(array: npt.NDArray[Any], name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} must be integers, but got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{path}: {name} must hold one class per image, (n,) or (n, 1), but got {array.shape}")
    if len(array) and int(array.min()) < 0:
        raise DataError(f"{path}: {name} must be 0 or more, but one is {int(array.min())}")
    return torch.from_numpy(array.astype(np.int64))
