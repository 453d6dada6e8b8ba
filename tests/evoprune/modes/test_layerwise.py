"""One group after the other: order and ratio by error, budgets held, resume at every generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evoprune.modes import MODES, SearchTask
from evoprune.modes.layerwise import LayerwiseSearch, layer_ladder
from evoprune.search import LadderPlan, Prior, SearchState
from search_spaces.errors import OptionError
from tests.evoprune.fakes import tiny_space
from tests.evoprune.modes.driving import (
    advance,
    assert_equal_states,
    make_evaluator,
    make_strategy,
    through_files,
)

LADDER = LadderPlan("network", screen="cheap", elite="dear", screen_factor=2, n_elites=1)


def layerwise(**options: Any) -> LayerwiseSearch:
    strategy = make_strategy("layerwise", **{"ladder": LADDER, "n_generations": 1, **options})
    assert isinstance(strategy, LayerwiseSearch)
    return strategy


def test_equal_seeds_give_equal_runs_and_a_search_restored_anywhere_goes_on_as_if_nothing_had_been() -> None:
    whole, other = layerwise(), layerwise(seed=6)
    states: list[SearchState] = [through_files(whole.state())]
    advance(whole, make_evaluator(), lambda strategy: states.append(through_files(strategy.state())))
    advance(other, make_evaluator())
    assert whole.state().data["logbook"] != other.state().data["logbook"]
    assert len(states) == 1 + 2 * len(tiny_space().groups)
    for state in states:
        resumed = layerwise()
        resumed.restore(state)
        advance(resumed, make_evaluator())
        assert_equal_states(resumed.state(), whole.state())
    assert whole.best is not None
    assert whole.best.rung == "dear"


def test_classes_guide_the_layers_in_which_one_has_doubles_and_leave_the_others_alone() -> None:
    space = tiny_space()
    classes = np.arange(space.n_genes)
    start = space.groups[1].start
    classes[start : start + 2] = classes[start]
    search = layerwise(priors=[Prior("classes", classes=classes)])
    advance(search, make_evaluator())
    guided = {row["stage"] for row in search.logbook if "share_classes" in row}
    assert guided == {space.groups[1].name}


@pytest.mark.parametrize("budget", [0.4, 0.7])
def test_the_budget_is_met_from_below_within_one_channel(budget: float) -> None:
    space, search = tiny_space(), layerwise(budget=budget)
    advance(search, make_evaluator())
    assert search.best is not None
    genome = search.best.genome
    limit = int(budget * space.macs_dense)
    assert space.macs(genome[None])[0] <= limit
    last = space.groups[int(search.parts[-1].groups[0])]
    dropped = last.start + np.flatnonzero(~genome[last.start : last.stop])
    more = np.repeat(genome[None], len(dropped), axis=0)
    more[np.arange(len(dropped)), dropped] = True
    assert (space.macs(more) > limit).all()


def test_the_least_sensitive_group_comes_first_and_curves_follow_the_order() -> None:
    space, search = tiny_space(), layerwise()
    scores = search.task.channel_scores
    assert scores is not None
    planned = search._make_plan()
    assert space.macs(planned[None])[0] <= 0.5 * space.macs_dense
    errors = [
        scores[group.start : group.stop][~planned[group.start : group.stop]].sum()
        for group in (space.groups[int(part.groups[0])] for part in search.parts)
    ]
    assert errors == sorted(errors)
    assert [curve.name for curve in search.curves] == [part.name for part in search.parts]
    for curve, part in zip(search.curves, search.parts, strict=True):
        group = space.groups[int(part.groups[0])]
        assert len(curve.error) == group.size - group.min_keep + 1
        assert curve.error[0] == 0
        assert curve.error[-1] == pytest.approx(np.sort(scores[group.start : group.stop])[: -group.min_keep].sum())
        assert (np.diff(curve.cost_share) < 0).all()
        assert (np.diff(curve.error) >= 0).all()


def test_e1_screens_e2_judges_and_what_would_have_judged_decides() -> None:
    assert layer_ladder(LadderPlan("network", screen="e2", elite="shipped")) == LadderPlan(
        "e2", screen="e1", elite="network", n_elites=1
    )
    assert MODES["layerwise"].plan(LadderPlan("e2", screen="e1")).elite is None


def test_scores_that_are_no_errors_are_refused() -> None:
    task = layerwise().task
    with pytest.raises(OptionError, match="takes order and ratio from two-step errors"):
        LayerwiseSearch(SearchTask(task.space, task.config, task.options, task.channel_scores))
