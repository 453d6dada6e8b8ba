"""Data sets by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from fitness.cache import cache_root
from fitness.data.digits import digits_data
from fitness.data.imagefolder import imagefolder_data
from fitness.data.images import MEAN, STD, ChannelFigures, ImageData
from fitness.data.npz import npz_data
from fitness.data.torchvision_sets import TORCHVISION_SETS, torchvision_data
from search_spaces.errors import OptionError, UnknownNameError

DATA: Mapping[str, str] = {
    "cifar10": "CIFAR-10, downloaded by torchvision on first use",
    "cifar100": "CIFAR-100, downloaded by torchvision on first use",
    "digits": "scikit-learn's bundled handwritten digits, resized to 3 x 32 x 32; no download",
    "fashion-mnist": "Fashion-MNIST, resized to 3 x 32 x 32, downloaded by torchvision on first use",
    "imagefolder:PATH": "PATH/{train,val,test}/<class>/<image>, streamed; val and test are taken off train if absent",
    "npz:PATH": "one .npz file of the MedMNIST layout",
    "svhn": "Street View House Numbers, downloaded by torchvision on first use",
}

_SMALL = (32, 32)
_LARGE = (224, 224)


def load_data(
    spec: str,
    root: Path | None = None,
    seed: int = 0,
    input_shape: tuple[int, int, int] | None = None,
    *,
    mean: ChannelFigures = MEAN,
    std: ChannelFigures = STD,
) -> ImageData:
    """Return the data set that ``spec`` names, a key of ``DATA``.

    Args:
        spec: ``digits``, ``npz:PATH``, ``imagefolder:PATH``, ``cifar10``, ``cifar100``, ``svhn`` or ``fashion-mnist``.
        root: Folder of downloads; the user's cache folder by default.
        seed: Of the splits where the source has none. Not the seed of a search: runs that are to be compared share it.
        input_shape: ``(3, H, W)`` that images are resized to; by default 3 x 32 x 32, for ``imagefolder``
            3 x 224 x 224, for ``npz`` the size in the file.
        mean: Per channel, of images in [0, 1].
        std: Per channel, of images in [0, 1], positive.

    Raises:
        UnknownNameError: No data set has this name.
        OptionError: ``PATH`` is empty, or a shape or normalisation breaks its rule.
        DataError: The data cannot be read, downloaded, or breaks its layout.
    """
    kind, colon, rest = spec.partition(":")
    if f"{kind}:PATH" in DATA:
        if not rest:
            raise OptionError(f"a path must follow `{kind}:`, but got {spec!r}")
    elif kind in DATA and colon:
        raise OptionError(f"a path follows `npz:` and `imagefolder:` only, but got {spec!r}; write {kind!r}")
    elif spec not in DATA:
        if colon:  # the nearest kind is sought without the path
            raise UnknownNameError(f"data {spec!r}, of the form", f"{kind}:PATH", DATA)
        raise UnknownNameError("data", spec, DATA)
    size = _checked_size(input_shape)
    mean, std = _checked_normalisation(mean, std)
    if kind == "npz":
        return npz_data(Path(rest).expanduser(), size=size, mean=mean, std=std)
    if kind == "imagefolder":
        return imagefolder_data(Path(rest).expanduser(), size=size or _LARGE, mean=mean, std=std, seed=seed)
    if spec in TORCHVISION_SETS:
        folder = cache_root() / "data" if root is None else root
        return torchvision_data(spec, folder, size=size or _SMALL, mean=mean, std=std, seed=seed)
    return digits_data(size=size or _SMALL, mean=mean, std=std, seed=seed)


def _checked_size(input_shape: tuple[int, int, int] | None) -> tuple[int, int] | None:
    if input_shape is None:
        return None
    if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape) < 1:
        raise OptionError(f"images have the shape (3, H, W) with H, W >= 1, but got input_shape={tuple(input_shape)}")
    return input_shape[1], input_shape[2]


def _checked_normalisation(mean: ChannelFigures, std: ChannelFigures) -> tuple[ChannelFigures, ChannelFigures]:
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise OptionError(
            f"mean and std must be three finite numbers each, std positive, but got mean={mean}, std={std}"
        )
    # one form of equal values, since they enter the content hash
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
