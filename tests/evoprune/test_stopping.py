"""Stop rules: each at its boundary, and combined."""

from __future__ import annotations

from typing import Any

import pytest

from evoprune.stopping import (
    AnyOf,
    HypervolumeGain,
    MaxEvaluations,
    MaxGenerations,
    MaxSeconds,
    Patience,
    Progress,
    StopRule,
    Target,
)
from search_spaces.errors import OptionError


def progress(generation: int = 3, n_evaluations: int = 40, elapsed_s: float = 9.0, best: str = "5 4 3 3") -> Progress:
    return Progress(generation, n_evaluations, elapsed_s, [{"best": float(value)} for value in best.split()])


@pytest.mark.parametrize(
    ("rule", "at", "before"),
    [
        (MaxGenerations(3), {}, {"generation": 2}),
        (MaxGenerations(0), {"generation": 0}, {"generation": -1}),
        (MaxEvaluations(40), {}, {"n_evaluations": 39}),
        (MaxSeconds(9.0), {}, {"elapsed_s": 8.9}),
        (Patience(2), {"best": "5 3 3 3"}, {"best": "5 4 3 3"}),
        (Patience(2), {"best": "3 3 3"}, {"best": "3 3"}),
        (Patience(2, min_gain=0.5), {"best": "5 3 3 2.5"}, {"best": "5 3 3 2.4"}),
        (Target(3.0), {}, {"best": "5 4 3.1"}),
        (Target(3.0), {}, {"best": ""}),
    ],
)
def test_each_rule_at_its_boundary(rule: StopRule, at: dict[str, Any], before: dict[str, Any]) -> None:
    assert rule.reason(progress(**at))
    assert rule.reason(progress(**before)) is None


def test_a_target_is_one_of_the_whole_network_and_without_costs() -> None:
    row = {"best": 0.4, "best_plain": 0.1}
    assert Target(0.2).reason(Progress(3, 40, 9.0, [row]))
    assert Target(0.2).reason(Progress(3, 40, 9.0, [{**row, "best_plain": 0.3}])) is None
    assert Target(0.2).reason(Progress(3, 40, 9.0, [row], is_complete=False)) is None


def front_progress(volumes: str) -> Progress:
    rows = [{"best": 1.0 - i, "hypervolume": float(volume)} for i, volume in enumerate(volumes.split())]
    return Progress(len(rows) - 1, 40, 9.0, rows)


def test_a_front_has_converged_when_its_hypervolume_hardly_grows() -> None:
    rule = HypervolumeGain(0.1, n_generations=2)
    assert rule.reason(front_progress("10 10 11"))
    assert rule.reason(front_progress("10 10 11.1")) is None
    assert rule.reason(front_progress("10 11")) is None
    assert rule.reason(progress(best="1 1 1 1 1 1 1")) is None
    assert HypervolumeGain(0.0).reason(front_progress("5 5 5 5 5 5"))


def test_patience_with_a_front_waits_for_the_hypervolume() -> None:
    assert Patience(2).reason(front_progress("3 3 3"))
    assert Patience(2).reason(front_progress("3 3 3.1")) is None


def test_the_first_of_several_rules_ends_the_search() -> None:
    rules = AnyOf((MaxGenerations(9), MaxSeconds(5), Target(3)))
    assert rules.reason(progress()) == "5 s"
    assert rules.urgent
    assert rules.urgent_part() == AnyOf((MaxSeconds(5),))
    assert AnyOf(()).reason(progress()) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (MaxGenerations, -1),
        (MaxEvaluations, 0),
        (MaxSeconds, 0),
        (MaxSeconds, float("nan")),
        (Patience, 0),
        (HypervolumeGain, -0.1),
    ],
)
def test_wrong_values_are_refused(kind: type[Any], value: float) -> None:
    with pytest.raises(OptionError, match="must hold for a stop rule"):
        kind(value)
