"""The ways to search a space, by name: which genes are open when, and how survivors are chosen."""

from __future__ import annotations

from collections.abc import Mapping

from evoprune.modes.baselines import search_at_random, take_uniform_l1
from evoprune.modes.front import search_front
from evoprune.modes.layerwise import check_layers, layer_ladder, search_layers
from evoprune.modes.mode import MeasuresSensitivity, Mode, SearchTask, SensitivityCurve
from evoprune.modes.staged import check_stages, search_stages
from evoprune.modes.whole import search_whole

MODES: Mapping[str, Mode] = {
    "global": Mode("the whole genome evolves under the budget", search_whole),
    "pareto": Mode(
        "NSGA-II over quality and cost: one run, a whole front",
        search_front,
        uses_elites=False,
        default_budget="1",
        has_front=True,
    ),
    "random": Mode(
        "random genomes under the budget, as many evaluations",
        search_at_random,
        is_informed=False,
        uses_screens=False,
    ),
    "uniform-l1": Mode(
        "channels of largest L1 norm, an equal share of every group; no search",
        take_uniform_l1,
        is_informed=False,
        needs_baseline=True,
        has_course=False,
        uses_screens=False,
        uses_elites=False,
    ),
    "layerwise": Mode(
        "one channel group after the other by two-step errors, the least sensitive first",
        search_layers,
        own_ladder=layer_ladder,
        options=("n_layer_distillation_steps",),
        is_sequential=True,
        check=check_layers,
    ),
    "staged": Mode(
        "stage after stage, from concrete to abstract; without a budget the ratio emerges",
        search_stages,
        default_budget="1",
        options=("stages", "cost_weight"),
        is_sequential=True,
        check=check_stages,
    ),
}

__all__ = ["MODES", "MeasuresSensitivity", "Mode", "SearchTask", "SensitivityCurve"]
