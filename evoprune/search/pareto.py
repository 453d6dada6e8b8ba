"""NSGA-II over quality and cost: one search, a whole front."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evoprune.search.config import SearchConfig
from evoprune.search.dominance import ParetoArchive, crowded_ranks, hypervolume, knee, select_nsga2
from evoprune.search.engine import Search
from evoprune.search.feasibility import Repairer, Space
from evoprune.search.initialisation import DistinctGenomes, InitialShares, initial_population
from evoprune.search.messages import BestGenome
from evoprune.search.operators import with_counts
from evoprune.search.state import SearchState, pack_genomes, unpack_genomes
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.repair import count_kept

_N_LEVELS = 12
_N_ATTEMPTS = 20
_MARGIN = 0.1  # by which the reference point lies beyond the worst corner, as a share of the range


class RangeRepairer(Repairer):
    """Brings genomes under their budgets where they exceed them, and leaves their costs as they are elsewhere."""

    def __call__(
        self, genomes: BoolArray, *, rng: np.random.Generator, preference: FloatArray | None = None
    ) -> BoolArray:
        """Return feasible genomes ``(n, n_genes)``; arguments as for :class:`Repairer`.

        Kept counts that the lattice does not allow become one of their neighbours at random, so that repair drifts
        neither up nor down.
        """
        lattice = self.lattice
        counts = count_kept(genomes, lattice)
        below = lattice.floor(counts)
        raised = lattice.floor(counts + rng.integers(0, lattice.step, counts.shape))
        counts = lattice.canonical(np.where(below == counts, counts, raised))
        wanted = rng.random(genomes.shape) if preference is None else np.broadcast_to(preference, genomes.shape)
        settled = with_counts(genomes, counts, wanted, lattice)
        dear = np.flatnonzero(~self.is_feasible(settled))
        if len(dear):
            settled[dear] = super().__call__(settled[dear], rng=rng, preference=wanted[dear])
        return settled

    def sample(self, n_individuals: int, *, rng: np.random.Generator) -> BoolArray:
        """Return ``(n_individuals, n_genes)`` random feasible genomes of all costs."""
        return self(self._space.sample(rng=rng, n=n_individuals, budgets={}), rng=rng)


class ParetoSearch(Search):
    """NSGA-II over the judged objective and one cost, with an archive of every genome that is not dominated.

    The budgets are constraints: of two genomes the one that violates them less dominates. Parents win tournaments by
    the crowded comparison. The initial population covers all costs from the smallest network to the budget.

    Args:
        space: As for :class:`Search`.
        config: As for :class:`Search`; the budget of ``metric`` ends the front, 1 at the dense network.
        seed: As for :class:`Search`.
        metric: The cost that is minimised: one of the budgets.
        has_budget: Whether the best genome is the one of least objective. A front that ends at no wanted cost hands
            back its knee instead.
        **options: Further arguments of :class:`Search`.

    Attributes:
        archive: DEAP Pareto front of everything judged; survives restarts, and is part of the state.

    Raises:
        OptionError: ``metric`` has no budget, or the ladder has an elite rung, whose numbers would need a front of
            their own.
        BudgetError: As for :class:`Search`.

    References:
        Deb 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II.
    """

    n_objectives = 2
    repairer_type = RangeRepairer

    def __init__(
        self,
        space: Space,
        config: SearchConfig,
        *,
        seed: int,
        metric: str = "macs",
        has_budget: bool = True,
        **options: Any,
    ) -> None:
        if config.budgets.get(metric) is None:
            raise OptionError(
                f"the cost of a front must have a budget, but {metric!r} has none among {dict(config.budgets)}; "
                "give 1 where the whole range is wanted"
            )
        if config.ladder.elite is not None:
            raise OptionError(
                f"a front is judged by one rung, but the ladder has the elite rung {config.ladder.elite!r} too; "
                "leave it out, or make it the judge"
            )
        self.metric = metric
        self.has_budget = has_budget
        self.archive = ParetoArchive()
        self._reference: tuple[float, float] | None = None
        self._costs = Repairer(space, {metric: 1.0})
        super().__init__(space, config, seed=seed, **options)
        self.toolbox.register("survive", select_nsga2)
        self.toolbox.register("rank", crowded_ranks)

    # ------------------------------------------------------------------ what it knows

    def costs(self, genomes: BoolArray) -> FloatArray:
        """Return what ``genomes`` cost, ``(n,)``, as shares of the dense network's cost."""
        return self._costs.load(genomes)

    @property
    def best(self) -> BestGenome | None:
        """The least objective of the front where a budget ends it, else the front's knee; None before generation 0."""
        if not len(self.archive):
            return None
        member = self.archive[0 if self.has_budget else knee(self.archive.objective_values())]
        return BestGenome(member.genome, member.digest, member.values[0], self.config.ladder.judge)

    def best_within(self, budget: float) -> BestGenome | None:
        """Return the genome of least objective that costs at most the share ``budget`` of the dense network, if any."""
        for member in self.archive:  # the least objective comes first
            if member.values[1] <= budget:
                return BestGenome(member.genome, member.digest, member.values[0], self.config.ladder.judge)
        return None

    # ------------------------------------------------------------------ what differs from one objective

    def _initial_genomes(self, rng: np.random.Generator, seeds: BoolArray | None) -> BoolArray:
        """Return genomes of costs from the smallest network to the budget, ``seeds`` first."""
        n_wanted = self.config.population_size
        found = DistinctGenomes(n_wanted)
        if seeds is not None and len(seeds):
            found.add(self._repairer(seeds, rng=rng))
        levels = self._cost_levels(min(_N_LEVELS, max(n_wanted // 2, 2)))
        for level, (n_uniform, n_random, n_level) in zip(
            levels, self._dealt(n_wanted - len(found), len(levels)), strict=True
        ):
            repairer = Repairer(self.space, {**self.config.budgets, self.metric: level})
            if n_level:
                shares = InitialShares(n_uniform / n_level, n_random / n_level)
                found.add(initial_population(repairer, n_level, rng=rng, scores=self.mixture.orders, shares=shares))
        for _ in range(_N_ATTEMPTS):  # the dense network is alone at its cost, and a seed may be there already
            if len(found) < n_wanted:
                found.add(self._repairer.sample(n_wanted - len(found), rng=rng))
        return found.genomes()

    def _dealt(self, n: int, n_levels: int) -> list[tuple[int, int, int]]:
        """Return how many of ``n`` individuals every level gets: uniform ones, random ones, and all."""
        shares = self.config.initial
        n_uniform, n_random = round(shares.uniform * n), round(shares.random * n)
        level_of = np.arange(n) % n_levels
        return [
            (
                int((level_of[:n_uniform] == level).sum()),
                int((level_of[n_uniform : n_uniform + n_random] == level).sum()),
                int((level_of == level).sum()),
            )
            for level in range(n_levels)
        ]

    def _cost_levels(self, n: int) -> list[float]:
        """Return ``n`` costs from the least reachable one to the budget, in equal steps."""
        smallest, dense = self.space.cost_range(self.metric)
        most = float(self._repairer.budgets[self.metric])
        least = min((smallest + 0.5) / dense, most)
        return np.linspace(least, most, n).tolist()

    def _violations(self, genomes: BoolArray) -> FloatArray:
        return np.maximum(self._repairer.load(genomes) - 1.0, 0.0)

    def _values_of(self, genomes: BoolArray, objectives: FloatArray) -> FloatArray:
        return np.column_stack([objectives, self.costs(genomes)]) if len(genomes) else np.empty((0, 2))

    def _survivors(self, genomes: BoolArray, values: FloatArray) -> IntArray:
        survivors: IntArray = self.toolbox.survive(
            values, self.config.population_size, violations=self._violations(genomes)
        )
        return survivors

    def _ranks(self) -> IntArray:
        ranks: IntArray = self.toolbox.rank(
            self._population.values, violations=self._violations(self._population.genomes)
        )
        return ranks

    def _promising(self, genomes: BoolArray, objectives: FloatArray, n: int) -> IntArray:
        seen = genomes[: len(objectives)]
        chosen: IntArray = self.toolbox.survive(self._values_of(seen, objectives), n, violations=self._violations(seen))
        return chosen

    def _remember(self, genomes: BoolArray, objectives: FloatArray) -> None:
        super()._remember(genomes, objectives)
        kept = np.flatnonzero(np.isfinite(objectives))
        kept = kept[self._violations(genomes[kept]) == 0] if len(kept) else kept
        self.archive.add(genomes[kept], self._values_of(genomes[kept], objectives[kept]))
        if self._reference is None and len(self.archive):
            self._reference = self._reference_point()

    def _reference_point(self) -> tuple[float, float]:
        """Return a point a tenth of the range beyond the worst objective of the first front and the budget."""
        objectives = self.archive.objective_values()[:, 0]
        spread = float(objectives.max() - objectives.min()) or 1.0
        levels = self._cost_levels(2)
        margin = _MARGIN * ((levels[1] - levels[0]) or 1.0)
        return float(objectives.max()) + _MARGIN * spread, levels[1] + margin

    def _best_objective(self) -> float:
        best = self.best
        assert best is not None
        return best.objective

    def _further_figures(self) -> dict[str, Any]:
        assert self._reference is not None
        values = self.archive.objective_values()
        return {
            **super()._further_figures(),
            "hypervolume": hypervolume(values, self._reference),
            "n_front": len(values),
        }

    # ------------------------------------------------------------------ state

    def restore(self, state: SearchState) -> None:
        """Go back (or on) to ``state``; see :meth:`Search.restore`."""
        super().restore(state)
        self.archive.clear()
        self.archive.add(
            unpack_genomes(state.arrays["archive_genomes"], self.space.n_genes), state.arrays["archive_values"]
        )
        reference = state.data["reference"]
        self._reference = None if reference is None else (float(reference[0]), float(reference[1]))
        self._state = self._capture()

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "metric": self.metric, "has_budget": self.has_budget}

    def _capture(self) -> SearchState:
        state = super()._capture()
        arrays: dict[str, npt.NDArray[Any]] = {
            **state.arrays,
            "archive_genomes": pack_genomes(self.archive.genomes(self.space.n_genes)),
            "archive_values": self.archive.objective_values(),
        }
        reference = None if self._reference is None else list(self._reference)
        return SearchState(arrays, {**state.data, "reference": reference})
