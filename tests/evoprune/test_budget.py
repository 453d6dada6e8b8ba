from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoprune.budget import check_reachable, format_count, parse_budget
from search_spaces.errors import BudgetError

DENSE = 125_485_696


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("0.3", 0.3), (0.3, 0.3), ("30%", 0.3), ("30 %", 0.3), ("1", 1.0), ("100%", 1.0), (" .5 ", 0.5), ("3e-1", 0.3)],
)
def test_a_share_needs_no_dense_cost(text: str | float, fraction: float) -> None:
    assert parse_budget(text).as_fraction(DENSE, "macs") == pytest.approx(fraction)


@pytest.mark.parametrize(("text", "cost"), [("62M", 62e6), ("62m", 62e6), ("62000k", 62e6), ("0.062 G", 62e6)])
def test_an_absolute_cost_becomes_a_share(text: str, cost: float) -> None:
    assert parse_budget(text).as_fraction(DENSE, "macs") == pytest.approx(cost / DENSE)


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
        parse_budget("126M").as_fraction(DENSE, "macs")


def test_the_message_for_an_unreachable_budget_names_a_reachable_one() -> None:
    smallest = 1_234_567
    with pytest.raises(BudgetError, match=r"reachable range 0\.0099 to 1\.0000 of the dense macs"):
        check_reachable(0.009, DENSE, (smallest, DENSE), "macs")
    check_reachable(0.0099, DENSE, (smallest, DENSE), "macs")


@given(st.integers(1, 10**12))
def test_counts_keep_four_digits(count: int) -> None:
    number, _, unit = format_count(count).partition(" ")
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert float(number) * factor == pytest.approx(count, rel=5e-4)
