"""Priors steer and never forbid; the bandit follows whose children survive, and can be restored bit for bit."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from evoprune.search import LadderPlan, Prior, PriorMixture, Search, SearchConfig
from evoprune.search.guides import FLOOR, guide_of, nearest_kept
from evoprune.search.operators import drop_doubles, swap
from fitness.criteria import shapley_values
from search_spaces.errors import OptionError, RunDirectoryError
from search_spaces.genome import BoolArray
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space
from tests.evoprune.search.test_operators import make_lattice

LATTICE = make_lattice([4, 3])
PAIRS = np.array([[0.0, 0.9, 0.1, 0.2], [0.9, 0.0, 0.3, 0.0], [0.1, 0.3, 0.0, 0.5], [0.2, 0.0, 0.5, 0.0]])


def as_bits(text: str) -> BoolArray:
    return np.array([[bit == "1" for bit in text]])


def test_closeness_depends_on_the_rank_of_a_pair_alone() -> None:
    guide = guide_of(Prior("pairs", similarity={0: PAIRS}), LATTICE)
    again = guide_of(Prior("pairs", similarity={0: np.exp(3 * PAIRS) - 7}), LATTICE)
    closeness = guide.closeness[0]
    np.testing.assert_array_equal(closeness, again.closeness[0])
    np.testing.assert_array_equal(closeness, closeness.T)
    # pairs by similarity: 01, 23, 12, 03, 02, 13
    np.testing.assert_allclose(closeness[0], [0.0, 1.0, 1 / (1 + 4 / 4), 1 / (1 + 3 / 4)])
    assert set(guide.closeness) == {0}


def test_classes_make_their_members_close_and_nothing_impossible() -> None:
    guide = guide_of(Prior("classes", classes=np.array([5, 5, 2, -1, -1, -1, 3])), LATTICE)
    assert set(guide.closeness) == {0}  # in the second group nobody shares a class
    expected = np.full((4, 4), FLOOR)
    expected[0, 1] = expected[1, 0] = 1.0
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_array_equal(guide.closeness[0], expected)


def test_the_nearest_kept_sibling_is_found() -> None:
    guide = guide_of(Prior("pairs", similarity={0: PAIRS}), LATTICE)
    closest, sibling = nearest_kept(as_bits("1011110"), guide, LATTICE)
    assert sibling[0].tolist()[:4] == [3, 0, 3, 2]
    np.testing.assert_allclose(closest[0, [0, 2, 3]], [1 / (1 + 3 / 4), 1 / (1 + 1 / 4), 1 / (1 + 1 / 4)])
    assert (closest[0, 4:] == FLOOR).all()
    assert (sibling[0, 4:] == -1).all()


def test_the_siblings_of_many_genomes_are_found_in_little_memory() -> None:
    n, size = 64, 128
    lattice, rng = make_lattice([size]), np.random.default_rng(0)
    genomes = rng.random((n, size)) < 0.5
    genomes[0] = False
    guide = guide_of(Prior("pairs", similarity={0: rng.integers(0, 9, (size, size)).astype(float)}), lattice)
    tracemalloc.start()
    closest, sibling = nearest_kept(genomes, guide, lattice)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    among_kept = np.where(genomes[:, None], guide.closeness[0], 0.0)  # the plain form of the same
    np.testing.assert_array_equal(closest, among_kept.max(axis=2))
    np.testing.assert_array_equal(sibling, np.where(closest > 0, among_kept.argmax(axis=2), -1))
    assert most < among_kept.nbytes / 4


def test_swaps_exchange_alike_channels_most_often_and_every_other_sometimes() -> None:
    lattice = make_lattice([4])
    guide = guide_of(Prior("classes", classes=np.array([0, 1, 1, 0])), lattice)
    genomes = np.repeat(as_bits("1100"), 20_000, axis=0)
    rates = np.full(len(genomes), 1e-9)
    changed = swap(genomes, rates=rates, rng=np.random.default_rng(0), lattice=lattice, guide=guide)
    dropped, revived = (genomes & ~changed).argmax(axis=1), (~genomes & changed).argmax(axis=1)
    share = np.mean((dropped == 0) == (revived == 3))
    assert share == pytest.approx(1 / (1 + FLOOR), abs=0.01)


def test_of_two_doubles_one_goes_and_one_stays() -> None:
    lattice = make_lattice([4])
    similarity = {0: np.array([[0.0, 9.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4])}
    guide = guide_of(Prior("pairs", np.array([0.0, 0.0, 1.0, 1.0]), similarity), lattice)
    genomes = np.repeat(as_bits("1111"), 5_000, axis=0)
    few = drop_doubles(genomes, rates=np.full(5_000, 1e-9), rng=np.random.default_rng(0), lattice=lattice, guide=guide)
    assert ((~few).sum(axis=1) == 1).all()
    assert np.mean(few[:, :2].sum(axis=1) == 1) > 0.7
    assert (~few).any(axis=0).all()  # no bit is impossible
    many = drop_doubles(genomes, rates=np.full(5_000, 9.0), rng=np.random.default_rng(0), lattice=lattice, guide=guide)
    assert many[:, :2].any(axis=1).all()
    assert not many[:, :2].all(axis=1).all()


@pytest.mark.parametrize("n_dropped", [0, 7])
def test_dropping_from_full_and_empty_genomes_is_defined(n_dropped: int) -> None:
    genomes = np.full((3, 7), n_dropped == 0)
    changed = drop_doubles(genomes, rates=np.full(3, 0.1), rng=np.random.default_rng(0), lattice=LATTICE)
    assert ((genomes & ~changed).sum(axis=1) >= (n_dropped == 0)).all()
    assert not (changed & ~genomes).any()


def test_a_high_temperature_makes_a_prior_weak_and_a_low_one_strict() -> None:
    prior = Prior("order", np.arange(7.0))
    ratio = {
        temperature: np.ptp(np.log(guide_of(prior, LATTICE, temperature=temperature).p_drop))
        for temperature in (0.1, 1.0, 100.0)
    }
    assert ratio[100.0] < 0.05 < ratio[1.0] <= ratio[0.1] <= math.log(1 / FLOOR) + 1e-9


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Prior("empty"), "must hold scores, similarities or classes"),
        (Prior("short", np.zeros(6)), "must be 7 finite numbers"),
        (
            Prior("square", similarity={1: np.zeros((4, 4))}),
            r"similarities of group 1 must be a finite matrix \(3, 3\)",
        ),
        (Prior("place", similarity={2: np.zeros((3, 3))}), "similarities of group 2"),
        (Prior("classes", classes=np.zeros(3, np.int64)), "classes must be 7 numbers"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior: Prior, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        guide_of(prior, LATTICE)


def make_mixture(n_priors: int = 3, random_share: float = 0.2) -> PriorMixture:
    priors = [Prior(f"p{index}", np.arange(7.0)) for index in range(n_priors)]
    return PriorMixture(priors, LATTICE, random_share=random_share)


def test_the_mixture_follows_survival_within_its_bounds() -> None:
    mixture = make_mixture()
    np.testing.assert_allclose(mixture.shares, [0.2, *[0.8 / 3] * 3])
    rng = np.random.default_rng(0)
    for _ in range(60):
        drawn = mixture.draw(30, rng=rng)
        mixture.learn(drawn, drawn == 2, drawn == 2)
    shares = mixture.shares
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == 0.2  # random offspring are never crowded out
    assert shares[2] > 0.55
    assert min(shares[1], shares[3]) >= 0.8 * 0.2 / 3
    for _ in range(60):  # the best may change
        drawn = mixture.draw(30, rng=rng)
        mixture.learn(drawn, drawn == 1, np.zeros(30, np.bool_))
    assert mixture.shares.argmax() == 1


def test_credit_is_half_survival_and_half_success_and_immigrants_have_none() -> None:
    mixture = make_mixture(2)
    drawn = np.array([-1, 0, 1, 1, 2, 2])
    mixture.learn(drawn, np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 1, 1, 0, 0], bool))
    quality = np.array([(1.0 + 1.5) / (4 + 2), 1.0 / (4 + 2)]) ** 2
    expected = 0.8 * (0.2 / 2 + 0.8 * quality / quality.sum())
    np.testing.assert_allclose(mixture.shares[1:], expected)
    row = mixture.row()
    names = ("unguided", "p0", "p1")
    assert [row[f"n_children_{name}"] for name in names] == [1, 2, 2]
    assert [row[f"n_survivors_{name}"] for name in names] == [1, 1, 0]
    assert [row[f"share_{name}"] for name in names] == mixture.shares.tolist()


def test_draws_meet_the_shares() -> None:
    mixture = make_mixture(2, random_share=0.5)
    drawn = mixture.draw(100_000, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn) / 100_000, mixture.shares, atol=0.01)
    assert (make_mixture(0).draw(50, rng=np.random.default_rng(0)) == 0).all()
    assert make_mixture(0).row() == {}


def test_what_was_learned_survives_a_restart() -> None:
    mixture, again = make_mixture(), make_mixture()
    mixture.learn(np.array([1, 1, 3]), np.array([True, False, True]), np.array([True, False, False]))
    again.restore(mixture.arrays())
    np.testing.assert_array_equal(again.shares, mixture.shares)


def test_two_priors_of_one_name_are_refused() -> None:
    prior = Prior("twice", np.arange(7.0))
    with pytest.raises(OptionError, match="a name of its own"):
        PriorMixture([prior, prior], LATTICE)


def test_a_search_gives_weight_to_the_prior_that_knows_and_says_so() -> None:
    space = tiny_space()
    target = make_target(space.n_genes)
    rng = np.random.default_rng(1)
    priors = [
        Prior("knows", target.astype(float)),
        Prior("errs", 1.0 - target),
        Prior("noise", rng.random(space.n_genes)),
    ]
    config = SearchConfig(
        {"macs": 0.5},
        LadderPlan("network"),
        population_size=24,
        n_generations=12,
        min_diversity=0.0,
        surrogate_factor=1,
    )
    search, evaluator = Search(space, config, seed=0, priors=priors), CountingEvaluator(target)
    while not search.is_finished:
        request = search.ask()
        search.tell(evaluator.evaluate(request.genomes, request.rung))
    mean = {name: np.mean(search.logbook.select(f"share_{name}")) for name in ("knows", "errs", "noise")}
    assert mean["knows"] > mean["noise"]
    assert mean["knows"] > 1.3 * mean["errs"]
    for row in search.logbook[1:]:
        assert sum(row[f"n_children_{name}"] for name in search.mixture.names) == row["nevals"]
        assert row["share_unguided"] == config.random_share


def test_a_search_is_not_restored_with_other_priors() -> None:
    space = tiny_space()
    config = SearchConfig({"macs": 0.5}, LadderPlan("network"), population_size=4, n_generations=1)
    first, other = (
        Search(space, config, seed=0, priors=[Prior("l1", np.arange(float(space.n_genes)) * sign)]) for sign in (1, -1)
    )
    with pytest.raises(RunDirectoryError, match="priors"):
        other.restore(first.state())
    assert dataclasses.replace(config, random_share=0.5).random_share == 0.5


@pytest.mark.parametrize("changes", [{"random_share": 1.5}, {"prior_temperature": 0.0}])
def test_shares_and_temperatures_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(changes))):
        SearchConfig({"macs": 0.5}, LadderPlan("network"), **changes)


def learning(scores: list[float]) -> Prior:
    """Return a prior that learns ``scores`` from whatever it is shown."""
    return Prior("learned", learn=lambda *_: np.array(scores))


def test_a_prior_that_learns_prefers_nothing_before_and_shares_positions_among_equals() -> None:
    mixture = PriorMixture([Prior("known", np.arange(7.0)), learning([3, 1, 1, 2, 0, 0, 0])], LATTICE)
    known, learned = mixture.guides[1:]
    assert (learned.order, learned.p_drop, learned.p_revive) == (None, None, None)
    orders = mixture.orders
    mixture.look_at(as_bits("1011110"), np.zeros(1))
    assert mixture.guides[1] is known
    np.testing.assert_allclose(mixture.guides[2].order, [3.5 / 4, 1 / 4, 1 / 4, 2.5 / 4, 0.5, 0.5, 0.5])
    assert mixture.guides[2].p_drop is not None
    assert mixture.guides[2].p_drop[1] == mixture.guides[2].p_drop[2] > mixture.guides[2].p_drop[3]
    assert len(set(mixture.guides[2].p_drop[4:])) == 1
    np.testing.assert_array_equal(mixture.orders, orders)  # what is known beforehand does not change
    mixture.look_at(np.empty((0, 7), np.bool_), np.empty(0))
    assert mixture.guides[2] == learned


@pytest.mark.parametrize("scores", [[1.0] * 6, [math.nan] * 7])
def test_learned_scores_that_do_not_fit_are_refused(scores: list[float]) -> None:
    mixture = PriorMixture([learning(scores)], LATTICE)
    with pytest.raises(OptionError, match="must be 7 finite numbers"):
        mixture.look_at(as_bits("1011110"), np.zeros(1))


def test_what_is_learned_is_a_function_of_the_judged_genomes_that_a_checkpoint_holds() -> None:
    space = tiny_space()
    evaluator = CountingEvaluator(make_target(space.n_genes))
    config = SearchConfig({"macs": 0.5}, LadderPlan("network"), population_size=8, n_generations=4)
    priors = [Prior("shapley", learn=shapley_values), Prior("known", np.arange(float(space.n_genes)))]
    whole, stopped = (Search(space, config, seed=2, priors=priors) for _ in range(2))
    first = stopped.state()
    judged: dict[str, tuple[BoolArray, float]] = {}
    while not whole.is_finished:
        request = whole.ask()
        stopped.restore(whole.state())  # whatever it was before
        again = stopped.ask()
        assert (again.rung, again.digests) == (request.rung, request.digests)
        evaluations = evaluator.evaluate(request.genomes, request.rung)
        judged |= {e.digest: (g, e.objective) for g, e in zip(request.genomes, evaluations, strict=True)}
        whole.tell(evaluations)
        genomes, objectives = (np.array(part) for part in zip(*judged.values(), strict=True))
        values = shapley_values(genomes, objectives)
        order = whole.mixture.guides[1].order
        assert order is not None
        for group in space.groups:
            inside = slice(group.start, group.stop)
            ranks = np.argsort(np.argsort(values[inside], kind="stable"), kind="stable")
            is_alone = np.array([np.sum(values[inside] == value) == 1 for value in values[inside]])
            np.testing.assert_allclose(order[inside][is_alone], ((ranks + 0.5) / group.size)[is_alone])
    assert {"share_shapley", "n_children_shapley"} <= whole.logbook[-1].keys()
    stopped.restore(first)
    assert stopped.mixture.guides[1].order is None
