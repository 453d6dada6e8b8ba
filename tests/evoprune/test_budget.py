from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoprune.budget import METRICS, Budget, check_reachable, format_cost, format_count, parse_budget, parse_budgets
from search_spaces.cost import whole_limit
from search_spaces.errors import BudgetError, OptionError, UnknownNameError

DENSE = 125_485_696


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("0.3", 0.3), (0.3, 0.3), ("30%", 0.3), ("30 %", 0.3), ("1", 1.0), ("100%", 1.0), (" .5 ", 0.5), ("3e-1", 0.3)],
)
def test_a_share_needs_no_dense_cost(text: str | float, fraction: float) -> None:
    assert parse_budget(text).as_fraction(DENSE) == pytest.approx(fraction)


@pytest.mark.parametrize(("text", "cost"), [("62M", 62e6), ("62m", 62e6), ("62000k", 62e6), ("0.062 G", 62e6)])
def test_an_absolute_cost_becomes_a_share(text: str, cost: float) -> None:
    assert parse_budget(text).as_fraction(DENSE) == pytest.approx(cost / DENSE)


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "nan", "30%x", "", "inf", "-0.3", "101%", "0%", "0.3.1", "1e999", "M"]
)
def test_nonsense_names_rule_value_and_remedy(text: str) -> None:
    with pytest.raises(BudgetError, match=r"a budget must be .* but got .*write a fraction in") as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


def test_an_absolute_cost_must_be_finite_and_at_least_one() -> None:
    for text in ("1e400M", "0M", "0.0001k"):
        with pytest.raises(BudgetError, match="an absolute budget must be at least 1 and finite"):
            parse_budget(text)


def test_an_absolute_cost_above_the_dense_one_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"'126M' is 126 M macs and the dense network has 125\.5 M; lower it"):
        parse_budget("126M").as_fraction(DENSE)


def test_the_message_for_an_unreachable_budget_names_a_reachable_one() -> None:
    smallest = 1_234_567
    with pytest.raises(BudgetError, match=r"reachable range 0\.0099 to 1\.0000 of the dense macs"):
        check_reachable(0.009, DENSE, (smallest, DENSE), "macs")
    check_reachable(0.0099, DENSE, (smallest, DENSE), "macs")


@given(st.integers(1, 10**12).flatmap(lambda dense: st.tuples(st.integers(1, dense), st.just(dense))))
def test_the_cost_of_the_cheapest_network_is_a_budget_and_its_own_limit(costs: tuple[int, int]) -> None:
    smallest, dense = costs
    share = Budget("", float(smallest), is_fraction=False).as_fraction(dense)
    check_reachable(share, dense, (smallest, dense), "macs")
    assert whole_limit(share, dense) == smallest
    if smallest > 1:
        lower = Budget("", float(smallest - 1), is_fraction=False).as_fraction(dense)
        with pytest.raises(BudgetError, match="reachable range"):
            check_reachable(lower, dense, (smallest, dense), "macs")


@pytest.mark.parametrize(("text", "limit"), [("0.29", 29), ("57%", 57), ("0.299", 29), ("1", 100), ("0.009", 0)])
def test_a_share_is_the_number_that_people_mean(text: str, limit: int) -> None:
    assert whole_limit(parse_budget(text).value, 100) == limit


@given(st.integers(1, 10**12))
def test_counts_keep_four_digits(count: int) -> None:
    number, _, unit = format_count(count).partition(" ")
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert float(number) * factor == pytest.approx(count, rel=5e-4)


@pytest.mark.parametrize(
    ("metric", "text", "cost"),
    [
        ("params", "41.2k", 41_200),
        ("activation-bytes", "3MiB", 3 * 2**20),
        ("activation-bytes", "3 mb", 3e6),
        ("activation-bytes", "900B", 900),
    ],
)
def test_every_metric_has_its_units(metric: str, text: str, cost: float) -> None:
    budget = parse_budget(text, metric)
    assert (budget.metric, budget.value, budget.is_fraction) == (metric, pytest.approx(cost), False)


@pytest.mark.parametrize(("metric", "text"), [("macs", "3MiB"), ("activation-bytes", "62M"), ("params", "12ms")])
def test_the_unit_of_another_metric_is_refused(metric: str, text: str) -> None:
    with pytest.raises(BudgetError, match=f"with a unit of {metric}.*but got '{text}'.*write a fraction"):
        parse_budget(text, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_example_of_a_metric_is_a_budget_of_it(metric: str) -> None:
    assert not parse_budget(METRICS[metric].example, metric).is_fraction


def test_several_budgets_keep_their_order() -> None:
    budgets = parse_budgets(("params=0.4", "50%"))
    assert [(budget.metric, budget.value) for budget in budgets] == [("params", 0.4), ("macs", 0.5)]
    assert [budget.metric for budget in parse_budgets(("0.5", " macs = 1M"), "params")] == ["params", "macs"]


@pytest.mark.parametrize("texts", [("0.3", "0.4"), ("macs=0.3", "0.4"), ("params=0.3", "params=1k")])
def test_a_metric_has_one_budget(texts: tuple[str, ...]) -> None:
    with pytest.raises(BudgetError, match=r"every metric has one budget, but (macs|params) has two.*leave one out"):
        parse_budgets(texts)


def test_a_metric_that_nothing_counts_is_refused() -> None:
    with pytest.raises(OptionError, match=r"got metric 'params' and macs=0.3; leave the metric out"):
        parse_budgets(("macs=0.3",), "params")


def test_no_budget_and_an_unknown_metric_are_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget, but got none"):
        parse_budgets(())
    with pytest.raises(UnknownNameError, match=r"unknown metric 'flops'.*valid: "):
        parse_budgets(("flops=0.3",))


@pytest.mark.parametrize(
    ("cost", "metric", "text"),
    [
        (62e6, "macs", "62 M"),
        (950, "activation-bytes", "950 B"),
        (3_145_728, "activation-bytes", "3.146 MB"),
    ],
)
def test_costs_for_people(cost: float, metric: str, text: str) -> None:
    assert format_cost(cost, metric) == text
