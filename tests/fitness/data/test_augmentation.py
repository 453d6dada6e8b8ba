from __future__ import annotations

import numpy as np
import pytest
import torch

from fitness.data import ImageBatch, crop_and_flip, crop_turn_and_jitter, fitness_mixture


def batch_of(n: int, size: int = 32, n_classes: int = 5) -> ImageBatch:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))
    return ImageBatch(images, torch.arange(n) % n_classes)


def test_mixture_is_deterministic_and_leaves_the_batch_alone() -> None:
    batch = batch_of(20)
    before = batch.images.clone()
    first, again, other = (
        fitness_mixture(batch, 50, n_classes=5, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(batch.images, before)
    assert first.images.dtype == torch.uint8
    assert first.images.shape == (50, 3, 32, 32)


def test_soft_labels_are_distributions_and_labels_their_largest() -> None:
    mixture = fitness_mixture(batch_of(20), 60, n_classes=5, rng=np.random.default_rng(0))
    assert mixture.soft_labels is not None
    soft_labels = mixture.soft_labels
    torch.testing.assert_close(soft_labels.sum(dim=1), torch.ones(60))
    assert soft_labels.min() >= 0
    torch.testing.assert_close(soft_labels.gather(1, mixture.labels[:, None])[:, 0], soft_labels.amax(dim=1))
    assert soft_labels[0::3].amax(dim=1).eq(1).all()  # augmented images stay in their class
    assert soft_labels.amin(dim=1).eq(0).all()


def test_mixup_and_cutmix_of_constant_images_follow_their_shares() -> None:
    """Class 0 is black and class 1 white, so a mean brightness is the share of class 1, less the black border."""
    images = torch.stack([torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (0, 255)])
    mixture = fitness_mixture(ImageBatch(images, torch.tensor([0, 1])), 90, n_classes=2, rng=np.random.default_rng(0))
    assert mixture.soft_labels is not None
    inner = mixture.images[:, 0, 8:-8, 8:-8].float() / 255  # the crop moves by at most 8 pixels
    mixup = inner[1::3]
    share = mixture.soft_labels[1::3, 1]
    torch.testing.assert_close(mixup.mean(dim=(1, 2)), share, rtol=0, atol=1 / 255)
    cut = inner[2::3]
    assert ((cut == 0) | (cut == 1)).all()
    both = cut.amax(dim=(1, 2)) != cut.amin(dim=(1, 2))
    assert both.float().mean() > 0.3


def test_cutmix_shares_are_exact_fractions_of_pixels() -> None:
    mixture = fitness_mixture(batch_of(20, n_classes=20), 300, n_classes=20, rng=np.random.default_rng(0))
    assert mixture.soft_labels is not None
    pixels = mixture.soft_labels[2::3] * 32 * 32
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    largest = mixture.soft_labels[2::3].amax(dim=1)
    assert largest.min() >= 0.45


def test_sources_are_used_equally_often() -> None:
    mixture = fitness_mixture(batch_of(10, n_classes=10), 30, n_classes=10, rng=np.random.default_rng(0))
    assert len(mixture) == 30
    assert mixture.soft_labels is not None
    assert mixture.soft_labels.sum(dim=0).max() < 6  # 3 as a first image, at most 3 as a partner


def reference_crop(image: np.ndarray, top: int, left: int, mirrored: bool, pad: int) -> np.ndarray:
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    window = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return window[:, :, ::-1] if mirrored else window


@pytest.mark.parametrize("flip", [True, False])
def test_crop_and_flip_is_a_window_of_the_padded_image(flip: bool) -> None:
    images = batch_of(12, size=16).images
    moved = crop_and_flip(images, rng=np.random.default_rng(0), flip=flip).numpy()
    for image, result in zip(images.numpy(), moved, strict=True):
        assert any(
            np.array_equal(result, reference_crop(image, top, left, mirrored, 2))
            for top in range(5)
            for left in range(5)
            for mirrored in ((False, True) if flip else (False,))
        )


def test_half_of_the_images_are_flipped() -> None:
    ramp = torch.arange(16, dtype=torch.uint8).expand(400, 3, 16, 16).contiguous()
    moved = crop_and_flip(ramp, rng=np.random.default_rng(0)).int()
    assert (moved[:, 0, 8, 9] < moved[:, 0, 8, 7]).float().mean() == pytest.approx(0.5, abs=0.1)


def test_turned_and_jittered_images_stay_near_their_own_and_depend_on_the_generator_alone() -> None:
    ramp = torch.arange(32).repeat(6, 3, 32, 1).to(torch.uint8) * 4 + 64  # brighter to the right
    changed = crop_turn_and_jitter(ramp, rng=np.random.default_rng(0), flip=False)
    assert changed.shape == ramp.shape
    assert changed.dtype == torch.uint8
    inner = changed[:, 0, 8:24, 8:24].float()
    assert bool((inner[:, :, -4:].mean((1, 2)) > inner[:, :, :4].mean((1, 2))).all())
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 6
    assert torch.equal(changed, crop_turn_and_jitter(ramp, rng=np.random.default_rng(0), flip=False))
    assert not torch.equal(changed, crop_turn_and_jitter(ramp, rng=np.random.default_rng(1), flip=False))
