"""Rows of a logbook that belong together."""

from __future__ import annotations

from evoprune.search import comparable_rows


def test_rows_of_the_present_stage_are_comparable() -> None:
    rows = [{"gen": gen, "stage": stage} for gen, stage in enumerate("aabbb")]
    assert comparable_rows(rows) == rows[2:]
    assert comparable_rows(rows[:2]) == rows[:2]
    assert comparable_rows([]) == []


def test_rows_without_stages_are_all_comparable() -> None:
    rows = [{"gen": gen} for gen in range(3)]
    assert comparable_rows(rows) == rows
