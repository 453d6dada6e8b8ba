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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from deap import base, tools

from evoprune.search.adaptation import SuccessShares
from evoprune.search.config import SearchConfig
from evoprune.search.draft import Draft
from evoprune.search.feasibility import Repairer, Space, diversity
from evoprune.search.guides import Prior
from evoprune.search.individual import BestIndividuals, Individual, make_statistics
from evoprune.search.initialisation import DistinctGenomes, initial_population
from evoprune.search.operators import WIDTH_KEEPING, LocalError, as_widths, build_toolbox
from evoprune.search.priors import PriorMixture
from evoprune.search.randomness import make_generator
from evoprune.search.surrogate import LinearSurrogate
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, OptionError, RunDirectoryError, UnknownNameError
from search_spaces.genome import BoolArray, FloatArray, IntArray, genome_digest

Role = Literal["probe", "screen", "judge", "elite"]
_N_ATTEMPTS = 12
_LEARNING_RATE = 0.3  # sigma of the log-normal factor by which a child's mutation rate differs from its parent's
_STATE_VERSION = 3


@dataclass(frozen=True)
class EvaluationRequest:
    """Genomes that the search wants to know about; ``(generation, rung)`` is unique within a search.

    Attributes:
        generation: 0 for the initial population.
        rung: Rung of the fidelity ladder.
        role: What the rung is used for; a ``probe`` measures the space and is no part of a population.
        genomes: ``(n, n_genes)``, distinct and feasible; ``n`` may be 0.
        digests: Identities of the genomes.
    """

    generation: int
    rung: str
    role: Role
    genomes: BoolArray
    digests: tuple[str, ...]


@dataclass(frozen=True)
class BestGenome:
    """The best solution so far: ``objective`` is a number of ``rung``."""

    genome: BoolArray
    digest: str
    objective: float
    rung: str


