"""Mode ``staged``: the stages of a network one after the other, from concrete to abstract.

References:
    "Genetic wavelet channel search" (GWCS), Front. Comput. Neurosci. 15:760554, 2021. Only its abstract is readable:
    that stages go from concrete to abstract and that the ratio is not given beforehand is theirs; what a stage is, the
    form of the cost term and sharing a budget by measured sensitivity are our reconstruction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from evoprune.budget import DEFAULT_METRIC
from evoprune.modes.mode import SearchTask, SensitivityCurve
from evoprune.modes.plan import LEVELS, Cutter, share_budget
from evoprune.modes.sequence import SequentialSearch
from evoprune.options import SearchOptions
from evoprune.search import Search, Strategy
from evoprune.search.feasibility import Space
from evoprune.search.pareto import RangeRepairer
from fitness.evaluation import Evaluation
from search_spaces import SearchSpace, Stage, SubSpace, stages_of
from search_spaces.errors import ExecutionError, OptionError
from search_spaces.genome import BoolArray, genome_digest

DEFAULT_STAGES = "resolution"
#: As GWCS has it in our reconstruction: saving all cost is worth as much as all of the error.
DEFAULT_COST_WEIGHT = 1.0
_FREE_LEVELS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)


class FreeRepairer(RangeRepairer):
    """Keeps to the lattice of kept counts, drifting neither up nor down, whatever the budgets."""

    def __init__(self, space: Space, budgets: Mapping[str, float | None]) -> None:
        del budgets
        super().__init__(space, {}, is_optional=True)


class FreeSearch(Search):
    """A search without any budget: its objective says what cost is worth."""

    repairer_type = FreeRepairer


class StagedSearch(SequentialSearch):
    """Stage after stage, earlier ones frozen at their winner, later ones dense until their turn.

    With budgets each stage is first cut alone to a few widths and judged; the budgets are shared by these curves.
    Without a budget what is minimised is ``error + cost_weight * cost / dense cost``, and the ratio emerges; errors
    are objectives, scaled such that the dense network has 0 and the one that keeps as little as possible has 1.

    Args:
        task: What the run has prepared; without budgets under 1 the ratio emerges.
        stages: In the order of their turns.
        cost_weight: Worth of the whole network's cost without budgets, in units of the error of the network that keeps
            as little as possible.
        metric: The cost that counts without budgets.

    Raises:
        OptionError: There are fewer than two stages.
    """

    def __init__(
        self, task: SearchTask, stages: tuple[Stage, ...], *, cost_weight: float, metric: str = "macs"
    ) -> None:
        _require_several(stages, task.options.stages or DEFAULT_STAGES)
        config = task.config
        self.budgets = {name: value for name, value in config.budgets.items() if value is not None and value < 1}
        config = dataclasses.replace(config, budgets=self.budgets)
        if not self.budgets:
            config = dataclasses.replace(config, initial=dataclasses.replace(config.initial, uniform=0.0))
        self.cost_weight = cost_weight
        self.metric = metric
        self._cutter = Cutter(
            task.space,
            list(self.budgets) or [metric],
            task.channel_scores,
            are_errors=task.scores_are_errors,
            seed=task.options.seed,
        )
        options = {"cost_weight": cost_weight, "metric": metric, "budgets": self.budgets}
        super().__init__(task, stages, config, options)
        self._measured = self._genomes_to_measure(stages)

    def _genomes_to_measure(self, stages: tuple[Stage, ...]) -> dict[str, BoolArray]:
        dense = self.space.all_ones()
        ladder = self.config.ladder
        if self.budgets:
            cuts = [self._cutter.cut(stage, level) for stage in stages for level in LEVELS]
            return {ladder.judge: _distinct(np.concatenate([dense, np.stack(cuts)]))}
        stripped = np.logical_and.reduce([self._cutter.cut(stage, 1.0) for stage in stages])[None]
        return dict.fromkeys(ladder.rungs, np.concatenate([dense, stripped]))

    def _probes(self) -> Mapping[str, BoolArray]:
        return self._measured

    def _make_plan(self) -> BoolArray:
        if not self.budgets:
            return self.space.all_ones()[0]
        return share_budget(self._cutter, self.parts, self.curves, self.budgets)

    @property
    def curves(self) -> list[SensitivityCurve]:
        """What cutting each stage alone does, once the probes are judged; empty before, and without budgets."""
        rung = self.config.ladder.judge
        if not self.budgets or not self.objectives:
            return []
        curves = []
        for stage in self.parts:
            genomes = np.concatenate(
                [self.space.all_ones(), np.stack([self._cutter.cut(stage, level) for level in LEVELS])]
            )
            errors = np.array([self.objectives[rung, genome_digest(genome)] for genome in genomes])
            curves.append(SensitivityCurve(stage.name, self._cutter.cost_shares(genomes)[:, 0], errors, rung))
        return curves

    def _seeds(self, part: SubSpace) -> BoolArray | None:
        if self.budgets:
            first = [part.background[None]] if self.task.seeds is None else [part.background[None], self.task.seeds]
            return part.extract(np.concatenate(first))
        if self.task.seeds is None:  # no criterion may propose genomes
            return None
        stage = self.parts[self._index]
        cuts = np.stack([self._cutter.cut(stage, level) for level in _FREE_LEVELS])
        return part.extract(np.concatenate([cuts, self.task.seeds]))

    def _make_search(self, part: SubSpace, seed: int) -> Search:
        if self.budgets:
            return super()._make_search(part, seed)
        return FreeSearch(part, self.config, seed=seed, seeds=self._seeds(part), priors=self._priors(part))

    def _priced(self, evaluation: Evaluation, genome: BoolArray) -> float:
        if self.budgets:
            return evaluation.objective
        rung = evaluation.rung
        dense, stripped = (self.objectives[rung, genome_digest(g)] for g in self._measured[rung])
        if not (math.isfinite(stripped) and stripped > dense):
            raise ExecutionError(
                "without a budget the network that keeps as little as possible is the measure of errors, but its "
                f"objective at rung {rung!r} is {stripped}, that of the dense network {dense}; give a budget, or raise "
                "`min_channels`"
            )
        share = float(self.space.cost(self.metric, genome[None])[0] / self.space.cost_range(self.metric)[1])
        return (evaluation.objective - dense) / (stripped - dense) + self.cost_weight * share

    def _useful_objective(self, priced: float) -> float:
        return priced if self.budgets else math.inf  # a cost term differs from genome to genome


def check_stages(space: SearchSpace, options: SearchOptions) -> None:
    """Check that ``space`` has the stages that the options name.

    Raises:
        OptionError: The stages are malformed, or fewer than two.
    """
    staging = options.stages or DEFAULT_STAGES
    _require_several(stages_of(space, staging), staging)


def search_stages(task: SearchTask) -> Strategy:
    """Return the search of the stages that the options name.

    Raises:
        OptionError: The stages are malformed, or fewer than two.
        BudgetError: A budget cannot be reached.
    """
    options = task.options
    stages = stages_of(task.space, options.stages or DEFAULT_STAGES)
    weight = DEFAULT_COST_WEIGHT if options.cost_weight is None else options.cost_weight
    metric = next(iter(task.config.budgets), DEFAULT_METRIC)
    return StagedSearch(task, stages, cost_weight=weight, metric=metric)


def _require_several(stages: Sequence[Stage], staging: str) -> None:
    if len(stages) < 2:
        raise OptionError(
            f"mode `staged` needs at least two stages, but this network has {len(stages)} by `--stages {staging}`; "
            "give patterns of group names, or use mode `global`"
        )


def _distinct(genomes: BoolArray) -> BoolArray:
    by_digest = {genome_digest(genome): genome for genome in genomes}
    return np.stack(list(by_digest.values()))
