from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evoprune.options import FinetuneOptions, SearchOptions
from evoprune.resolving import resolve_options
from search_spaces.errors import BudgetError, OptionError


def test_a_master_seed_is_always_recorded() -> None:
    seeds = {resolve_options(SearchOptions, {"seed": None}).seed for _ in range(8)}
    assert len(seeds) == 8
    assert resolve_options(SearchOptions, {"seed": 7}).seed == 7


def test_options_survive_json() -> None:
    values = {"seed": 1, "budget": 0.5, "weights": "w.safetensors", "protect": ["a*"], "input_shape": [1, 8, 8]}
    values |= {"mean": [0.5, 0.4, 0.3], "std": (1, 0.5, 0.25)}
    options = resolve_options(SearchOptions, values)
    assert options.budget == ("0.5",)
    assert options.weights == Path("w.safetensors")
    assert resolve_options(SearchOptions, options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_generations": -1}, "`n_generations`: .*greater than or equal to 0, but got -1 .n_generations = "),
        ({"population_size": 3}, "`population_size`: .* but got 3"),
        ({"population_size": "8"}, "`population_size`: .*valid integer, but got '8'"),
        ({"seed": -1}, "`seed`: .*but got -1 .seed = the master seed."),
        ({"seed": 2**63}, "`seed`: .*less than"),
        ({"min_channels": 1.5}, r"`min_channels`: it must be a whole number >= 1 or a share in \(0, 1\), but got 1.5"),
        ({"min_channels": 0}, "`min_channels`: .*but got 0"),
        ({"min_channels": float("nan")}, "`min_channels`: .*but got nan"),
        ({"round_to": 0}, "`round_to`: .*but got 0"),
        ({"input_shape": (3, 0, 32)}, "`input_shape`: every side must be at least 1"),
        ({"mean": (0.5, 0.5)}, r"`mean`: it must be 3 numbers in \[0, 1\], one for each channel, but got \(0.5, 0.5\)"),
        ({"mean": (123.7, 116.3, 103.5)}, r"`mean`: it must be 3 numbers in \[0, 1\]"),
        ({"std": (0.2, 0.2, float("nan"))}, r"`std`: it must be 3 numbers in \[0, 1\]"),
        ({"std": (0.2, 0.0, 0.2)}, r"`std`: every number must be positive, .* but got \(0.2, 0.0, 0.2\)"),
        ({"metric": "flops"}, "unknown metric 'flops'; .*valid: activation-bytes, .*macs, params"),
        ({"budgte": "0.3"}, "unknown option `budgte`; valid: .*budget"),
    ],
)
def test_a_broken_rule_is_named_with_value_and_purpose(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve_options(SearchOptions, values)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(OptionError, match=r"`round_to`.*; `population_size`"):
        resolve_options(SearchOptions, {"population_size": 0, "round_to": 0})


def test_a_budget_has_its_own_error() -> None:
    with pytest.raises(BudgetError, match=r"'30%x'"):
        resolve_options(SearchOptions, {"budget": "30%x"})


def test_finetuning_options_have_their_rules() -> None:
    with pytest.raises(OptionError, match=r"`max_time_s`: .*greater than 0, but got 0"):
        resolve_options(FinetuneOptions, {"max_time_s": 0.0})


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (0.5, ("0.5",)),
        ("62M", ("62M",)),
        (["macs=0.5", "params=0.4"], ("macs=0.5", "params=0.4")),
        ({"params": 0.4, "macs": "62M"}, ("params=0.4", "macs=62M")),
    ],
)
def test_budgets_become_texts_that_json_keeps(given: object, texts: tuple[str, ...]) -> None:
    options = resolve_options(SearchOptions, {"seed": 1, "budget": given})
    assert options.budget == texts
    assert resolve_options(SearchOptions, options.model_dump(mode="json")) == options


@pytest.mark.parametrize("given", [True, [True], [[0.5]], 3j])
def test_a_budget_of_another_kind_is_refused(given: object) -> None:
    with pytest.raises(OptionError, match="`budget`"):
        resolve_options(SearchOptions, {"seed": 1, "budget": given})


def test_options_that_the_mode_would_not_read_are_refused() -> None:
    with pytest.raises(OptionError, match="`stages` is read in mode 'staged' only, but the mode is 'global'"):
        resolve_options(SearchOptions, {"seed": 1, "stages": "blocks"})
    with pytest.raises(OptionError, match="`cost_weight` decides the ratio where there is no budget"):
        resolve_options(SearchOptions, {"seed": 1, "mode": "staged", "budget": 0.5, "cost_weight": 2.0})
    options = resolve_options(
        SearchOptions, {"seed": 1, "mode": "staged", "budget": 1, "stages": "blocks", "cost_weight": 2.0}
    )
    assert (options.stages, options.cost_weight) == ("blocks", 2.0)
