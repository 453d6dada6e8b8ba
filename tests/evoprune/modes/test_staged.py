"""Stages: frozen before, dense behind, budgets held at the end, ratios that emerge, resume at every generation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evoprune.modes.staged import StagedSearch
from evoprune.search import LadderPlan, SearchState, Strategy
from evoprune.stopping import Progress, Target
from fitness.evaluation import Evaluation
from search_spaces import stages_of
from search_spaces.errors import ExecutionError, OptionError, RunDirectoryError
from search_spaces.genome import genome_digest
from tests.evoprune.fakes import tiny_space
from tests.evoprune.modes.driving import (
    advance,
    assert_equal_states,
    make_evaluator,
    make_strategy,
    step,
    through_files,
)

WHOLE = LadderPlan("network", screen="cheap", elite="dear", screen_factor=2, n_elites=2)
CASES: dict[str, dict[str, Any]] = {
    "budget": {},
    "ladder": {"ladder": WHOLE},
    "free": {"budget": None},
    "free ladder": {"budget": None, "ladder": WHOLE, "cost_weight": 0.3},
}


def staged(**options: Any) -> StagedSearch:
    strategy = make_strategy("staged", **{"stages": "stem,inner,last", **options})
    assert isinstance(strategy, StagedSearch)
    return strategy


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equal_seeds_give_equal_runs_and_a_search_restored_anywhere_goes_on_as_if_nothing_had_been(
    case: dict[str, Any],
) -> None:
    whole, again, other = staged(**case), staged(**case), staged(**case, seed=6)
    states: list[SearchState] = [through_files(whole.state())]
    advance(whole, make_evaluator(), lambda strategy: states.append(through_files(strategy.state())))
    for search in (again, other):
        advance(search, make_evaluator())
    assert_equal_states(whole.state(), again.state())
    assert whole.state().data["logbook"] != other.state().data["logbook"]
    assert whole.best is not None
    assert len(states) == 1 + 3 * 3
    for n_finished, state in enumerate(states):
        resumed = staged(**case)
        resumed.restore(state)
        assert resumed.generation == n_finished - 1
        assert_equal_states(resumed.state(), state)
        advance(resumed, make_evaluator())
        assert_equal_states(resumed.state(), whole.state())
        assert resumed.best is not None
        assert (resumed.best.digest, resumed.best.objective) == (whole.best.digest, whole.best.objective)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_the_last_stage_meets_the_budget_from_below_within_one_channel(budget: float) -> None:
    space, search = tiny_space(), staged(budget=budget)
    advance(search, make_evaluator())
    assert search.best is not None
    genome = search.best.genome
    limit = int(budget * space.macs_dense)
    assert space.macs(genome[None])[0] <= limit
    more = np.repeat(genome[None], int((~genome).sum()), axis=0)
    more[np.arange(len(more)), np.flatnonzero(~genome)] = True
    assert (space.macs(more) > limit).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_earlier_stages_stay_frozen_and_later_ones_dense(case: dict[str, Any]) -> None:
    space, search, evaluator = tiny_space(), staged(**case), make_evaluator()
    stages = stages_of(space, "stem,inner,last")
    genes = [np.concatenate([np.arange(space.groups[g].start, space.groups[g].stop) for g in s.groups]) for s in stages]
    frozen: np.ndarray[Any, Any] | None = None
    while not search.is_finished:
        request = search.ask()
        assert request.digests == tuple(genome_digest(genome) for genome in request.genomes)
        if request.role != "probe":
            at = request.generation // 3
            for later in genes[at + 1 :]:
                assert request.genomes[:, later].all()
            if at:
                assert frozen is not None
                for earlier in genes[:at]:
                    assert (request.genomes[:, earlier] == frozen[earlier]).all()
        search.tell(evaluator.evaluate(request.genomes, request.rung))
        if search.generation >= 0 and search.generation % 3 == 2:
            assert search.best is not None
            frozen = search.best.genome
    assert [row["stage"] for row in search.logbook] == ["stem"] * 3 + ["inner"] * 3 + ["last"] * 3
    assert [row["gen"] for row in search.logbook] == list(range(search.n_generations + 1))


def test_the_objective_reported_is_the_evaluated_one() -> None:
    for name, case in CASES.items():
        search, evaluator = staged(**case), make_evaluator()
        advance(search, evaluator)
        best = search.best
        assert best is not None
        assert best.rung == ("dear" if "ladder" in case else "network")
        assert best.objective == evaluator.evaluate(best.genome[None], best.rung)[0].objective
        judged = search.logbook[-1]["best_plain"]
        assert judged <= evaluator.evaluate(best.genome[None], "network")[0].objective + 1e-12 or "free" in name
        if "ladder" not in case:
            assert judged == best.objective
        assert Target(judged).reason(Progress(8, 0, 0.0, [search.logbook[-1]])) is not None
        assert Target(judged * 0.99).reason(Progress(8, 0, 0.0, [search.logbook[-1]])) is None


def test_without_a_budget_dearer_cost_leads_to_smaller_networks() -> None:
    shares = []
    for weight in (0.05, 1.0, 100.0):
        search = staged(budget=None, cost_weight=weight, n_generations=6)
        advance(search, make_evaluator())
        assert search.best is not None
        shares.append(tiny_space().macs(search.best.genome[None])[0] / tiny_space().macs_dense)
    assert shares[0] > shares[1] > shares[2]


def test_curves_begin_with_the_dense_network_and_shares_follow_them() -> None:
    search = staged()
    assert search.curves == []
    step(search, make_evaluator())
    assert [curve.name for curve in search.curves] == ["stem", "inner", "last"]
    dense = make_evaluator().evaluate(tiny_space().all_ones(), "network")[0].objective
    for curve in search.curves:
        assert (curve.cost_share[0], curve.error[0]) == (1.0, dense)
        assert (np.diff(curve.cost_share) < 0).all()


class _Precious:
    """Finds every channel of some genes dear and all others worthless."""

    def __init__(self, genes: slice) -> None:
        self.genes = genes

    def evaluate(self, genomes: Any, rung: str) -> list[Evaluation]:
        return [
            Evaluation(genome_digest(g), rung, 1, float((~g[self.genes]).sum() + 0.01 * (~g).sum())) for g in genomes
        ]


@pytest.mark.parametrize("name", ["stem", "inner", "last"])
def test_a_sensitive_stage_keeps_a_larger_share(name: str) -> None:
    space, search = tiny_space(), staged()
    group = next(group for group in space.groups if group.name == name)
    request = search.ask()
    evaluator = _Precious(slice(group.start, group.stop))
    search.tell(evaluator.evaluate(request.genomes, request.rung))
    plan = search._make_plan()
    kept = space.kept_counts(plan[None])[0] / space.lattice.sizes
    shares = dict(zip((g.name for g in space.groups), kept, strict=True))
    assert shares[name] == max(shares.values())
    assert shares[name] > min(shares.values())


def test_a_search_that_is_hurried_ends_complete_with_every_budget_held() -> None:
    space, search, evaluator = tiny_space(), staged(), make_evaluator()
    n_generations = 0
    while not search.is_complete:
        n_generations += step(search, evaluator)
        search.hurry()
    assert n_generations == 3  # one per stage
    assert not search.is_finished
    search.hurry()
    assert search.best is not None
    assert space.macs(search.best.genome[None])[0] <= 0.5 * space.macs_dense
    advance(search, evaluator)
    assert search.generation == 4


def test_first_genomes_of_the_task_are_tried_in_every_stage() -> None:
    seeds = tiny_space().sample(rng=np.random.default_rng(0), n=2, macs_budget=0.5)
    with_seeds, without = staged(seeds=seeds), staged()
    for search in (with_seeds, without):
        step(search, make_evaluator())
    assert with_seeds.ask().digests[:1] == without.ask().digests[:1]  # the plan comes first
    assert with_seeds.ask().digests != without.ask().digests


def test_a_reference_that_fails_is_told() -> None:
    search = staged(budget=None)
    request = search.ask()
    assert request.role == "probe"
    search.tell(
        [Evaluation(digest, request.rung, 0, x) for digest, x in zip(request.digests, (0, math.inf), strict=True)]
    )
    with pytest.raises(ExecutionError, match="give a budget, or raise `min_channels`"):
        step(search, make_evaluator())


@pytest.mark.parametrize(("case", "has_limit"), [({}, True), ({"budget": None}, False)])
def test_a_limit_holds_for_objectives_and_not_for_what_a_cost_is_added_to(
    case: dict[str, Any], has_limit: bool
) -> None:
    search, evaluator = staged(**case), make_evaluator()
    limits = []
    while not search.is_finished:
        request = search.ask()
        limits.append(request.limit)
        search.tell(evaluator.evaluate(request.genomes, request.rung))
    assert (min(limits) < math.inf) == has_limit


def test_misuse_is_refused() -> None:
    with pytest.raises(OptionError, match="needs at least two stages"):
        staged(stages="resolution")
    search = staged()
    with pytest.raises(ExecutionError, match="nothing was asked"):
        search.tell([])
    request = search.ask()
    evaluations = make_evaluator().evaluate(request.genomes, request.rung)
    with pytest.raises(OptionError, match="one evaluation per requested genome"):
        search.tell(evaluations[::-1])
    with pytest.raises(RunDirectoryError, match="these differ: parts"):
        staged(stages="stem,last,inner").restore(search.state())
    with pytest.raises(RunDirectoryError, match="these differ: options"):
        staged(budget=0.6).restore(search.state())
    advance(search, make_evaluator())
    with pytest.raises(ExecutionError, match="asks for nothing more"):
        search.ask()


def test_the_first_complete_state_is_a_strategy() -> None:
    strategy: Strategy = staged()
    assert strategy.generation == -1
    assert strategy.best is None
    assert not strategy.is_complete
    assert strategy.population_size == 6
    assert strategy.n_generations == 8
