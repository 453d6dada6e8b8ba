from __future__ import annotations

import numpy as np
import pytest
import torch

from fitness.criteria import ChannelKnowledge, MaskFamily, draw_seeds, removal_order
from fitness.criteria.drawing import class_removal_order, ranked_within_groups
from fitness.seeding import width_seeds
from search_spaces import SearchSpace
from search_spaces.errors import BudgetError, GenomeShapeError, OptionError
from search_spaces.models import build_model
from tests.fitness.criteria.networks import data_of

BUDGET = {"macs": 0.6}


def space_and_sizes(name: str = "convolution") -> tuple[SearchSpace, tuple[int, ...]]:
    data = data_of(name)
    return data.space, data.sizes


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def alike(sizes: tuple[int, ...], seed: int = 0) -> dict[int, np.ndarray]:
    found = {}
    for index, size in enumerate(sizes):
        matrix = rng(seed + index).random((size, size))
        found[index] = (matrix + matrix.T) / 2
        np.fill_diagonal(found[index], 1.0)
    return found


def by_scanning(similarity: np.ndarray, strength: np.ndarray | None) -> list[int]:
    """Return the order of removal from a sorted list of pairs."""
    g = len(similarity)
    alive, order = set(range(g)), []
    pairs = sorted(((similarity[i, j], i, j) for i in range(g) for j in range(i)), reverse=True)
    while len(alive) > 1:
        _, i, j = next(pair for pair in pairs if pair[1] in alive and pair[2] in alive)
        sums = [sum(similarity[k, other] for other in alive if other != k) for k in (i, j)]
        if abs(sums[0] - sums[1]) > 1e-9:
            gone = i if sums[0] > sums[1] else j
        else:
            assert strength is not None
            gone = i if strength[i] < strength[j] else j
        alive.remove(gone)
        order.append(gone)
    return [*order, *alive]


