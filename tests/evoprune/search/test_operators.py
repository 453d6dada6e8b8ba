"""Operators keep what they promise to keep, use their generator alone, and meet their stated rates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoprune.search.guides import (
    UNGUIDED,
    Guide,
    Prior,
    guide_of,
    mutation_priors,
    normalise_scores,
    positions_in_groups,
)
from evoprune.search.operators import (
    as_widths,
    binary_tournament,
    bit_flip,
    build_toolbox,
    cross_groups,
    cross_two_point,
    cross_uniform,
    flip,
    local_search,
    resize,
    swap,
    toggle_blocks,
    truncate,
    with_counts,
)
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, FloatArray
from search_spaces.repair import Lattice, count_kept


def make_lattice(sizes: list[int], step: int = 1) -> Lattice:
    size = np.array(sizes, np.int64)
    starts = np.concatenate([[0], np.cumsum(size)[:-1]]).astype(np.int64)
    steps = np.full(len(size), step, np.int64)
    no_blocks = np.zeros(len(size), np.bool_)
    return Lattice(starts, size, np.minimum(step, size), steps, no_blocks, np.full(len(size), -1, np.int64))


@st.composite
def cases(draw: st.DrawFn) -> tuple[BoolArray, Lattice, int]:
    """A population that respects its lattice, and a seed."""
    lattice = make_lattice(draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)), draw(st.integers(1, 3)))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 6))
    counts = lattice.floor(rng.integers(0, lattice.sizes + 1, (n, len(lattice.sizes))))
    shape = (n, int(lattice.sizes.sum()))
    return with_counts(np.zeros(shape, np.bool_), counts, rng.random(shape), lattice), lattice, seed


@settings(deadline=None)
@given(cases(), st.floats(0.001, 1))
def test_swap_keeps_counts_and_moves_where_it_can(case: tuple[BoolArray, Lattice, int], rate: float) -> None:
    genomes, lattice, seed = case
    changed = swap(genomes, rates=np.full(len(genomes), 1e-9), rng=np.random.default_rng(seed), lattice=lattice)
    counts = count_kept(genomes, lattice)
    np.testing.assert_array_equal(count_kept(changed, lattice), counts)
    can_move = ((counts > 0) & (counts < lattice.sizes)).any(axis=1)
    np.testing.assert_array_equal((changed != genomes).sum(axis=1), 2 * can_move)
    many = swap(genomes, rates=np.full(len(genomes), rate), rng=np.random.default_rng(seed), lattice=lattice)
    np.testing.assert_array_equal(count_kept(many, lattice), counts)


@settings(deadline=None)
@given(cases(), st.floats(0.001, 1), st.booleans())
def test_resize_stays_on_the_lattice_and_moves_the_least(
    case: tuple[BoolArray, Lattice, int], rate: float, with_scores: bool
) -> None:
    genomes, lattice, seed = case
    guide = Guide(order=np.random.default_rng(seed).random(genomes.shape[1]) if with_scores else None)
    rates = np.full(len(genomes), rate)
    changed = resize(genomes, rates=rates, rng=np.random.default_rng(seed), lattice=lattice, guide=guide)
    counts = count_kept(changed, lattice)
    np.testing.assert_array_equal(lattice.floor(counts), counts)
    difference = np.abs(counts - count_kept(genomes, lattice)).sum(axis=1)
    np.testing.assert_array_equal((changed != genomes).sum(axis=1), difference)


def test_resize_reaches_every_allowed_count_of_a_group_that_is_no_multiple_of_the_step() -> None:
    numbers = {"starts": 0, "sizes": 17, "min_keep": 4, "step": 4, "owner": -1}
    columns = {name: np.array([value]) for name, value in numbers.items()}
    lattice = Lattice(**columns, is_block=np.zeros(1, np.bool_))
    genomes = np.ones((400, 17), np.bool_)
    changed = resize(genomes, rates=np.zeros(400), rng=np.random.default_rng(0), lattice=lattice)
    assert {16, 12} <= set(count_kept(changed, lattice)[:, 0].tolist())


@settings(deadline=None)
@given(cases())
def test_children_hold_only_genes_of_their_parents(case: tuple[BoolArray, Lattice, int]) -> None:
    first, lattice, seed = case
    second = first[::-1]
    group_of_gene = np.repeat(np.arange(len(lattice.sizes)), lattice.sizes)
    rng = np.random.default_rng(seed)
    for cross in (
        lambda a, b: cross_uniform(a, b, rng=rng),
        lambda a, b: cross_groups(a, b, rng=rng, lattice=lattice),
        lambda a, b: cross_two_point(a, b, rng=rng, lattice=lattice),
    ):
        child = cross(first, second)
        assert ((child == first) | (child == second)).all()
        assert child.dtype == np.bool_
    for cross in (cross_groups, cross_two_point):
        child = cross(first, second, rng=rng, lattice=lattice)
        for group in range(len(lattice.sizes)):
            genes = group_of_gene == group
            whole = (child[:, genes] == first[:, genes]).all(1) | (child[:, genes] == second[:, genes]).all(1)
            assert whole.all()


def test_two_points_take_one_run_of_groups() -> None:
    lattice = make_lattice([3, 1, 4, 2, 5])
    shape = (500, 15)
    child = cross_two_point(np.ones(shape, bool), np.zeros(shape, bool), rng=np.random.default_rng(0), lattice=lattice)
    from_second = count_kept(~child, lattice) > 0
    n_borders = (np.diff(np.pad(from_second, ((0, 0), (1, 1))).astype(int), axis=1) != 0).sum(axis=1)
    assert set(n_borders.tolist()) <= {0, 2}
    assert from_second.mean() == pytest.approx(7 / 18, abs=0.05)  # E|a - b| / n = (n + 2) / (3 (n + 1)) for n = 5


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_flip_meets_its_rate_with_equal_drops_and_revivals(share: float) -> None:
    rng = np.random.default_rng(0)
    genomes = rng.random((200, 400)) < share
    rate = 0.05
    changed = flip(genomes, rates=np.full(200, rate), rng=rng)
    n_dropped, n_revived = (genomes & ~changed).sum(axis=1), (~genomes & changed).sum(axis=1)
    expected = rate * 400 / 2
    tolerance = 4 * np.sqrt(expected / 200)
    assert n_dropped.mean() == pytest.approx(expected, abs=tolerance)
    assert n_revived.mean() == pytest.approx(expected, abs=tolerance)


def test_flip_of_full_and_empty_genomes_is_defined() -> None:
    for value in (True, False):
        genomes = np.full((3, 10), value)
        changed = flip(genomes, rates=np.full(3, 0.5), rng=np.random.default_rng(0))
        assert 0 < (changed != genomes).sum() < genomes.size


def test_priors_steer_flips_and_make_none_impossible() -> None:
    scores = np.array([0.0, 0.5, 1.0])
    p_drop, p_revive = mutation_priors(scores, floor=0.1)
    np.testing.assert_allclose(p_drop, [1.0, 0.5, 0.1])
    np.testing.assert_allclose(p_revive, [0.1, 0.5, 1.0])
    genomes = np.ones((20_000, 3), np.bool_)
    rng = np.random.default_rng(0)
    changed = flip(genomes, rates=np.full(len(genomes), 0.2), rng=rng, guide=Guide(p_drop=p_drop, p_revive=p_revive))
    np.testing.assert_allclose((~changed).mean(axis=0), 0.3 * p_drop / p_drop.sum(), atol=0.015)


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_the_worst_never_wins_a_tournament_of_two(n: int, seed: int) -> None:
    winners = binary_tournament(np.arange(n), 200, rng=np.random.default_rng(seed))
    assert winners.shape == (200,)
    assert winners.max() == max(n - 2, 0) or n > 3
    assert (winners != n - 1).all() or n == 1


def test_a_tournament_prefers_the_best_as_often_as_theory_says() -> None:
    winners = binary_tournament(np.arange(10), 100_000, rng=np.random.default_rng(0))
    expected = 2 * (9 - np.arange(10)) / (10 * 9)
    np.testing.assert_allclose(np.bincount(winners, minlength=10) / 100_000, expected, atol=0.005)


def test_truncation_sorts_keeps_ties_in_order_and_leaves_failures_out() -> None:
    values = np.array([[3.0], [1.0], [np.inf], [1.0], [2.0]])
    assert truncate(values, 3).tolist() == [1, 3, 4]
    assert truncate(values, 5).tolist() == [1, 3, 4, 0]
    assert truncate(values[2:3], 5).tolist() == [0]


def test_scores_become_positions_within_groups() -> None:
    lattice = make_lattice([4, 2])
    scores = normalise_scores(np.array([10.0, 30.0, 20.0, 0.0, -5.0, -1.0]), lattice)
    np.testing.assert_allclose(scores, [0.375, 0.875, 0.625, 0.125, 0.25, 0.75])
    positions = positions_in_groups(np.array([[1.0, 1.0, 2.0, 0.0, 5.0, 5.0]]), lattice)
    assert positions.tolist() == [[1, 2, 0, 3, 0, 1]]


@pytest.mark.parametrize("scores", [np.zeros(5), np.array([0, 1, 2, np.nan, 4, 5]), np.zeros((1, 6))])
def test_malformed_scores_are_refused(scores: FloatArray) -> None:
    with pytest.raises(OptionError, match="must be 6 finite numbers"):
        normalise_scores(scores, make_lattice([4, 2]))


PAIRS = Prior("pairs", similarity={0: np.eye(5) + 0.5, 2: np.eye(3)})
CLASSES = Prior("classes", np.linspace(0, 1, 12), classes=np.repeat([0, 1, 2, -1], 3))
GUIDES = {
    "none": UNGUIDED,
    "scores": guide_of(Prior("scores", np.linspace(0, 1, 12)), make_lattice([5, 4, 3])),
    "pairs": guide_of(PAIRS, make_lattice([5, 4, 3])),
    "classes": guide_of(CLASSES, make_lattice([5, 4, 3])),
}


@pytest.mark.parametrize(
    "name", ["mutate_flip", "mutate_bit_flip", "mutate_uniform_flip", "mutate_swap", "mutate_drop", "mutate_width"]
)
@pytest.mark.parametrize("kind", GUIDES)
def test_every_mutation_is_a_function_of_its_generator(name: str, kind: str) -> None:
    lattice, guide = make_lattice([5, 4, 3]), GUIDES[kind]
    mutate: Callable[..., BoolArray] = getattr(build_toolbox(lattice), name)
    genomes = np.random.default_rng(1).random((40, 12)) < 0.5
    original = genomes.copy()
    first, again, other = (
        mutate(genomes, rates=np.full(40, 0.2), rng=np.random.default_rng(seed), guide=guide) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(genomes, original)
    assert mutate(genomes[:0], rates=np.empty(0), rng=np.random.default_rng(0), guide=guide).shape == (0, 12)


def test_bit_flips_come_one_per_genome_in_expectation() -> None:
    genomes = np.random.default_rng(0).random((4000, 50)) < 0.5
    changed = bit_flip(genomes, rates=np.full(4000, 0.5), rng=np.random.default_rng(1))
    n_flipped = (changed != genomes).sum(axis=1)
    assert n_flipped.mean() == pytest.approx(1.0, abs=4 / np.sqrt(4000))
    assert (n_flipped == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.03)


def block_lattice() -> Lattice:
    """Two groups of a trunk, two inside of a block each, and the two genes that remove the blocks."""
    plain = make_lattice([6, 4, 8, 5, 1, 1])
    is_block = np.array([False] * 4 + [True] * 2)
    min_keep = np.where(is_block, 0, 1)
    return Lattice(plain.starts, plain.sizes, min_keep, plain.step, is_block, np.array([-1, -1, 4, 5, -1, -1]))


def test_blocks_are_toggled_and_come_back_as_wide_as_the_rest() -> None:
    lattice = block_lattice()
    genomes = np.ones((400, 25), np.bool_)
    genomes[:, [0, 1, 2, 6, 7]] = False  # half of the trunk is kept
    genomes[:, 23] = False  # the first block is gone, and whole inside
    changed = toggle_blocks(genomes, rates=np.full(400, 1e-9), rng=np.random.default_rng(0), lattice=lattice)
    toggled = changed[:, 23:] != genomes[:, 23:]
    assert (toggled.sum(axis=1) == 1).all()
    assert 0.4 < toggled[:, 0].mean() < 0.6
    counts = count_kept(changed, lattice)
    back = toggled[:, 0]
    share = (3 + 2 + 5) / (6 + 4 + 5)  # of the groups that take part
    assert (counts[back, 2] == round(share * 8)).all()
    assert (counts[~back, 2:4] == [8, 5]).all()  # removed blocks are whole inside: one genome per network
    np.testing.assert_array_equal(changed[:, :10], genomes[:, :10])
    without = make_lattice([3, 2])
    same = toggle_blocks(genomes[:, :5], rates=np.full(400, 0.5), rng=np.random.default_rng(0), lattice=without)
    np.testing.assert_array_equal(same, genomes[:, :5])


class QuadraticError:
    """``u' G u / 2`` of the dropped genes u."""

    def __init__(self, n_genes: int, seed: int) -> None:
        root = np.random.default_rng(seed).normal(size=(n_genes, n_genes))
        self.gram = root @ root.T

    def of(self, genome: BoolArray) -> float:
        dropped = (~genome).astype(np.float64)
        return float(dropped @ self.gram @ dropped) / 2

    def flip_marginals(self, genome: BoolArray) -> FloatArray:
        change = []
        for gene in range(len(genome)):
            flipped = genome.copy()
            flipped[gene] = not flipped[gene]
            change.append(self.of(flipped) - self.of(genome))
        return np.array(change)

    def swap_marginals(self, genome: BoolArray, dropped: int) -> FloatArray:
        change = np.full(len(genome), np.inf)
        for gene in np.flatnonzero(genome):
            swapped = genome.copy()
            swapped[dropped], swapped[gene] = True, False
            change[gene] = self.of(swapped) - self.of(genome)
        return change


