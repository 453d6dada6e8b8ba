from __future__ import annotations

import numpy as np
import pytest
import torch

from fitness.data import InMemorySplit, normalise
from fitness.data.images import resized, stratified_split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_images(n: int, size: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def test_normalise_follows_the_formula() -> None:
    images = random_images(5)
    expected = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    result = normalise(images, MEAN, STD)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    assert normalise(images, MEAN, STD, torch.bfloat16).dtype == torch.bfloat16


def test_take_and_batches_agree() -> None:
    split = InMemorySplit(random_images(10), torch.arange(10))
    batches = list(split.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    whole = split.take(np.arange(10))
    assert torch.equal(torch.cat([batch.images for batch in batches]), whole.images)
    assert torch.equal(split.take(np.array([7, 7, 2])).labels, torch.tensor([7, 7, 2]))


def test_resizing_keeps_constants_and_size_is_a_no_op() -> None:
    constant = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(resized(constant, 32, 20), torch.full((2, 3, 32, 20), 77, dtype=torch.uint8))
    images = random_images(2)
    assert resized(images, 6, 6) is images


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (0.9, 0.1), (0.5, 0.2)])
def test_stratified_split_is_disjoint_and_true_to_its_shares(shares: tuple[float, ...]) -> None:
    labels = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat(np.arange(4), (100, 50, 20, 10))))
    parts = stratified_split(labels, shares, rng=np.random.default_rng(0))
    together = np.concatenate(parts)
    assert len(set(together.tolist())) == len(together)
    assert len(together) == pytest.approx(sum(shares) * len(labels), abs=1)
    for part, share in zip(parts, shares, strict=True):
        counts = np.bincount(labels.numpy()[part], minlength=4)
        np.testing.assert_allclose(counts, share * np.array((100, 50, 20, 10)), atol=1)
    again = stratified_split(labels, shares, rng=np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
