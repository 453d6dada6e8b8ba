"""Shares of trials follow success, and never leave a name without any."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoprune.search.adaptation import SuccessShares


@settings(deadline=None)
@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
    st.lists(st.lists(st.tuples(st.integers(-1, 4), st.booleans()), max_size=20), max_size=6),
)
def test_shares_sum_to_one_keep_their_floor_and_survive_json(
    weights: list[float], history: list[list[tuple[int, bool]]]
) -> None:
    shares = SuccessShares({str(i): weight for i, weight in enumerate(weights)})
    for trials in history:
        tried = np.array([min(name, len(weights) - 1) for name, _ in trials], np.int64)
        shares.learn(tried, tried[np.array([success for _, success in trials], np.bool_)])
    got = shares.shares()
    assert got.sum() == pytest.approx(1)
    assert (got >= 0.3 * np.array(weights) / sum(weights) - 1e-12).all()
    again = SuccessShares({str(i): weight for i, weight in enumerate(weights)})
    again.restore(json.loads(json.dumps(shares.state())))
    np.testing.assert_array_equal(again.shares(), got)


def test_what_succeeds_is_tried_more_often_and_old_success_fades() -> None:
    shares = SuccessShares({"good": 1.0, "bad": 1.0})
    np.testing.assert_array_equal(shares.shares(), [0.5, 0.5])
    tried = np.array([0] * 10 + [1] * 10)
    for _ in range(10):
        shares.learn(tried, tried[tried == 0])
    assert shares.shares()[0] > 0.7
    for _ in range(30):
        shares.learn(tried, tried[tried == 1])
    assert shares.shares()[0] < 0.3


def test_shares_may_be_constant_or_limited_to_some_names() -> None:
    constant = SuccessShares({"a": 3.0, "b": 1.0}, is_adaptive=False)
    constant.learn(np.array([0, 1]), np.array([1]))
    np.testing.assert_allclose(constant.shares(), [0.75, 0.25])
    np.testing.assert_allclose(constant.shares(["b", "c"]), [0.0, 1.0])
    np.testing.assert_allclose(constant.shares(["c"]), [0.75, 0.25])
