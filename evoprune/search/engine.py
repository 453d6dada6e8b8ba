"""The search itself, in ask/tell form: it proposes genomes, is told what they are worth, and knows its own state.

    search = Search(space, config, seed=0)
    while not search.is_finished:
        request = search.ask()
        search.tell([evaluate(genome, request.rung) for genome in request.genomes])

Nothing in here evaluates, stores, prints or waits. All randomness is derived from the master seed per stream and
generation; a search that is restored therefore goes on exactly as the uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from deap import base, tools

from evoprune.search.breeding import Breeder
from evoprune.search.config import SearchConfig
from evoprune.search.draft import Draft
from evoprune.search.feasibility import Repairer, Space
from evoprune.search.guides import Prior
from evoprune.search.individual import BestIndividuals, Individual, make_statistics
from evoprune.search.initialisation import initial_population
from evoprune.search.memory import Memory
from evoprune.search.messages import BestGenome, EvaluationRequest, Role, check_answers, check_any_succeeded
from evoprune.search.operators import LocalError, build_toolbox, truncate
from evoprune.search.population import Population
from evoprune.search.priors import PriorMixture
from evoprune.search.state import SearchState, as_json, check_identity, pack_hall, restore_hall
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, GenomeShapeError, OptionError
from search_spaces.genome import BoolArray, FloatArray, IntArray, genome_digest

_STATE_VERSION = 3


class Search:
    """A (mu + lambda) search over a whole genome under budgets, with truncation, elitism and self-adapting rates.

    Args:
        space: What can be removed and what it costs.
        config: Sizes, rates, budgets and ladder plan.
        seed: Master seed, not negative.
        seeds: ``(m, n_genes)`` genomes to begin with.
        priors: What criteria say about the genes: they guide mutation and repair, each for the share of offspring that
            its children's survival earns it, and order the channels of the uniform individuals.
        local_error: What the mutation ``local`` lowers; without it there is no such mutation.

    Attributes:
        mixture: The priors, and how much the search listens to each.
        toolbox: DEAP toolbox; register other operators before the first :meth:`ask`.
        statistics: DEAP statistics over the judged objectives of the population.
        logbook: DEAP logbook, one row per generation.
        best_individuals: DEAP hall of fame by the judge rung.
        elites: DEAP hall of fame by the elite rung; empty without one.

    Raises:
        BudgetError: A budget is malformed or cannot be reached.
        GenomeShapeError: ``seeds`` are no genomes of the space.
        OptionError: The space offers nothing to remove, or an argument does not fit it.
        UnknownNameError: The configuration names an operator that is not on the toolbox (raised by :meth:`ask`).
    """

    n_objectives = 1
    repairer_type: type[Repairer] = Repairer
    breeder_type: type[Breeder] = Breeder

    def __init__(
        self,
        space: Space,
        config: SearchConfig,
        *,
        seed: int,
        seeds: BoolArray | None = None,
        priors: Sequence[Prior] = (),
        local_error: LocalError | None = None,
    ) -> None:
        if space.n_genes == 0:
            raise OptionError(
                "a search needs genes, but every channel of the network is frozen; see `evoprune inspect`"
            )
        if seed < 0:
            raise OptionError(f"a seed must not be negative, but got {seed}; give a number such as 0")
        if seeds is not None and (seeds.dtype != np.bool_ or seeds.ndim != 2 or seeds.shape[1] != space.n_genes):
            raise GenomeShapeError(
                f"seeds must be a boolean array (m, {space.n_genes}), but got {seeds.dtype} {seeds.shape}; make them "
                "with the methods of the search space"
            )
        self.space = space
        self.config = config
        self.seed = seed
        self._repairer = self.repairer_type(space, config.budgets)
        lattice = self._repairer.lattice
        self.mixture = PriorMixture(
            priors, lattice, random_share=config.random_share, temperature=config.prior_temperature
        )
        self.toolbox: base.Toolbox = build_toolbox(lattice, local_error)
        self._memory = Memory(space.n_genes)
        self._seeds = seeds
        self._breeder = self.breeder_type(
            config,
            self._repairer,
            self.mixture,
            self.toolbox,
            self._memory,
            self._initial_genomes,
            self._promising,
            seed=seed,
        )
        self.statistics: tools.Statistics = make_statistics()
        self.logbook: tools.Logbook = tools.Logbook()
        self.best_individuals = BestIndividuals(config.n_best)
        self.elites = BestIndividuals(config.n_best)
        self._population = Population.empty(space.n_genes, self.n_objectives)
        self._generation = -1
        self._draft: Draft | None = None
        self._request: EvaluationRequest | None = None
        self._state = self._capture()

    # ------------------------------------------------------------------ what it knows

    @property
    def generation(self) -> int:
        """The last finished generation; -1 before the initial population is judged."""
        return self._generation

    @property
    def n_generations(self) -> int:
        """Configured generations after the initial population."""
        return self.config.n_generations

    @property
    def population_size(self) -> int:
        """Survivors per generation."""
        return self.config.population_size

    @property
    def is_finished(self) -> bool:
        """Whether the configured generations are done; asking goes on to be possible."""
        return self._generation >= self.config.n_generations

    @property
    def is_complete(self) -> bool:
        """Whether there is a best genome, every one being feasible."""
        return self._generation >= 0

    def hurry(self) -> None:
        """Do nothing: whatever was judged can be handed back."""

    @property
    def population(self) -> list[Individual]:
        """The survivors, best first."""
        return self._population.individuals()

    @property
    def best(self) -> BestGenome | None:
        """The best by the elite rung where it has judged any, else by the judge rung; None before generation 0 ends."""
        ladder = self.config.ladder
        for hall, rung in ((self.elites, ladder.elite), (self.best_individuals, ladder.judge)):
            if rung is not None and len(hall):
                return BestGenome(hall[0].genome, hall[0].digest, hall[0].objective, rung)
        return None

    # ------------------------------------------------------------------ ask and tell

    def ask(self) -> EvaluationRequest:
        """Return what is to be evaluated next; the same until it is told."""
        if self._request is None:
            self._request = self._begin_generation()
        return self._request

    def tell(self, evaluations: Sequence[Evaluation]) -> bool:
        """Take the ``evaluations`` of the last request, in its order, and return whether they ended a generation.

        Raises:
            OptionError: They do not answer the request.
            ExecutionError: Nothing was asked, or every genome of the initial population failed.
        """
        request, draft = self._request, self._draft
        if request is None or draft is None:
            raise ExecutionError("`tell` answers `ask`, but nothing was asked; call `ask` first")
        check_answers(request, evaluations)
        objectives = np.array([evaluation.objective for evaluation in evaluations], np.float64)
        self._memory.add_answered(request)
        self._request = None
        if request.role == "screen":
            self._request = self._take_screened(draft, objectives, request.rung)
        elif request.role == "judge":
            if self._generation < 0:
                check_any_succeeded(evaluations)
            self._request = self._take_judged(draft, objectives)
        else:
            draft.n_elites = len(request.digests)
            self.elites.show(request.genomes, objectives)
        if self._request is None:
            self._finish_generation(draft)
        return self._request is None

    def _begin_generation(self) -> EvaluationRequest:
        if self._generation < 0:
            self._draft = self._breeder.first(self._seeds)
            return self._make_request("judge", self._draft.genomes, self.config.ladder.judge)
        self._draft = self._breeder.next(self._generation + 1, self._population, self._ranks())
        return self._next_request(self._draft, self.config.ladder.screens)

    def _make_request(self, role: Role, genomes: BoolArray, rung: str) -> EvaluationRequest:
        digests = tuple(genome_digest(genome) for genome in genomes)
        limit = self._useful_objective() if role == "judge" else math.inf
        return EvaluationRequest(self._generation + 1, rung, role, genomes, digests, limit=limit)

    def _useful_objective(self) -> float:
        """Return the judged objective above which none of the draft can survive or be among the best.

        Only truncation of a full population by one objective gives such a bound; a fresh population has none.
        """
        is_bounded = self.n_objectives == 1 and self.toolbox.survive.func is truncate
        if not is_bounded or self._draft is None or self._draft.is_restart:
            return math.inf
        if len(self._population) < self.config.population_size or len(self.best_individuals) < self.config.n_best:
            return math.inf
        return max(float(self._population.objectives.max()), self.best_individuals[-1].objective)

    def _next_request(self, draft: Draft, screens: Sequence[str]) -> EvaluationRequest:
        """Return the request of the first of ``screens`` that has anything to leave out, else of the judge."""
        n_offspring = len(draft.genomes) - draft.n_immigrants
        for screen in screens:
            if n_offspring > self.config.n_passed(screen, draft.n_immigrants):
                return self._make_request("screen", draft.genomes[:n_offspring], screen)
        return self._make_request("judge", draft.genomes, self.config.ladder.judge)

    def _take_screened(self, draft: Draft, objectives: FloatArray, screen: str) -> EvaluationRequest:
        """Keep the best screened offspring, and all immigrants, which a screen would not let in."""
        n_passed = self.config.n_passed(screen, draft.n_immigrants)
        passed = np.sort(self._promising(draft.genomes, objectives, n_passed))
        draft.n_screened = max(draft.n_screened, len(objectives))
        self._draft = draft.take(np.concatenate([passed, np.arange(len(objectives), len(draft.genomes))]))
        screens = self.config.ladder.screens
        return self._next_request(self._draft, screens[screens.index(screen) + 1 :])

    def _take_judged(self, draft: Draft, objectives: FloatArray) -> EvaluationRequest | None:
        """Let the best survive, and return the request of the elite rung if it has not seen all of the best."""
        draft.n_failed = int((~np.isfinite(objectives)).sum())
        self._select(draft, objectives)
        ladder = self.config.ladder
        if ladder.elite is None:
            return None
        candidates = self._memory.unseen_by_elite(self._population.genomes[: ladder.n_elites])
        return self._make_request("elite", candidates, ladder.elite) if len(candidates) else None

    def _select(self, draft: Draft, objectives: FloatArray) -> None:
        """Merge parents and offspring, let the best survive, and learn from who did."""
        # A fresh population starts without its predecessors, unless all of it failed.
        n_parents = 0 if draft.is_restart and np.isfinite(objectives).any() else len(self._population)
        parents = self._population.take(np.arange(n_parents))
        offspring = Population(draft.genomes, self._values_of(draft.genomes, objectives), draft.rates)
        candidates = parents.joined(offspring)
        survivors = self._survivors(candidates.genomes, candidates.values)
        self._population = candidates.take(survivors)
        self._breeder.variation.learn(draft, np.isin(np.arange(n_parents, len(candidates)), survivors), objectives)
        self._remember(draft.genomes, objectives)
        self._memory.add_judged(draft.genomes, objectives)
        self.mixture.look_at(*self._memory.judged)
        if self._generation < 0 or draft.is_restart:
            self._breeder.renewal.begin(self._population)

    def _finish_generation(self, draft: Draft) -> None:
        self._generation += 1
        self.logbook.record(**self._row(draft))
        self._draft = None
        self._state = self._capture()

    def _row(self, draft: Draft) -> dict[str, Any]:
        """Return what the logbook tells of the generation that ``draft`` became."""
        best = self.best
        assert best is not None
        return {
            "gen": self._generation,
            "nevals": len(draft.genomes),
            **{name: float(value) for name, value in self.statistics.compile(self.population).items()},
            "best": self._best_objective(),
            "best_digest": best.digest,
            "elite_best": self.elites[0].objective if len(self.elites) else None,
            "n_screened": draft.n_screened,
            "n_elites": draft.n_elites,
            "n_failed": draft.n_failed,
            "n_immigrants": draft.n_immigrants,
            "is_restart": draft.is_restart,
            "diversity": self._population.diversity,
            "mutation_rate": float(np.median(self._population.rates)),
            **self._breeder.variation.row(),
            **self._further_figures(),
        }

    # ------------------------------------------------------------------ what a search with other objectives replaces

    def _initial_genomes(self, rng: np.random.Generator, seeds: BoolArray | None) -> BoolArray:
        """Return the genomes of a population that begins with ``seeds``."""
        return initial_population(
            self._repairer,
            self.config.population_size,
            rng=rng,
            scores=self.mixture.orders,
            seeds=seeds,
            shares=self.config.initial,
        )

    def _values_of(self, genomes: BoolArray, objectives: FloatArray) -> FloatArray:
        """Return what is minimised, ``(n, n_objectives)``; the evaluated ``objectives`` ``(n,)`` come first."""
        del genomes
        return objectives[:, None]

    def _survivors(self, genomes: BoolArray, values: FloatArray) -> IntArray:
        """Return the rows that survive, best first."""
        del genomes
        survivors: IntArray = self.toolbox.survive(values, self.config.population_size)
        return survivors

    def _ranks(self) -> IntArray:
        """Return the ranks of the population for the selection of parents, 0 = best."""
        return np.arange(len(self._population))

    def _promising(self, genomes: BoolArray, objectives: FloatArray, n: int) -> IntArray:
        """Return at most ``n`` rows of those that a cheap rung has seen, ``objectives`` ``(m,)``, the first ``m``."""
        del genomes
        return np.argsort(objectives, kind="stable")[:n]

    def _remember(self, genomes: BoolArray, objectives: FloatArray) -> None:
        """Show what was judged to the archives that outlive the population."""
        self.best_individuals.show(genomes, objectives)

    def _best_objective(self) -> float:
        """Return the judged objective that stop rules watch."""
        return self.best_individuals[0].objective

    def _further_figures(self) -> dict[str, Any]:
        """Return more columns of the logbook."""
        return {}

    # ------------------------------------------------------------------ state

    def state(self) -> SearchState:
        """Return the search after its last finished generation.

        A generation in the making is not part of it: asked again, the restored search proposes the same genomes.
        """
        return self._state

    def restore(self, state: SearchState) -> None:
        """Go back (or on) to ``state``, which a search with the same space, configuration and seed has returned.

        Raises:
            RunDirectoryError: The state is of another version, seed, configuration or space.
        """
        check_identity(state.data, self._identity())
        arrays, data, n_genes = state.arrays, state.data, self.space.n_genes
        self._population = Population.of_arrays(arrays, n_genes)
        self._memory.restore(arrays)
        restore_hall(self.best_individuals, "best", arrays, n_genes)
        restore_hall(self.elites, "elite", arrays, n_genes)
        self.logbook = tools.Logbook()
        for row in data["logbook"]:
            self.logbook.record(**row)
        self.mixture.restore(arrays)
        self.mixture.look_at(*self._memory.judged)
        self._breeder.variation.restore(data)
        self._breeder.renewal.initial_diversity = float(data["initial_diversity"])
        self._generation = int(data["generation"])
        self._draft = self._request = None
        self._state = self._capture()

    def _identity(self) -> dict[str, Any]:
        config = dataclasses.asdict(self.config)
        del config["n_generations"]  # a finished run may be given more
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "n_genes": self.space.n_genes,
            "priors": self.mixture.fingerprints,
            "config": as_json(config),
        }

    def _capture(self) -> SearchState:
        arrays = {
            **self._population.arrays(),
            **self._memory.arrays(),
            **self.mixture.arrays(),
            **pack_hall(self.best_individuals, "best", self.space.n_genes),
            **pack_hall(self.elites, "elite", self.space.n_genes),
        }
        data = {
            **self._identity(),
            "generation": self._generation,
            "initial_diversity": self._breeder.renewal.initial_diversity,
            **self._breeder.variation.state(),
            "logbook": [dict(row) for row in self.logbook],
        }
        return SearchState(arrays, data)