@dataclass(frozen=True)
class SearchState:
    """A search after a finished generation: plain arrays and JSON values."""

    arrays: Mapping[str, npt.NDArray[Any]]
    data: Mapping[str, Any]


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
        OptionError: The space offers nothing to remove, or an argument does not fit it.
        UnknownNameError: The configuration names an operator that is not on the toolbox (raised by :meth:`ask`).
    """

    n_objectives = 1

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
        self.space = space
        self.config = config
        self.seed = seed
        self._repairer = self._make_repairer()
        lattice = self._repairer.lattice
        self.mixture = PriorMixture(
            priors, lattice, random_share=config.random_share, temperature=config.prior_temperature
        )
        self._seeds = seeds
        self.toolbox: base.Toolbox = build_toolbox(lattice, local_error)
        self._mutation_shares = SuccessShares(config.mutations, is_adaptive=config.adapt_operators)
        self._crossover_shares = SuccessShares(config.crossovers, is_adaptive=config.adapt_operators)
        orders = self.mixture.orders
        self._width_order = make_generator(seed, "order").random(space.n_genes) if orders is None else orders[0]
        self.statistics: tools.Statistics = make_statistics()
        self.logbook: tools.Logbook = tools.Logbook()
        self.best_individuals = BestIndividuals(config.n_best)
        self.elites = BestIndividuals(config.n_best)
        self._genomes = np.empty((0, space.n_genes), np.bool_)
        self._objective_values = np.empty((0, self.n_objectives))
        self._rates = np.empty(0)
        self._seen: dict[str, None] = {}  # every digest that was asked for, in order
        self._elite_seen: dict[str, None] = {}
        self._judged = np.empty((0, space.n_genes), np.bool_)  # with their objectives: what the surrogate learns from
        self._judged_values = np.empty(0)
        self._initial_diversity = 0.0
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
        return [Individual.of(g, v) for g, v in zip(self._genomes, self._objective_values[:, 0], strict=True)]

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
        received = [(evaluation.digest, evaluation.rung) for evaluation in evaluations]
        expected = [(digest, request.rung) for digest in request.digests]
        if received != expected:
            raise OptionError(
                f"`tell` needs one evaluation per requested genome, in order: {len(expected)} at {request.rung!r}, but "
                f"got {len(received)}, the first that differs being "
                f"{next((r for r, e in zip(received, expected, strict=False) if r != e), 'missing')}"
            )
        objectives = np.array([evaluation.objective for evaluation in evaluations], np.float64)
        self._seen.update(dict.fromkeys(request.digests))
        self._request = None
        if request.role == "screen":
            draft = self._screen(draft, objectives, request.rung)
            screens = self.config.ladder.screens
            self._request = self._next_request(draft, screens[screens.index(request.rung) + 1 :])
            return False
        if request.role == "judge":
            draft.n_failed = int((~np.isfinite(objectives)).sum())
            self._judge(draft, objectives, evaluations)
            candidates = self._elite_candidates()
            if len(candidates):
                self._request = self._make_request("elite", candidates)
                return False
        else:
            draft.n_elites = len(request.digests)
            self._elite_seen.update(dict.fromkeys(request.digests))
            _update(self.elites, request.genomes, objectives)
        self._finish_generation(draft)
        return True

    def _make_request(self, role: Role, genomes: BoolArray, rung: str | None = None) -> EvaluationRequest:
        rung = rung or getattr(self.config.ladder, role)
        digests = tuple(genome_digest(genome) for genome in genomes)
        return EvaluationRequest(self._generation + 1, rung, role, genomes, digests)

    def _begin_generation(self) -> EvaluationRequest:
        if self._generation < 0:
            self._draft = self._first_draft()
            return self._make_request("judge", self._draft.genomes)
        self._draft = self._next_draft()
        return self._next_request(self._draft, self.config.ladder.screens)

    def _next_request(self, draft: Draft, screens: Sequence[str]) -> EvaluationRequest:
        """Return the request of the first of ``screens`` that has anything to leave out, else of the judge."""
        n_offspring = len(draft.genomes) - draft.n_immigrants
        for screen in screens:
            if n_offspring > self._n_passed(draft, screen):
                return self._make_request("screen", draft.genomes[:n_offspring], screen)
        return self._make_request("judge", draft.genomes)

    def _n_passed(self, draft: Draft, screen: str) -> int:
        return self.config.ladder.n_passed(screen, self._n_offspring(draft.n_immigrants))

    def _n_offspring(self, n_immigrants: int) -> int:
        return max(self.config.n_judged_offspring - n_immigrants, 0)

    def _screen(self, draft: Draft, objectives: FloatArray, screen: str) -> Draft:
        """Return the draft with the best screened offspring, and all immigrants, which a screen would not let in."""
        order = self._promising(draft.genomes, objectives, self._n_passed(draft, screen))
        kept = np.concatenate([np.sort(order), np.arange(len(objectives), len(draft.genomes))])
        draft.n_screened = max(draft.n_screened, len(objectives))
        self._draft = draft.take(kept)
        return self._draft

    def _judge(self, draft: Draft, objectives: FloatArray, evaluations: Sequence[Evaluation]) -> None:
        """Merge parents and offspring, and let the best survive."""
        if self._generation < 0 and not np.isfinite(objectives).any():
            raise ExecutionError(
                f"at least one genome of the initial population must be evaluated, but all {len(objectives)} failed; "
                f"the first: {evaluations[0].failure or 'objective is infinite'}"
            )
        # A fresh population starts without its predecessors, unless all of it failed.
        n_parents = 0 if draft.is_restart and np.isfinite(objectives).any() else len(self._genomes)
        genomes = np.concatenate([self._genomes[:n_parents], draft.genomes])
        new_values = self._values_of(draft.genomes, objectives)
        values = np.concatenate([self._objective_values[:n_parents], new_values])
        rates = np.concatenate([self._rates[:n_parents], draft.rates])
        survivors = self._survivors(genomes, values)
        is_survivor = np.isin(np.arange(n_parents, len(genomes)), survivors)
        self._mutation_shares.learn(draft.made[0], draft.mutations[is_survivor])
        self._crossover_shares.learn(draft.made[1], draft.crossovers[is_survivor])
        self.mixture.learn(draft.guides, is_survivor, objectives < draft.parent_objectives)
        self._genomes, self._objective_values, self._rates = genomes[survivors], values[survivors], rates[survivors]
        self._remember(draft.genomes, objectives)
        is_finite = np.isfinite(objectives)
        self._judged = np.concatenate([self._judged, draft.genomes[is_finite]])
        self._judged_values = np.concatenate([self._judged_values, objectives[is_finite]])
        self.mixture.look_at(self._judged, self._judged_values)
        if self._generation < 0 or draft.is_restart:
            self._initial_diversity = diversity(self._genomes)

    def _elite_candidates(self) -> BoolArray:
        ladder = self.config.ladder
        if ladder.elite is None:
            return self._genomes[:0]
        best = self._genomes[: ladder.n_elites]
        return best[[genome_digest(genome) not in self._elite_seen for genome in best]]

    def _finish_generation(self, draft: Draft) -> None:
        self._generation += 1
        best = self.best
        assert best is not None
        row = {
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
            "diversity": diversity(self._genomes),
            "mutation_rate": float(np.median(self._rates)),
            **self._mutation_shares.row("share_mutate"),
            **self._crossover_shares.row("share_mate"),
            **self.mixture.row(),
            **self._further_figures(),
        }
        self.logbook.record(**row)
        self._draft = None
        self._state = self._capture()

    # ------------------------------------------------------------------ what a search with other objectives replaces

    def _make_repairer(self) -> Repairer:
        return Repairer(self.space, self.config.budgets)

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
        return np.arange(len(self._genomes))

    def _promising(self, genomes: BoolArray, objectives: FloatArray, n: int) -> IntArray:
        """Return at most ``n`` rows of those that a cheap rung has seen, ``objectives`` ``(m,)``, the first ``m``."""
        del genomes
        return np.argsort(objectives, kind="stable")[:n]

    def _remember(self, genomes: BoolArray, objectives: FloatArray) -> None:
        """Show what was judged to the archives that outlive the population."""
        _update(self.best_individuals, genomes, objectives)

    def _best_objective(self) -> float:
        """Return the judged objective that stop rules watch."""
        return self.best_individuals[0].objective

    def _further_figures(self) -> dict[str, Any]:
        """Return more columns of the logbook."""
        return {}

    # ------------------------------------------------------------------ making offspring

    def _first_draft(self) -> Draft:
        rng = make_generator(self.seed, "initialisation")
        genomes = self._distinct_widths(self._initial_genomes(rng, self._seeds), rng)
        low, high = np.log(self.config.mutation_rates)
        return Draft.fresh(genomes, np.exp(rng.uniform(low, high, len(genomes))))

    def _distinct_widths(self, genomes: BoolArray, rng: np.random.Generator) -> BoolArray:
        """Return ``genomes`` where all bits are free; else their widths, each once, and others in place of doubles."""
        if not self._evolves_widths:
            return genomes
        found = DistinctGenomes(len(genomes))
        found.add(self._expressed(genomes))
        for _ in range(_N_ATTEMPTS):
            n_missing = len(genomes) - len(found)
            if n_missing:
                found.add(self._expressed(self._repairer.sample(n_missing, rng=rng)))
        return found.genomes()

    @property
    def _has_collapsed(self) -> bool:
        """Whether hardly any diversity is left."""
        return diversity(self._genomes) < self.config.min_diversity * self._initial_diversity

    def _fresh_population(self) -> BoolArray:
        """Return a population that owes nothing to this one: as the first, with other random numbers, and all new."""
        rng = make_generator(self.seed, "restart", self._generation + 1)
        genomes = self._distinct_widths(self._initial_genomes(rng, None), rng)
        is_new = np.array([genome_digest(genome) not in self._seen for genome in genomes])
        return genomes[is_new]

    def _next_draft(self) -> Draft:
        generation, config = self._generation + 1, self.config
        if config.restart and self._has_collapsed:
            fresh = self._fresh_population()
            if len(fresh) > 1:
                draft = self._newcomers(fresh)
                draft.n_immigrants, draft.is_restart = len(fresh), True
                return draft
        immigrants = self._immigrants(make_generator(self.seed, "immigration", generation))
        n_wanted = self._n_offspring(len(immigrants))
        if config.ladder.screens:
            n_wanted *= config.ladder.screen_factor
        taken = dict.fromkeys(genome_digest(genome) for genome in immigrants)
        rng = make_generator(self.seed, "variation", generation)
        offspring = self._offspring(n_wanted, n_wanted * config.surrogate_factor, taken, rng)
        draft = Draft.join([self._sift(offspring, n_wanted), self._newcomers(immigrants)])
        draft.n_immigrants = len(immigrants)
        draft.made = (offspring.mutations, offspring.crossovers)
        return draft

    def _newcomers(self, genomes: BoolArray) -> Draft:
        """Return ``genomes`` that nothing bred, with a middling mutation rate."""
        return Draft.fresh(genomes, np.full(len(genomes), np.sqrt(np.prod(self.config.mutation_rates))))

    def _sift(self, offspring: Draft, n_wanted: int) -> Draft:
        """Return the ``n_wanted`` offspring of which the surrogate expects most, in their order."""
        if len(offspring.genomes) <= n_wanted:
            return offspring
        predicted = LinearSurrogate(self._judged, self._judged_values).predict(offspring.genomes)
        chosen = np.zeros(len(predicted), np.bool_)
        chosen[self._promising(offspring.genomes, predicted, n_wanted)] = True
        return offspring.take(chosen)

    def _immigrants(self, rng: np.random.Generator) -> BoolArray:
        """Return new genomes where diversity is gone: random ones, every other one crossed with a survivor."""
        n = round(self.config.immigrant_share * self.config.n_judged_offspring)
        if n == 0 or not self._has_collapsed:
            return self._genomes[:0]
        fresh = self._repairer.sample(n, rng=rng)
        hosts = self._genomes[rng.integers(len(self._genomes), size=n)]
        crossed = self.toolbox.mate_groups(fresh, hosts, rng=rng)
        is_crossed = (np.arange(n) % 2 == 1)[:, None]
        genomes = self._expressed(self._repairer(np.where(is_crossed, crossed, fresh), rng=rng))
        new = {genome_digest(g): g for g in genomes}
        kept = [genome for digest, genome in new.items() if digest not in self._seen]
        return np.stack(kept) if kept else self._genomes[:0]

    def _offspring(self, n_wanted: int, n_made: int, taken: dict[str, None], rng: np.random.Generator) -> Draft:
        """Return genomes that were never asked for: the new ones of ``n_made`` children, or more up to ``n_wanted``.

        In a space that is nearly exhausted there may be fewer, or none.
        """
        parts: list[Draft] = []
        n_missing = n_made
        for _ in range(_N_ATTEMPTS):
            if n_missing <= 0:
                break
            part = self._vary(n_missing, rng)
            is_new = np.zeros(n_missing, np.bool_)
            for row, child in enumerate(part.genomes):
                digest = genome_digest(child)
                is_new[row] = digest not in self._seen and digest not in taken
                taken.setdefault(digest, None)
            parts.append(part.take(is_new))
            n_missing = n_wanted - sum(len(part.genomes) for part in parts)
        if not parts:
            return Draft.fresh(self._genomes[:0], np.empty(0))
        return Draft.join(parts)

    def _vary(self, n: int, rng: np.random.Generator) -> Draft:
        """Return ``n`` repaired children of selected parents."""
        config, ranks = self.config, self._ranks()
        first = self.toolbox.select(ranks, n, rng=rng)
        second = self.toolbox.select(ranks, n, rng=rng)
        inherited = self._rates[first] * np.exp(rng.normal(0, _LEARNING_RATE, n))
        rates = np.clip(inherited, *config.mutation_rates)
        guides = self.mixture.draw(n, rng=rng)
        crossed = self._genomes[first].copy()
        has_two_parents = rng.random(n) < config.p_crossover
        crossovers = np.where(has_two_parents, self._drawn("mate", self._crossover_shares, n, rng), -1)
        for number, operator in self._operators("mate", self._crossover_shares):
            rows = np.flatnonzero(crossovers == number)
            crossed[rows] = operator(self._genomes[first[rows]], self._genomes[second[rows]], rng=rng)
        mutated = crossed.copy()
        mutations = self._drawn("mutate", self._mutation_shares, n, rng)
        for number, operator in self._operators("mutate", self._mutation_shares):
            for index, guide in enumerate(self.mixture.guides):
                rows = np.flatnonzero((mutations == number) & (guides == index))
                if len(rows):
                    mutated[rows] = operator(crossed[rows], rates=rates[rows], rng=rng, guide=guide)
        # Mutated genes are what is being tried: they are repaired last.
        preference = self._preference(guides, rng) + 2.0 * (mutated & ~crossed) - 2.0 * (crossed & ~mutated)
        children = self._expressed(self._repairer(mutated, rng=rng, preference=preference))
        return Draft(children, rates, guides, self._objective_values[first, 0], mutations, crossovers)

    def _preference(self, guides: IntArray, rng: np.random.Generator) -> FloatArray:
        """Return what repair keeps first, in [0, 1]: at random, for guided rows blended with what their prior wants."""
        preference = rng.random((len(guides), self.space.n_genes))
        weight = rng.random(len(guides)) * (rng.random(len(guides)) < self.config.p_guided)
        for index, guide in enumerate(self.mixture.guides):
            if guide.order is not None:
                rows = np.flatnonzero(guides == index)
                share = weight[rows, None]
                preference[rows] = share * guide.order + (1 - share) * preference[rows]
        return preference

    def _drawn(self, kind: str, shares: SuccessShares, n: int, rng: np.random.Generator) -> IntArray:
        """Return ``(n,)`` indices of the operators of ``kind`` that are to make the children."""
        known = [name.removeprefix(f"{kind}_") for name in vars(self.toolbox) if name.startswith(f"{kind}_")]
        for name in shares.names:
            if name not in known:
                raise UnknownNameError(f"operator for `{kind}`", name, known)
        changing = [name for name in shares.names if name not in WIDTH_KEEPING] if self._evolves_widths else None
        return rng.choice(len(shares.names), size=n, p=shares.shares(changing)).astype(np.int64)

    def _operators(self, kind: str, shares: SuccessShares) -> list[tuple[int, Any]]:
        return [(number, getattr(self.toolbox, f"{kind}_{name}")) for number, name in enumerate(shares.names)]

    # ------------------------------------------------------------------ widths before bits

    @property
    def _evolves_widths(self) -> bool:
        """Whether the generation in the making is one of those that evolve widths alone."""
        n = self.config.width_generations
        return n > 0 and self._generation + 1 <= n

    def _expressed(self, genomes: BoolArray) -> BoolArray:
        """Return ``genomes``, as widths over the fixed order while widths alone evolve."""
        return as_widths(genomes, self._width_order, self._repairer.lattice) if self._evolves_widths else genomes

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
        expected = self._identity()
        differing = [name for name, value in expected.items() if state.data.get(name) != value]
        if differing:
            raise RunDirectoryError(
                "a search can only be restored from a state of its own, but these differ: "
                f"{', '.join(f'{name} (saved {state.data.get(name)}, now {expected[name]})' for name in differing)}; "
                "restore them, or start a new run"
            )
        arrays, data = state.arrays, state.data
        self._genomes = self._unpack(arrays["genomes"])
        self._objective_values = np.array(arrays["objective_values"], np.float64)
        self._rates = np.array(arrays["mutation_rates"], np.float64)
        self._judged = self._unpack(arrays["judged_genomes"])
        self._judged_values = np.array(arrays["judged_objectives"], np.float64)
        self._seen = dict.fromkeys(_unpack_digests(arrays["seen"]))
        self._elite_seen = dict.fromkeys(_unpack_digests(arrays["elite_seen"]))
        for hall, name in ((self.best_individuals, "best"), (self.elites, "elite")):
            hall.clear()
            _update(hall, self._unpack(arrays[f"{name}_genomes"]), arrays[f"{name}_objectives"])
        self.logbook = tools.Logbook()
        for row in data["logbook"]:
            self.logbook.record(**row)
        self.mixture.restore(arrays)
        self.mixture.look_at(self._judged, self._judged_values)
        self._mutation_shares.restore(data["mutation_shares"])
        self._crossover_shares.restore(data["crossover_shares"])
        self._initial_diversity = float(data["initial_diversity"])
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
            "config": _as_json(config),
        }

    def _capture(self) -> SearchState:
        arrays: dict[str, npt.NDArray[Any]] = {
            "genomes": np.packbits(self._genomes, axis=1),
            "objective_values": self._objective_values.copy(),
            "mutation_rates": self._rates.copy(),
            "judged_genomes": np.packbits(self._judged, axis=1),
            "judged_objectives": self._judged_values.copy(),
            "seen": _pack_digests(self._seen),
            "elite_seen": _pack_digests(self._elite_seen),
            **self.mixture.arrays(),
        }
        for hall, name in ((self.best_individuals, "best"), (self.elites, "elite")):
            genomes = np.array([individual.genome for individual in hall], np.bool_).reshape(-1, self.space.n_genes)
            arrays[f"{name}_genomes"] = np.packbits(genomes, axis=1)
            arrays[f"{name}_objectives"] = np.array([individual.objective for individual in hall], np.float64)
        data = {
            **self._identity(),
            "generation": self._generation,
            "initial_diversity": self._initial_diversity,
            "mutation_shares": self._mutation_shares.state(),
            "crossover_shares": self._crossover_shares.state(),
            "logbook": [dict(row) for row in self.logbook],
        }
        return SearchState(arrays, data)

    def _unpack(self, packed: npt.NDArray[Any]) -> BoolArray:
        return np.unpackbits(packed, axis=1, count=self.space.n_genes).astype(np.bool_)


def _update(hall: BestIndividuals, genomes: BoolArray, objectives: FloatArray) -> None:
    """Show the individuals with finite ``objectives`` to ``hall``."""
    hall.update([Individual.of(g, v) for g, v in zip(genomes, objectives, strict=True) if np.isfinite(v)])


def _pack_digests(digests: Mapping[str, None]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 16)


def _unpack_digests(packed: npt.NDArray[Any]) -> list[str]:
    return [row.tobytes().hex() for row in packed]


def _as_json(value: Any) -> Any:
    """Return ``value`` as it comes back from JSON: mappings as dicts, sequences as lists."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value
