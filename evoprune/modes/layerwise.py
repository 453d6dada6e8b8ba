"""Mode ``layerwise``: one channel group after the other, with the two-step approximation as fitness.

References:
    "A novel channel pruning method for deep neural network compression", arXiv 1805.11394, 2018: a genetic algorithm
    per layer whose fitness is the two-step approximation, order and ratio by the layer's sensitivity. Only abstract and
    notes were readable: what is measured, the order, how a budget becomes ratios and how long is distilled between
    layers are our reading.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evoprune.knowledge import TWO_STEP
from evoprune.modes.mode import SearchTask, SensitivityCurve
from evoprune.modes.plan import Cutter
from evoprune.modes.sequence import SequentialSearch
from evoprune.options import SearchOptions
from evoprune.search import LadderPlan, Search, Strategy
from fitness.criteria import CRITERIA
from fitness.options import UPDATING_COMPENSATIONS
from fitness.two_step import E1_RUNG, E2_RUNG
from search_spaces import SearchSpace, Stage, SubSpace
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, FloatArray


def layer_ladder(ladder: LadderPlan) -> LadderPlan:
    """Return the plan of this mode: E1 screens, E2 judges, and what would have judged decides between the best."""
    elite = ladder.judge if ladder.judge not in (E1_RUNG, E2_RUNG) else None
    return LadderPlan(judge=E2_RUNG, screen=E1_RUNG, elite=elite, n_elites=1)


class LayerwiseSearch(SequentialSearch):
    """Group after group, the least sensitive first; earlier ones frozen at their winner, later ones dense.

    The plan drops the genes of least error per cost until the budgets hold: all groups then lose equally much per cost.
    A group's sensitivity is the error of its planned cut.

    Args:
        task: What the run has prepared; its scores are errors, and it has budgets.

    Raises:
        OptionError: Its scores are not errors, or blocks may be removed, of which no error is known.
        BudgetError: A budget cannot be met.
    """

    def __init__(self, task: SearchTask) -> None:
        space, scores = task.space, task.channel_scores
        if scores is None or not task.scores_are_errors:
            raise OptionError(
                "mode `layerwise` takes order and ratio from two-step errors, but the first prior is another; leave "
                "out `--prior` and `--compensation`, or begin the priors with two-step"
            )
        _refuse_blocks(space)
        budgets = {name: value for name, value in task.config.budgets.items() if value is not None}
        self._scores: FloatArray = scores
        self._cutter = Cutter(space, list(budgets), scores, are_errors=True, seed=task.options.seed)
        self._n_distillation_steps = task.options.n_layer_distillation_steps or 0
        self._planned = self._cutter.finish(space.all_ones()[0], budgets)
        errors = [float(scores[g.start : g.stop][~self._planned[g.start : g.stop]].sum()) for g in space.groups]
        order = np.argsort(errors, kind="stable").tolist()
        parts = [Stage(space.groups[index].name, np.array([index], np.int64)) for index in order]
        decisive: dict[str, Any] = {"budgets": budgets}
        if self._n_distillation_steps:
            decisive["n_layer_distillation_steps"] = self._n_distillation_steps
        super().__init__(task, parts, task.config, decisive)

    def _judged(self, search: Search) -> float:
        """Return what the best network is worth by what decides between the winners: E2 is no objective of the user."""
        best = self.best
        return super()._judged(search) if best is None else best.objective

    def _make_plan(self) -> BoolArray:
        return self._planned

    def _seeds(self, part: SubSpace) -> BoolArray:
        first = [self._planned[None]] if self.task.seeds is None else [self._planned[None], self.task.seeds]
        return part.extract(np.concatenate(first))

    def _first_valid_generation(self) -> int:
        return self._n_before if self._n_distillation_steps else 0

    @property
    def winners(self) -> list[BoolArray]:
        """The genome ``(n_genes,)`` after each closed layer that another one follows; layers behind it are dense."""
        genome, winners = self.space.all_ones()[0], []
        for part in self.parts[: min(self._index, len(self.parts) - 1)]:
            group = self.space.groups[int(part.groups[0])]
            genome[group.start : group.stop] = self._frozen[group.start : group.stop]
            winners.append(genome.copy())
        return winners

    @property
    def curves(self) -> list[SensitivityCurve]:
        """E2 of every group by what is left of it, in the order of the turns: the least wanted genes go first."""
        curves = []
        for part in self.parts:
            group = self.space.groups[int(part.groups[0])]
            order = group.start + np.argsort(self._scores[group.start : group.stop], kind="stable")
            counts = np.arange(group.size - group.min_keep + 1)
            genomes = self.space.all_ones(len(counts))
            for n_dropped in counts:
                genomes[n_dropped, order[:n_dropped]] = False
            error = np.concatenate([[0.0], np.cumsum(self._scores[order])])[: len(counts)]
            curves.append(SensitivityCurve(group.name, self._cutter.cost_shares(genomes)[:, 0], error, E2_RUNG))
        return curves


def check_layers(space: SearchSpace, options: SearchOptions) -> None:
    """Check that there will be two-step errors of everything that ``space`` lets be removed.

    Raises:
        OptionError: Blocks may be removed, or two-step is none of the priors.
    """
    _refuse_blocks(space)
    priors = options.criteria(is_compensated=options.compensation in UPDATING_COMPENSATIONS).priors
    scoring = [name for name in priors if name in CRITERIA and "scores" in CRITERIA[name].roles]
    if scoring[:1] != [TWO_STEP]:
        raise OptionError(
            f"mode `layerwise` takes order and ratio from two-step errors, but two-step is not the first with scores "
            f"among the priors {', '.join(priors) or 'none'}, which follow from `--prior {options.prior}` and "
            f"`--compensation {options.compensation}`; leave these out, or begin the priors with two-step"
        )


def search_layers(task: SearchTask) -> Strategy:
    """Return the search of one group after the other.

    Raises:
        OptionError: There are no two-step errors, or blocks may be removed.
        BudgetError: A budget cannot be reached.
    """
    return LayerwiseSearch(task)


def _refuse_blocks(space: SearchSpace) -> None:
    if space.blocks:
        raise OptionError(
            "mode `layerwise` searches channels, but `--block-genes` lets whole blocks be removed, of which no "
            "error is known; leave it out, or use mode `global` or `staged`"
        )
