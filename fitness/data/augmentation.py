"""Images that a network has not memorised, made from images that it may have memorised.

DESIGN, section 4: judged on plain training images, a search learns what the network remembers; augmented, mixed and cut
images rank genomes more as unseen images do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fitness.data.images import ImageBatch
from search_spaces.genome import FloatArray

_MAX_ROTATION = np.pi / 12
_SCALES = (0.9, 1.1)
_JITTER = (0.75, 1.25)
# Near 0 and 1 a mixture is almost one plain image, which is what is to be avoided.
_MIX_SHARES = (0.25, 0.75)
_NOISE = 12.0


def fitness_mixture(
    batch: ImageBatch, n: int, *, n_classes: int, rng: np.random.Generator, flip: bool = True
) -> ImageBatch:
    """Return ``n`` images made from ``batch``: in turn one augmented, one mixup, one cutmix, so any prefix is balanced.

    All start from a random crop (and flip). Augmented images are then rotated, scaled and jittered in brightness and
    contrast; mixup and cutmix combine two of them in shares between 1/4 and 3/4. Every source image is used equally
    often, within one.

    Args:
        batch: At least one image; soft labels of its own are not looked at.
        n: Number of images wanted, at least 1.
        n_classes: Length of the soft labels.
        rng: The only source of chance.
        flip: Whether a mirrored image keeps its class; False for digits.

    Returns:
        uint8 images ``(n, C, H, W)``, labels ``(n,)`` of the larger share (of equal shares the first), and soft labels
        ``(n, n_classes)``.

    References:
        Zhang 2018, mixup, Eq. 1; Yun 2019, CutMix, Sec. 3.1. The ranges are ours.
    """
    first = torch.from_numpy(_even_draw(len(batch), n, rng))
    second = torch.from_numpy(_even_draw(len(batch), n, rng))
    images = crop_and_flip(batch.images[first], rng=rng, flip=flip)
    partners = crop_and_flip(batch.images[second], rng=rng, flip=flip)
    shares = torch.from_numpy(rng.uniform(*_MIX_SHARES, n)).float()
    augmented, mixed, cut = (torch.arange(start, n, 3) for start in range(3))
    result = torch.empty_like(images)
    result[augmented] = _affine_and_jitter(images[augmented], rng)
    result[mixed] = _mixup(images[mixed], partners[mixed], shares[mixed])
    result[cut], shares[cut] = _cutmix(images[cut], partners[cut], shares[cut], rng)
    shares[augmented] = 1.0
    labels, other = batch.labels[first], batch.labels[second]
    soft_labels = functional.one_hot(labels, n_classes) * shares[:, None]
    soft_labels = soft_labels + functional.one_hot(other, n_classes) * (1 - shares[:, None])
    return ImageBatch(result, torch.where(shares >= 0.5, labels, other), soft_labels)


def plain_and_noisy(batch: ImageBatch, *, rng: np.random.Generator) -> tuple[ImageBatch, tuple[int, ...]]:
    """Return the images of ``batch``, the second half of them with pixel noise, and the sizes of the two parts.

    Of the kinds of images that were tried, these two rank genomes most as unseen images do (``docs/fitness.md``).

    Args:
        batch: At least two images for both parts to occur.
        rng: Of the Gaussian noise, standard deviation 12 / 255.
    """
    n_plain = -(-len(batch) // 2)
    noisy = batch.images[n_plain:].float()
    noise = _float32(rng.normal(0.0, _NOISE, noisy.shape))
    images = torch.cat([batch.images[:n_plain], _as_uint8(noisy + noise)])
    sizes = tuple(size for size in (n_plain, len(batch) - n_plain) if size)
    return ImageBatch(images, batch.labels, batch.soft_labels), sizes


def crop_and_flip(images: Tensor, *, rng: np.random.Generator, flip: bool = True) -> Tensor:
    """Return uint8 ``images`` ``(n, C, H, W)``, each moved by up to an eighth of its size and mirrored.

    The move is 4 pixels at most for 32 x 32, and black comes in. Half of the images are mirrored, none where ``flip``
    is False.
    """
    n, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    rows = torch.from_numpy(rng.integers(0, 2 * pad_y + 1, (n, 1))) + torch.arange(height)
    columns = torch.from_numpy(rng.integers(0, 2 * pad_x + 1, (n, 1))) + torch.arange(width)
    if flip:
        mirrored = torch.from_numpy(rng.random((n, 1)) < 0.5)
        columns = torch.where(mirrored, columns.flip(1), columns)
    moved = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def crop_turn_and_jitter(images: Tensor, *, rng: np.random.Generator, flip: bool = True) -> Tensor:
    """Return uint8 ``images`` ``(n, C, H, W)`` after :func:`crop_and_flip`, turned, scaled and jittered.

    By up to 15 degrees, a tenth of the size, and a quarter of brightness and contrast.
    """
    return _affine_and_jitter(crop_and_flip(images, rng=rng, flip=flip), rng)


def _even_draw(n_sources: int, n: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    rounds = [rng.permutation(n_sources) for _ in range(-(-n // n_sources))]
    return np.concatenate(rounds)[:n]


def _affine_and_jitter(images: Tensor, rng: np.random.Generator) -> Tensor:
    n = len(images)
    angle, scale = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION, n), rng.uniform(*_SCALES, n)
    cosine, sine, zero = np.cos(angle) / scale, np.sin(angle) / scale, np.zeros(n)
    matrices = np.stack((cosine, -sine, zero, sine, cosine, zero), axis=1).reshape(n, 2, 3)
    grid = functional.affine_grid(_float32(matrices), list(images.shape), align_corners=False)
    turned = functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    contrast, brightness = (_float32(rng.uniform(*_JITTER, n)).view(n, 1, 1, 1) for _ in range(2))
    centre = turned.mean(dim=(1, 2, 3), keepdim=True)
    return _as_uint8(((turned - centre) * contrast + centre) * brightness)


def _mixup(images: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    weights = shares.view(-1, 1, 1, 1)
    return _as_uint8(images.float() * weights + partners.float() * (1 - weights))


def _cutmix(images: Tensor, partners: Tensor, shares: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the cut images and the exact shares that the first images keep."""
    height, width = images.shape[2:]
    side = (1 - shares).sqrt()
    rows = _inside(height, side, rng)
    columns = _inside(width, side, rng)
    box = rows[:, None, :, None] & columns[:, None, None, :]
    kept = 1 - rows.sum(dim=1) * columns.sum(dim=1) / (height * width)
    return torch.where(box, partners, images), kept


def _inside(length: int, side: Tensor, rng: np.random.Generator) -> Tensor:
    """Return ``(n, length)``, True inside a window of ``side`` times the length at a random place."""
    extents = (side * length).round().to(torch.int64).clamp(1, length)
    starts = (torch.from_numpy(rng.random(len(side))) * (length - extents + 1)).to(torch.int64)
    positions = torch.arange(length)
    return (positions >= starts[:, None]) & (positions < (starts + extents)[:, None])


def _float32(values: FloatArray) -> Tensor:
    return torch.from_numpy(values).float()


def _as_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
