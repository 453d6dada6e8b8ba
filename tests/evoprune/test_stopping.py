"""Stop rules: each at its boundary, and combined."""

from __future__ import annotations

from typing import Any

import pytest

from evoprune.stopping import AnyOf, MaxEvaluations, MaxGenerations, MaxSeconds, Patience, Progress, StopRule, Target
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


def test_the_first_of_several_rules_ends_the_search() -> None:
    rules = AnyOf((MaxGenerations(9), MaxSeconds(5), Target(3)))
    assert rules.reason(progress()) == "5 s"
    assert rules.urgent
    assert rules.urgent_part() == AnyOf((MaxSeconds(5),))
    assert AnyOf(()).reason(progress()) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [(MaxGenerations, -1), (MaxEvaluations, 0), (MaxSeconds, 0), (MaxSeconds, float("nan")), (Patience, 0)],
)
def test_wrong_values_are_refused(kind: type[Any], value: float) -> None:
    with pytest.raises(OptionError, match="must hold for a stop rule"):
        kind(value)
