"""Hash buckets against the definition, and who takes over for whom."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fitness.criteria import CriterionInput
from fitness.criteria.hashing import HashBuckets, buckets, representatives
from fitness.merging import MergeCompensation, MergeOptions
from search_spaces.errors import OptionError
from tests.fitness.criteria.networks import maps_of
from tests.fitness.networks import images, prepared, program_of
from tests.search_spaces.patterns import Chain, conv_bn


def test_buckets_are_the_rows_with_equal_signs() -> None:
    rng = np.random.default_rng(0)
    projected = rng.normal(size=(40, 3))
    found = buckets(projected)
    for i in range(40):
        for j in range(40):
            same = all((projected[i, bit] > 0) == (projected[j, bit] > 0) for bit in range(3))
            assert (found[i] == found[j]) == same
    assert found.min() == 0
    assert set(found) == set(range(found.max() + 1))


def test_buckets_follow_a_permutation_of_the_rows() -> None:
    rng = np.random.default_rng(1)
    projected, order = rng.normal(size=(20, 4)), rng.permutation(20)
    assert (buckets(projected[order]) == buckets(projected)[order]).all()


def test_the_representative_is_the_member_nearest_to_the_mean() -> None:
    rng = np.random.default_rng(2)
    projected, classes = rng.normal(size=(30, 5)), rng.integers(0, 8, 30)
    found = representatives(projected, classes)
    for name in range(8):
        members = [i for i in range(30) if classes[i] == name]
        mean = sum(projected[i] for i in members) / max(len(members), 1)
        ordered = sorted(members, key=lambda i: float(((projected[i] - mean) ** 2).sum()))
        for member in members:
            expected = member if len(members) == 1 else ordered[1] if member == ordered[0] else ordered[0]
            assert found[member] == expected


@pytest.mark.parametrize("name", ["convolution", "coupled, several readers", "grouped"])
def test_projections_are_those_of_the_centred_maps(name: str) -> None:
    """The hyperplanes are drawn again, map by map, and every projection is a plain sum of products."""
    _, program, inputs = program_of(name)
    data = CriterionInput(program, inputs, batch_size=7, seed=5)
    criterion = HashBuckets(n_hyperplanes=4, n_images=11)
    generator = data.torch_generator("lsh")
    planes: dict[tuple[int, int], list[torch.Tensor]] = {}
    for batch in data.batches("read", 11):
        for index in sorted(batch):
            for view, maps in enumerate(batch[index]):
                n = maps[:, 0].numel()
                drawn = torch.randn((n, 4), generator=generator, dtype=torch.float64)
                planes.setdefault((index, view), []).append(drawn)
    knowledge = criterion.compute(data)
    assert knowledge.classes is not None
    for index, group in data.groups:
        projected = np.zeros((group.size, 4))
        for gene in range(group.size):
            for view, maps in enumerate(maps_of(data, index)):
                values = maps[:11, gene].double().flatten()
                values = values - values.mean()
                projected[gene] += (values[:, None] * torch.cat(planes[index, view])).sum(dim=0).numpy()
        assert (knowledge.classes[group.start : group.stop] == buckets(projected)).all()


def test_alike_maps_share_a_bucket_as_often_as_the_angle_says() -> None:
    rng = np.random.default_rng(3)
    correlation, n_bits, n_pairs = 0.9, 4, 4000
    one = rng.normal(size=(n_pairs, 200))
    other = correlation * one + math.sqrt(1 - correlation**2) * rng.normal(size=one.shape)
    hits = 0
    for left, right in zip(one, other, strict=True):
        left, right = left - left.mean(), right - right.mean()
        right = right - (right @ left) / (left @ left) * left  # the angle is exact from here on
        left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
        right = correlation * left + math.sqrt(1 - correlation**2) * right
        found = buckets(np.stack([left, right]) @ rng.normal(size=(200, n_bits)))
        hits += int(found[0] == found[1])
    expected = (1 - math.acos(correlation) / math.pi) ** n_bits
    assert hits / n_pairs == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / n_pairs))


def test_the_merge_rule_carries_a_duplicate() -> None:
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 6), conv_bn(6, 5), width=5)
    made = model.layers[0]
    assert isinstance(made, torch.nn.Sequential)
    with torch.no_grad():
        for part in (made[0].weight, made[1].weight, made[1].bias):
            assert isinstance(part, torch.Tensor)
            part[4] = part[1]
    _, program = prepared(model)
    inputs = images(24)
    knowledge = HashBuckets(n_hyperplanes=16).compute(CriterionInput(program, inputs))
    assert knowledge.merge is not None
    assert {int(knowledge.merge[1]), int(knowledge.merge[4])} == {1, 4}
    genome = program.space.all_ones()[0]
    with torch.no_grad():
        dense = program.run(program.slice(genome), [inputs])[program.outputs[0]]
        genome[4] = False
        tensors = MergeCompensation(program, inputs, MergeOptions(rule="sum"))(genome, partners=knowledge.merge)
        merged = program.run(tensors, [inputs])[program.outputs[0]]
    assert torch.allclose(merged, dense, atol=1e-5)


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="n_hyperplanes <= 62"):
        HashBuckets(n_hyperplanes=63)
    with pytest.raises(OptionError, match="n_images >= 1"):
        HashBuckets(n_images=0)