@pytest.mark.parametrize("seed", range(4))
def test_local_search_lowers_the_error_at_the_same_widths_until_no_exchange_does(seed: int) -> None:
    lattice, rng = make_lattice([4, 5, 3]), np.random.default_rng(seed)
    error = QuadraticError(12, seed)
    genomes = rng.random((3, 12)) < 0.5
    genomes[0] = True  # nothing to exchange
    once = local_search(genomes, rates=np.full(3, 1e-9), rng=np.random.default_rng(0), lattice=lattice, error=error)
    assert ((once != genomes).sum(axis=1) <= 2).all()
    done = local_search(genomes, rates=np.full(3, 1.0), rng=np.random.default_rng(0), lattice=lattice, error=error)
    np.testing.assert_array_equal(done[0], genomes[0])
    for before, between, after in zip(genomes, once, done, strict=True):
        assert error.of(after) <= error.of(between) <= error.of(before)
        np.testing.assert_array_equal(count_kept(after[None], lattice), count_kept(before[None], lattice))
    again = local_search(done, rates=np.full(3, 1.0), rng=np.random.default_rng(1), lattice=lattice, error=error)
    after = np.array([error.of(genome) for genome in again])
    assert (after <= np.array([error.of(genome) for genome in done])).all()


def test_a_group_of_five_is_searched_for_its_best_exchange() -> None:
    lattice, error = make_lattice([5]), QuadraticError(5, 1)
    genome = np.array([[True, True, False, False, False]])
    best = min(
        (change, revived, int(gene))
        for revived in (2, 3, 4)
        for gene, change in enumerate(error.swap_marginals(genome[0], revived))
    )
    changed = local_search(genome, rates=np.array([1e-9]), rng=np.random.default_rng(0), lattice=lattice, error=error)
    if best[0] < 0:
        assert np.flatnonzero(changed[0] != genome[0]).tolist() == sorted(best[1:])
    else:
        np.testing.assert_array_equal(changed, genome)


def test_widths_keep_counts_and_follow_the_order() -> None:
    lattice, rng = make_lattice([4, 3]), np.random.default_rng(0)
    genomes, order = rng.random((6, 7)) < 0.5, rng.random(7)
    widths = as_widths(genomes, order, lattice)
    np.testing.assert_array_equal(count_kept(widths, lattice), count_kept(genomes, lattice))
    for start, size in ((0, 4), (4, 3)):
        kept = widths[:, start : start + size][:, np.argsort(-order[start : start + size])]
        assert (np.diff(kept.astype(int), axis=1) <= 0).all()
    np.testing.assert_array_equal(as_widths(widths, order, lattice), widths)