@pytest.mark.parametrize("size", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("seed", range(3))
def test_removal_takes_one_of_the_most_alike_pair(size: int, seed: int) -> None:
    matrix = alike((size,), seed)[0]
    strength = rng(9).random(size)
    assert removal_order(matrix, strength).tolist() == by_scanning(matrix, strength)


def test_the_weaker_of_equals_goes() -> None:
    matrix = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
    assert removal_order(matrix, np.array([2.0, 1.0, 3.0]))[0] == 1
    assert removal_order(matrix, np.array([1.0, 2.0, 3.0]))[0] == 0
    assert removal_order(np.empty((0, 0))).shape == (0,)


def test_large_classes_are_thinned_first() -> None:
    classes = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    for seed in range(20):
        order = class_removal_order(classes, 0.5, rng=rng(seed))
        assert sorted(order) == list(range(11))
        # ceil(5 * 0.4) = 2 and ceil(3 * 0.4) = 2 stay at first, and one of every class until the end
        assert (classes[order[:3]] == 0).all()
        assert classes[order[3]] == 1
        assert sorted(classes[order[-4:]]) == [0, 1, 2, 3]


def test_members_of_a_class_are_equally_likely() -> None:
    first = [int(class_removal_order(np.zeros(4, np.int64), 0.5, rng=rng(seed))[0]) for seed in range(400)]
    assert np.bincount(first, minlength=4).min() > 60


def test_ranks_are_middle_ones_inside_groups() -> None:
    knowledge = ChannelKnowledge((4, 2, 1), scores=np.array([5.0, 1.0, 1.0, 7.0, 2.0, 1.0, 9.0]))
    assert knowledge.scores is not None
    expected = [2.5 / 4, 1 / 4, 1 / 4, 3.5 / 4, 0.75, 0.25, 0.5]
    assert ranked_within_groups(knowledge.scores, knowledge).tolist() == expected


@pytest.mark.parametrize("is_global", [False, True])
def test_first_draw_keeps_the_best_scored_of_each_group(is_global: bool) -> None:
    space, sizes = space_and_sizes()
    scores = rng().random(space.n_genes)
    knowledge = ChannelKnowledge(sizes, scores=scores, is_global=is_global)
    seed = draw_seeds(knowledge, space, rng=rng(), n=1, budgets=BUDGET)[0]
    assert not seed.all()
    for group in space.groups:
        part, kept = scores[group.start : group.stop], seed[group.start : group.stop]
        assert part[kept].min() > part[~kept].max(initial=-1.0)


def test_widths_do_not_depend_on_the_unit_of_the_scores() -> None:
    space = SearchSpace.trace(build_model("resnet20"), torch.zeros(1, 3, 16, 16))
    scores = np.concatenate([rng().random(group.size) * 1.2**index for index, group in enumerate(space.groups)])
    genomes, small = (width_seeds(space, s, rng=rng(), n=5, budgets={"macs": 0.5}) for s in (scores, 1e-13 * scores))
    np.testing.assert_array_equal(genomes, small)
    assert not width_seeds(space, 0 * scores, rng=rng(), n=1, budgets={"macs": 0.5}).all()


def test_scores_of_the_network_take_turns_with_equal_widths_and_those_half_way_to_them() -> None:
    space = SearchSpace.trace(build_model("resnet20"), torch.zeros(1, 3, 16, 16))
    sizes = tuple(group.size for group in space.groups)
    scores = np.concatenate([rng().random(size) * 1.2**index for index, size in enumerate(sizes)])
    seeds = draw_seeds(
        ChannelKnowledge(sizes, scores=scores, is_global=True), space, rng=rng(), n=6, budgets={"macs": 0.5}
    )
    own, equal, half_way = (space.kept_counts(seeds)[row] / sizes for row in (0, 1, 3))
    np.testing.assert_array_equal(
        seeds[::2], width_seeds(space, scores - scores.min(), rng=rng(), n=3, budgets={"macs": 0.5})
    )
    assert np.ptp(equal) < np.ptp(half_way) < np.ptp(own)
    for index, group in enumerate(space.groups):
        part, kept = scores[group.start : group.stop], seeds[1, group.start : group.stop]
        assert part[kept].min() > part[~kept].max(initial=-1.0), index


def test_first_draw_of_similarities_follows_the_order_of_removal() -> None:
    space, sizes = space_and_sizes()
    similarity = alike(sizes)
    seeds = draw_seeds(ChannelKnowledge(sizes, similarity=similarity), space, rng=rng(), n=4, budgets=BUDGET)
    for index, group in enumerate(space.groups):
        gone = np.flatnonzero(~seeds[0, group.start : group.stop])
        assert set(gone) == set(removal_order(similarity[index])[: len(gone)])


def test_every_draw_of_classes_is_another_individual_of_the_same_classes() -> None:
    space, sizes = space_and_sizes()
    classes = np.concatenate([np.arange(size) // 2 for size in sizes])
    seeds = draw_seeds(ChannelKnowledge(sizes, classes=classes), space, rng=rng(), n=12, budgets={"macs": 0.5})
    assert len({seed.tobytes() for seed in seeds}) > 6
    group = space.groups[0]
    counts = seeds[:, group.start : group.stop].sum(axis=1)
    n_classes = [len(np.unique(classes[:6][seed[:6]])) for seed in seeds]
    assert n_classes == np.minimum(counts, 3).tolist()


def test_masks_nearest_to_the_budget_come_first() -> None:
    space, sizes = space_and_sizes()
    masks = space.all_ones(3)
    masks[1, ::2] = False
    masks[2, 1:] = False
    family = MaskFamily(np.arange(3.0), masks)
    near = float(space.macs(masks[1:2])[0]) / space.macs_dense
    seed = draw_seeds(ChannelKnowledge(sizes, family=family), space, rng=rng(), n=1, budgets={"macs": near})[0]
    assert np.array_equal(seed, masks[1])


def test_widths_shape_the_first_draw() -> None:
    space, sizes = space_and_sizes()
    knowledge = ChannelKnowledge(sizes, widths=np.array([1.0, 0.5, 0.2]))
    wanted = draw_seeds(knowledge, space, rng=rng(), n=1, budgets={"macs": 0.55})
    equal = draw_seeds(ChannelKnowledge(sizes, widths=np.ones(3)), space, rng=rng(), n=1, budgets={"macs": 0.55})
    assert space.kept_counts(wanted)[0, :2].tolist() == [6, 2]  # what is left over goes to the cheap last group
    assert space.kept_counts(equal)[0, :2].tolist() == [4, 3]


def test_roles_share_the_draws() -> None:
    space, sizes = space_and_sizes()
    knowledge = ChannelKnowledge(sizes, scores=np.arange(space.n_genes, dtype=float), similarity=alike(sizes))
    seeds = draw_seeds(knowledge, space, rng=rng(), n=5, budgets=BUDGET)
    alone = draw_seeds(ChannelKnowledge(sizes, scores=knowledge.scores), space, rng=rng(), n=1, budgets=BUDGET)
    assert np.array_equal(seeds[0], alone[0])
    assert not np.array_equal(seeds[0], seeds[1])


def test_without_budget_widths_vary() -> None:
    space, sizes = space_and_sizes()
    knowledge = ChannelKnowledge(sizes, scores=np.arange(space.n_genes, dtype=float))
    seeds = draw_seeds(knowledge, space, rng=rng(), n=30)
    assert space.is_valid(seeds).all()
    assert len(np.unique(seeds.sum(axis=1))) > 5


def test_same_generator_same_draws() -> None:
    space, sizes = space_and_sizes()
    knowledge = ChannelKnowledge(sizes, similarity=alike(sizes))
    one, two = (draw_seeds(knowledge, space, rng=rng(3), n=6, budgets=BUDGET) for _ in range(2))
    assert np.array_equal(one, two)


def test_misuse_is_told() -> None:
    space, sizes = space_and_sizes()
    knowledge = ChannelKnowledge(sizes, scores=np.zeros(space.n_genes))
    with pytest.raises(GenomeShapeError, match="does not fit this search space"):
        draw_seeds(ChannelKnowledge((2,), scores=np.zeros(2)), space, rng=rng(), n=1)
    with pytest.raises(OptionError, match="n >= 0"):
        draw_seeds(knowledge, space, rng=rng(), n=-1)
    with pytest.raises(BudgetError, match="reachable range"):
        draw_seeds(knowledge, space, rng=rng(), n=1, budgets={"macs": 1e-6})
    assert draw_seeds(knowledge, space, rng=rng(), n=0, budgets=BUDGET).shape == (0, space.n_genes)
