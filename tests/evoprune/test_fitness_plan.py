"""Which rungs a fitness stands for, and what contradicts it."""

from __future__ import annotations

from typing import Any

import pytest

from evoprune.fitness_plan import FITNESSES, check_fitness, ladder_plan, objective_name
from evoprune.options import SearchOptions
from evoprune.resolving import resolve_options
from fitness.ladder import check_rung
from search_spaces.errors import OptionError, UnknownNameError


def _options(**values: Any) -> SearchOptions:
    return resolve_options(SearchOptions, {"seed": 0, **values})


@pytest.mark.parametrize("name", FITNESSES)
def test_every_fitness_is_a_plan_of_known_rungs(name: str) -> None:
    plan = ladder_plan(_options(fitness=name))
    for rung in plan.rungs:
        check_rung(rung)
    assert (plan.elite is not None) == (name == "ladder")


def test_halving_takes_half_as_many_images_each_time() -> None:
    plan = ladder_plan(_options(fitness="ladder", n_halvings=2))
    assert plan.rungs == ("e2", "network@128", "network@256", "network", "shipped")
    fewer = ladder_plan(_options(fitness="network", n_halvings=1), n_fitness_images=100)
    assert fewer.rungs == ("network@50", "network")
    with pytest.raises(OptionError, match="5 halved 2 times are 1"):
        ladder_plan(_options(fitness="network", n_halvings=2, n_fitness_images=5))


def test_nothing_is_screened_at_a_factor_of_one_and_nobody_is_elite_among_none() -> None:
    plan = ladder_plan(_options(screen_factor=1, n_elites=0))
    assert plan.rungs == ("network",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fitness": "wavelet", "screen_factor": 2}, "`screen_factor` is read by .*, but the fitness is 'wavelet'"),
        ({"fitness": "network", "n_elites": 2}, "`n_elites` is read by the fitness ladder only"),
        ({"fitness": "network", "screen_factor": 2}, "needs a rung that screens"),
        ({"screen_factor": 1, "n_halvings": 2}, "n_halvings=2 with screen_factor=1; leave one of them out"),
        ({"n_elites": 0, "n_elite_images": 9}, "n_elite_images=9 with n_elites=0; leave one of them out"),
        ({"fitness": "two-step", "objective": "error"}, "passes no images forward, but got objective='error'"),
        (
            {"fitness": "ladder", "n_distillation_steps": 2},
            "`n_distillation_steps` is read by the fitness distill only",
        ),
    ],
)
def test_options_that_a_fitness_does_not_read_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ladder_plan(_options(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "pareto", "n_elites": 2}, "the mode 'pareto' judges no elites, but `n_elites` is given"),
        ({"mode": "pareto", "n_elite_images": 8}, "`n_elite_images` is given"),
        ({"mode": "random", "seed_share": 0.1}, "the mode 'random' asks no criteria, but got seed_share=0.1"),
        ({"mode": "random", "prior_temperature": 3.0}, "asks no criteria, but got prior_temperature=3.0"),
        ({"mode": "random", "screen_factor": 2}, "the mode 'random' lets no rung screen, but `screen_factor` is given"),
    ],
)
def test_options_that_a_mode_has_no_use_for_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_fitness(_options(**values), is_object=False)
    check_fitness(_options(mode=values["mode"]), is_object=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"seed_with": "none", "seed_share": 0.1},
            "`seed_share` is read .*, but got seed_share=0.1 with seed_with=none",
        ),
        ({"prior": "none", "prior_temperature": 3.0}, "got prior_temperature=3.0 with prior=none; leave it out"),
        (
            {"seed_with": "none", "prior": "none", "random_share": 0.4},
            "got random_share=0.4 with seed_with=none and prior=none",
        ),
    ],
)
def test_shares_of_criteria_that_are_not_asked_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_fitness(_options(**values), is_object=False)
    for name, value in values.items():
        if value == "none":
            check_fitness(_options(**{**values, name: "l1"}), is_object=False)


def test_an_unknown_fitness_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="ladder"):
        _options(fitness="lader")


def test_distillation_of_an_object_needs_this_process() -> None:
    check_fitness(_options(fitness="distill"), is_object=True)
    check_fitness(_options(fitness="distill", workers=2), is_object=False)
    with pytest.raises(OptionError, match=r"Python object and workers=2; leave the workers out"):
        check_fitness(_options(fitness="distill", workers=2), is_object=True)


def test_numbers_are_called_what_they_are() -> None:
    assert [objective_name(rung, "kl") for rung in ("e1", "e2", "wavelet", "network@8", "shipped", "distill")] == [
        *("e1", "e2", "wavelet", "kl", "kl", "kl")
    ]
