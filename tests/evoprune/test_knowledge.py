"""Criteria by name: which are asked for what, what cannot be computed, and what a search starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evoprune import knowledge as module
from evoprune.catalogue import catalogue
from evoprune.knowledge import PRIOR_MIXTURE, SEED_MIXTURE, TWO_STEP, Choice, gather_knowledge, parse_criteria, prior_of
from evoprune.options import SearchOptions
from evoprune.resolving import resolve_options
from evoprune.search import LadderPlan, Search, SearchConfig
from fitness.criteria import CRITERIA, ChannelKnowledge, MaskFamily, shapley_values
from fitness.recipe import EvaluatorRecipe, make_recipe
from fitness.seeding import two_step_scores, width_seeds
from search_spaces.errors import DataError, OptionError, UnknownNameError
from tests.evoprune.fakes import TinyNet, tiny_space
from tests.evoprune.tiny_data import bars


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> EvaluatorRecipe:
    torch.manual_seed(0)
    return make_recipe(TinyNet().eval(), tiny_space(), bars())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))


def gather(recipe: EvaluatorRecipe, choice: Choice, **options: Any) -> module.Knowledge:
    return gather_knowledge(
        recipe, choice, population_size=16, rng=np.random.default_rng(0), budgets={"macs": 0.5}, **options
    )


def test_names_are_told_apart() -> None:
    assert parse_criteria("mixture") is None
    assert parse_criteria("none") == ()
    assert parse_criteria(" l1 , two-step") == ("l1", "two-step")


@pytest.mark.parametrize("text", ["l1,l1", "l1,mixture", "none,l2"])
def test_names_that_contradict_each_other_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="different names separated by commas"):
        parse_criteria(text)


@pytest.mark.parametrize("option", ["seed_with", "prior"])
def test_an_unknown_criterion_is_named_with_the_valid_ones(option: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'l3'.*did you mean.*valid: .*l1.*two-step"):
        resolve_options(SearchOptions, {option: "l1,l3"})


def test_shares_leave_room_for_each_other() -> None:
    with pytest.raises(OptionError, match="seed_share \\+ random_share <= 1"):
        resolve_options(SearchOptions, {"seed_share": 0.7, "random_share": 0.4})


@pytest.mark.parametrize("is_compensated", [True, False])
def test_the_default_mixtures_are_the_documented_ones(is_compensated: bool) -> None:
    choice = resolve_options(SearchOptions, {"seed": 0}).criteria(is_compensated=is_compensated)
    assert (TWO_STEP in choice.seeds) == (TWO_STEP in choice.priors) == is_compensated
    if is_compensated:
        assert (choice.seeds, choice.priors) == (SEED_MIXTURE, PRIOR_MIXTURE)
        assert choice.seeds[0] == TWO_STEP
    assert choice.optional == {*choice.seeds, *choice.priors}
    assert choice.n_seeds(16) == 8


def test_shares_of_the_first_population() -> None:
    shares = Choice(("l1",), ()).initial_shares(20)
    assert shares.random * 10 == pytest.approx(0.2 * 20)
    assert shares.uniform == pytest.approx((1 - shares.random) * 2 / 3)
    assert Choice((), ("l1",)).initial_shares(20).random == 1.0
    assert Choice(("l1",), (), seed_share=1.0, random_share=0.0).initial_shares(4).random == 0.0


def test_seeds_come_from_the_criteria_in_turn_and_two_step_ones_are_those_of_elimination(
    recipe: EvaluatorRecipe,
) -> None:
    found = gather(recipe, Choice((TWO_STEP, TWO_STEP, "l1"), ("l2", TWO_STEP)))
    assert found.n_seeds == {TWO_STEP: 6, "l1": 2}
    assert found.seeds is not None
    assert found.seeds.shape == (8, recipe.space.n_genes)
    assert (recipe.space.macs(found.seeds) <= 0.5 * recipe.space.macs_dense).all()
    scores = two_step_scores(recipe)
    expected = width_seeds(recipe.space, scores, rng=np.random.default_rng(0), n=3, budgets={"macs": 0.5})
    np.testing.assert_array_equal(found.seeds[:6:2], expected)
    assert [prior.name for prior in found.priors] == ["l2", TWO_STEP]
    np.testing.assert_array_equal(found.priors[1].scores, scores)
    np.testing.assert_array_equal(found.channel_scores, found.priors[0].scores)
    assert found.to_json()["seeds"] == {TWO_STEP: 6, "l1": 2}


def test_without_criteria_a_search_begins_at_random(recipe: EvaluatorRecipe) -> None:
    choice = Choice((), ())
    found = gather(recipe, choice)
    assert found.seeds is None
    assert found.priors == ()
    assert found.channel_scores is None
    config = SearchConfig({"macs": 0.5}, LadderPlan("network"), initial=choice.initial_shares(24))
    assert len(Search(recipe.space, config, seed=0, seeds=None, priors=()).ask().genomes) == 24


def test_what_cannot_be_computed_is_left_out_of_a_mixture_and_an_error_by_name(
    recipe: EvaluatorRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: Any) -> ChannelKnowledge:
        raise DataError("a model is needed; give one")

    broken = SimpleNamespace(name="broken", summary="", roles=frozenset({"scores"}), compute=refuse)
    criteria: Mapping[str, Any] = {**CRITERIA, "broken": broken}
    monkeypatch.setattr(module, "CRITERIA", criteria)
    choice = Choice(("broken", "l1"), ("broken", "l2"), optional=frozenset({"broken", "l1", "l2"}))
    found = gather(recipe, choice)
    assert found.n_seeds == {"l1": 8}
    assert [prior.name for prior in found.priors] == ["l2"]
    assert found.left_out == {"broken": "a model is needed; give one"}
    with pytest.raises(OptionError, match=r"criterion 'broken' cannot be computed.*a model is needed.*--seed-with"):
        gather(recipe, Choice(("l1",), ("broken",)))


def test_every_criterion_gives_seeds_and_a_prior_that_fit_the_space(recipe: EvaluatorRecipe) -> None:
    torch.manual_seed(0)
    for name in CRITERIA:
        found = gather(recipe, Choice((name,), (name,)), model=TinyNet().eval())
        search = Search(
            recipe.space,
            SearchConfig({"macs": 0.5}, LadderPlan("network"), population_size=16),
            seed=0,
            seeds=found.seeds,
            priors=found.priors,
        )
        assert search.mixture.names == ("unguided", name)
        assert len(search.ask().genomes) == 16


def test_families_score_by_the_share_of_masks_and_widths_alone_are_no_prior() -> None:
    masks = np.array([[True, True, False], [True, False, False]])
    family = ChannelKnowledge((3,), family=MaskFamily(np.array([0.1, 0.2]), masks))
    np.testing.assert_array_equal(prior_of("dtc", family).scores, [1.0, 0.5, 0.0])
    with pytest.raises(OptionError, match="'ccm' says how wide layers should be"):
        prior_of("ccm", ChannelKnowledge((3,), widths=np.array([0.5])))


def test_shapley_values_are_a_prior_beside_others_and_propose_nothing(recipe: EvaluatorRecipe) -> None:
    choice = resolve_options(SearchOptions, {"seed": 0, "prior": "shapley,l2"}).criteria(is_compensated=True)
    found = gather(recipe, choice)
    assert [prior.name for prior in found.priors] == ["shapley", "l2"]
    assert found.priors[0].learn is shapley_values
    np.testing.assert_array_equal(found.channel_scores, found.priors[1].scores)
    assert set(found.to_json()["priors"]) == {"shapley", "l2"}
    for text in ("shapley", "l1,shapley"):
        with pytest.raises(OptionError, match="cannot propose first genomes; use it with `--prior`"):
            resolve_options(SearchOptions, {"seed": 0, "seed_with": text})
    assert "shapley" in catalogue()["criteria"]


def test_seeds_are_spread_over_costs_where_a_whole_front_is_searched(recipe: EvaluatorRecipe) -> None:
    space = recipe.space
    of_l1 = gather(recipe, Choice(("l1",), ()), is_spread=True)
    assert of_l1.seeds is not None
    assert of_l1.n_seeds == {"l1": 8}
    shares = space.macs(of_l1.seeds) / space.macs_dense
    assert (np.diff(shares) <= 0).all()
    assert len(np.unique(of_l1.seeds, axis=0)) == 8
    assert 0.45 < shares[0] <= 0.5
    assert shares[-1] < 0.3
    of_two_step = gather(recipe, Choice((TWO_STEP,), ()), is_spread=True)
    assert not np.array_equal(of_l1.seeds, of_two_step.seeds)
    mixed = gather(recipe, Choice((TWO_STEP, "l1"), ()), is_spread=True)
    assert mixed.n_seeds == {TWO_STEP: 4, "l1": 4}
    assert mixed.seeds is not None
    assert of_two_step.seeds is not None
    np.testing.assert_array_equal(mixed.seeds[0], of_two_step.seeds[0])
    np.testing.assert_array_equal(mixed.seeds[1], of_l1.seeds[1])


def test_what_a_device_cannot_do_the_processor_does(recipe: EvaluatorRecipe, caplog: pytest.LogCaptureFixture) -> None:
    """The device ``meta`` holds no numbers and can compute nothing."""
    expected = module.KnowledgeSource(recipe).knowledge("qsfm-ssim")
    found = module.KnowledgeSource(dataclasses.replace(recipe, device="meta")).knowledge("qsfm-ssim")
    assert isinstance(expected, ChannelKnowledge)
    assert isinstance(found, ChannelKnowledge)
    assert found.similarity.keys() == expected.similarity.keys()
    for group, matrix in found.similarity.items():
        np.testing.assert_array_equal(matrix, expected.similarity[group])
    assert "qsfm-ssim is computed on the processor, since meta cannot" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_knows_what_the_processor_knows(recipe: EvaluatorRecipe, caplog: pytest.LogCaptureFixture) -> None:
    gpu, processor = (
        module.KnowledgeSource(dataclasses.replace(recipe, device=device), TinyNet().eval())
        for device in ("cuda", "cpu")
    )
    for name in CRITERIA:
        found, expected = gpu.knowledge(name), processor.knowledge(name)
        assert isinstance(found, ChannelKnowledge), name
        assert isinstance(expected, ChannelKnowledge), name
        if expected.scores is not None and np.ptp(expected.scores) > 0:
            assert found.scores is not None, name
            assert np.corrcoef(found.scores, expected.scores)[0, 1] > 0.95, name
        for group, matrix in expected.similarity.items():
            np.testing.assert_allclose(found.similarity[group], matrix, atol=1e-2, err_msg=name)
    assert "cannot" not in caplog.text
