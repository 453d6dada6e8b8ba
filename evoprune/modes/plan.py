"""How a budget is shared among parts of a network: by what a cut of each part does to the whole, measured.

Every part is cut alone to a few widths, which gives a curve of error against cost. The budget is then filled like
water: again and again the part whose next cut adds the least error per cost saved gives way, until the network as a
whole meets the budget; at the end all parts lose equally much per cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from evoprune.modes.mode import SensitivityCurve
from evoprune.search import Repairer, normalise_scores
from evoprune.search.guides import positions_in_groups
from search_spaces import SearchSpace, Stage, SubSpace
from search_spaces.genome import BoolArray, FloatArray

#: Shares of what a part can save at which it is measured.
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
_N_STEPS = 20


class Cutter:
    """Cuts parts of a network by an order of their genes; deterministic.

    Args:
        space: The search space.
        metrics: Which costs are cut: names of ``space.costs``.
        scores: ``(n_genes,)`` larger = more wanted, or None.
        are_errors: Whether scores compare over the whole network: then genes of least score per cost go first, else all
            groups of a part shrink alike.
        seed: Breaks ties.
    """

    def __init__(
        self, space: SearchSpace, metrics: Sequence[str], scores: FloatArray | None, *, are_errors: bool, seed: int
    ) -> None:
        self.space = space
        self.metrics = tuple(metrics)
        self._are_errors = are_errors and scores is not None
        self._scores = np.zeros(space.n_genes) if scores is None else scores
        self._seed = seed

    def cost_shares(self, genomes: BoolArray) -> FloatArray:
        """Return the costs ``(n, n_metrics)`` as shares of those of the dense network."""
        dense = self.space.all_ones()
        return np.stack([self.space.cost(m, genomes) / self.space.cost(m, dense)[0] for m in self.metrics], axis=1)

    def cut(self, stage: Stage, level: float) -> BoolArray:
        """Return the genome ``(n_genes,)`` that saves the share ``level`` of what ``stage`` alone can save."""
        dense = self.space.all_ones()
        part = SubSpace(self.space, stage.groups, dense[0])
        rng = np.random.default_rng(self._seed)
        if level >= 1:
            positions = positions_in_groups(self._scores[None, part.open_genes], part.lattice)
            least = positions < np.repeat(part.lattice.min_keep, part.lattice.sizes)
            return part.embed(least)[0]
        least = self.cut(stage, 1.0)[None]
        budgets = {}
        for metric in self.metrics:
            most, fewest = (int(self.space.cost(metric, genome)[0]) for genome in (dense, least))
            budgets[metric] = min((most - level * (most - fewest) + 0.5) / most, 1.0)
        return part.embed(self._repaired(part, budgets, rng))[0]

    def finish(self, genome: BoolArray, budgets: Mapping[str, float]) -> BoolArray:
        """Return the genome near ``genome`` ``(n_genes,)`` that fills ``budgets``, shares of the dense costs."""
        rng = np.random.default_rng(self._seed)
        scores = self._scores if self._are_errors else normalise_scores(self._scores, self.space.lattice)
        if self._are_errors:
            return self.space.repair(genome[None], rng=rng, scores=self._wanted(scores), budgets=budgets)[0]
        return Repairer(self.space, dict(budgets))(genome[None], rng=rng, preference=scores)[0]

    def _repaired(self, part: SubSpace, budgets: Mapping[str, float], rng: np.random.Generator) -> BoolArray:
        whole = np.ones((1, part.n_genes), np.bool_)
        scores = self._scores[part.open_genes]
        if self._are_errors:
            wanted = self._wanted(self._scores)[part.open_genes]
            return part.repair(whole, rng=rng, scores=wanted, budgets=budgets)
        return Repairer(part, dict(budgets))(whole, rng=rng, preference=normalise_scores(scores, part.lattice))

    def _wanted(self, scores: FloatArray) -> FloatArray:
        """Return ``scores``, positive, and blocks wanted most: no error of theirs is known."""
        wanted = np.maximum(scores, 1e-12)
        wanted[self.space.n_genes - len(self.space.blocks) :] = wanted.max(initial=1.0) * 1e9
        return np.asarray(wanted)


def share_budget(
    cutter: Cutter, stages: Sequence[Stage], curves: Sequence[SensitivityCurve], budgets: Mapping[str, float]
) -> BoolArray:
    """Return the genome ``(n_genes,)`` that meets ``budgets`` at equal marginal error per cost of all ``stages``.

    Args:
        cutter: Cuts them.
        stages: The parts, which hold every group once.
        curves: Of each of them.
        budgets: Shares in (0, 1] of the dense costs, by metric.

    Raises:
        BudgetError: They cannot be met.
    """
    limits = np.array([budgets[metric] for metric in cutter.metrics])
    steps = np.linspace(0, 1, _N_STEPS + 1)
    cuts = [
        np.stack([cutter.cut(stage, level) if level else cutter.space.all_ones()[0] for level in steps])
        for stage in stages
    ]
    loads = [(cutter.cost_shares(genomes) / limits).max(axis=1) for genomes in cuts]
    prices = [
        _marginal_errors(curve, cutter.cost_shares(genomes)[:, 0], load)
        for curve, genomes, load in zip(curves, cuts, loads, strict=True)
    ]
    positions = [0] * len(stages)

    def planned() -> BoolArray:
        return np.logical_and.reduce([genomes[at] for genomes, at in zip(cuts, positions, strict=True)])

    while (cutter.cost_shares(planned()[None])[0] > limits).any() and min(positions) < _N_STEPS:
        next_prices = [price[at] if at < _N_STEPS else np.inf for price, at in zip(prices, positions, strict=True)]
        positions[int(np.argmin(next_prices))] += 1
    return cutter.finish(planned(), budgets)


def _marginal_errors(curve: SensitivityCurve, cost_share: FloatArray, load: FloatArray) -> FloatArray:
    """Return the error that each further cut adds per load that it saves, ``(n_steps,)``, never falling."""
    saved, error = _convex_part(1 - curve.cost_share, curve.error)
    smooth = PchipInterpolator(saved, error, extrapolate=True) if len(saved) > 1 else np.zeros_like
    risen = np.asarray(smooth(np.clip(1 - cost_share, saved[0], saved[-1])), np.float64)
    gains = np.maximum(load[:-1] - load[1:], 1e-12)
    return np.maximum.accumulate(np.maximum(np.diff(risen), 0) / gains)


def _convex_part(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the points of the lower convex hull of ``(x, y)``, ``x`` strictly rising, ``y`` never falling.

    Values that are not finite count as the largest finite one.
    """
    finite = y[np.isfinite(y)]
    y = np.maximum.accumulate(np.where(np.isfinite(y), y, finite.max(initial=0.0)))
    hull: list[int] = []
    for index in np.argsort(x, kind="stable").tolist():
        if hull and x[index] <= x[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[index] - x[a]) < (y[index] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(index)
    return x[hull], y[hull]
