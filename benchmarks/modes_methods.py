"""The methods that ``benchmarks.modes`` compares, on one network with one seed."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from deap import algorithms, base, tools

from evoprune.callbacks import Callback, EvaluationsFinished
from evoprune.evaluation_store import EvaluationStore
from evoprune.execution import Executor
from evoprune.knowledge import Knowledge
from evoprune.observer import SilentObserver
from evoprune.options import SearchOptions
from evoprune.preparation import Preparation, prepare, resolve_device
from evoprune.resolving import resolve_options
from evoprune.run_directory import RunDirectory
from evoprune.runner import run_search
from evoprune.search import Repairer
from evoprune.session import knowledge_of, make_executor, make_search, plan_of, recipe_of
from evoprune.stopping import Progress
from fitness.network import NETWORK_RUNG
from fitness.seeding import two_step_scores, width_seeds
from search_spaces.cost import whole_limit
from search_spaces.genome import BoolArray, genome_digest

GREEDY, DEAP_EA = "greedy", "eaMuPlusLambda"
#: Modes whose course does not depend on how many generations are planned.
OPEN_ENDED = ("global", "pareto", "random", DEAP_EA)
#: Methods that judge one genome.
SINGLE = (GREEDY, "uniform-l1")
_CHECK_SEED = 1_000_003


@dataclass(frozen=True)
class Setting:
    """What all searches of one table share; a line of the results file counts only where it is the same.

    Attributes:
        evaluations: Evaluations at which methods are compared.
        seconds: CPU seconds at which they are compared.
        population: Individuals per generation.
        images: Fitness images.
        calibration_images: Images that a candidate is compensated on.
        check_images: Images, of another seed, on which winners are judged again.
        compensation: What a candidate gets before it is judged.
    """

    evaluations: int
    seconds: float
    population: int
    images: int
    calibration_images: int
    check_images: int
    compensation: str = "sequential"


@dataclass(frozen=True)
class Task:
    """One search: ``protocol`` is ``evaluations``, ``seconds``, or ``both`` for a run that reaches either."""

    network: str
    budget: float
    seed: int
    method: str
    protocol: str


@dataclass
class Course:
    """What a method has found: ``steps`` hold evaluations, seconds and the least objective, at each improvement.

    ``winners`` are the genomes of the steps; ``n_evaluations`` and ``seconds`` are those of the whole search.
    """

    steps: list[tuple[int, float, float]]
    n_evaluations: int = 0
    seconds: float = 0.0
    n_generations: int = 0
    winners: list[BoolArray] = field(default_factory=list)

    def add(self, genome: BoolArray, objective: float, seconds: float, *, is_feasible: bool) -> None:
        """Count one evaluation."""
        self.n_evaluations += 1
        self.seconds = seconds
        if is_feasible and np.isfinite(objective) and (not self.steps or objective < self.steps[-1][2]):
            self.steps.append((self.n_evaluations, seconds, float(objective)))
            self.winners.append(genome)

    def winner(self, *, evaluations: float = math.inf, seconds: float = math.inf) -> BoolArray | None:
        """Return the best genome after so many evaluations and seconds; None where there is none yet."""
        found = None
        for (n, elapsed_s, _), genome in zip(self.steps, self.winners, strict=True):
            if n <= evaluations and elapsed_s <= seconds:
                found = genome
        return found


@dataclass(frozen=True)
class Both:
    """Ends a search when the network rung has judged so many candidates and so many seconds have passed."""

    n_evaluations: int
    seconds: float
    urgent: bool = True
    recorder: CourseRecorder | None = None

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        n_judged = progress.n_evaluations if self.recorder is None else self.recorder.n_judged
        is_reached = n_judged >= self.n_evaluations and progress.elapsed_s >= self.seconds
        return "evaluations and seconds" if is_reached else None


class CourseRecorder(Callback):
    """Notes when each chunk of evaluations was done."""

    def __init__(self) -> None:
        self.chunks: list[tuple[float, list[tuple[str, float]]]] = []
        self.n_judged = 0

    def on_evaluations(self, event: EvaluationsFinished) -> None:
        """Keep digests and objectives."""
        judged = [(e.digest, e.objective) for e in event.evaluations if e.rung == NETWORK_RUNG]
        self.chunks.append((event.elapsed_s, judged))
        self.n_judged += len(judged)


class Bench:
    """Everything that the searches of one network and seed share."""

    def __init__(self, network: str, source: Mapping[str, Any], seed: int, setting: Setting) -> None:
        self.network, self.seed, self.setting = network, seed, setting
        self._source = dict(source)
        self._prepared: Preparation | None = None
        self._executors: dict[tuple[int, tuple[str, ...]], Executor] = {}
        self._knowledge: dict[tuple[str, float], Knowledge] = {}

    def close(self) -> None:
        """End the threads."""
        for executor in self._executors.values():
            executor.close()

    def options(self, mode: str = "global", *, budget: float = 1.0, n_generations: int = 1, seed: int | None = None,
                n_images: int | None = None) -> SearchOptions:  # fmt: skip
        """Return the options of one search."""
        return resolve_options(
            SearchOptions,
            {
                **self._source,
                "mode": mode,
                "budget": str(budget),
                "seed": self.seed if seed is None else seed,
                "fitness": "network",
                "population_size": self.setting.population,
                "n_generations": n_generations,
                "n_fitness_images": n_images or self.setting.images,
                "n_calibration_images": self.setting.calibration_images,
                "compensation": self.setting.compensation,
            },
        )

    def preparation(self, budget: float) -> Preparation:
        """Return network, images and space; they are read and traced once."""
        if self._prepared is None:
            self._prepared = prepare(self.options(), SilentObserver(), device=resolve_device("cpu"))
        return replace(self._prepared, budgets={"macs": budget})

    def executor(self, seed: int | None = None, mode: str = "global") -> Executor:
        """Return what judges the candidates of ``mode``, or, with another ``seed``, the winners."""
        options = self.options(mode)
        key = (self.seed if seed is None else seed, plan_of(options, self.preparation(1.0)).rungs)
        if key not in self._executors:
            n_images = self.setting.images if seed is None else self.setting.check_images
            options = self.options(mode, seed=key[0], n_images=n_images)
            self._executors[key] = make_executor(options, self.preparation(1.0))
        return self._executors[key]

    def knowledge(self, mode: str, budget: float) -> Knowledge:
        """Return what the criteria say to a search in ``mode``."""
        if (mode, budget) not in self._knowledge:
            options = self.options(mode, budget=budget)
            self._knowledge[mode, budget] = knowledge_of(options, self.preparation(budget))
        return self._knowledge[mode, budget]

    def is_feasible(self, genome: BoolArray, budget: float) -> bool:
        """Return whether ``genome`` ``(n_genes,)`` keeps within the budget."""
        space = self.preparation(budget).space
        return bool(space.macs(genome[None])[0] <= whole_limit(budget, space.macs_dense))

    # ------------------------------------------------------------------ the methods

    def run(self, task: Task, n_generations: int) -> Course:
        """Return the course of ``task``."""
        setting = self.setting
        ends = {
            "evaluations": Both(setting.evaluations, 0.0),
            "seconds": Both(0, setting.seconds),
            "both": Both(setting.evaluations, setting.seconds),
        }
        if task.method == GREEDY:
            return self._judge_greedy(task.budget)
        if task.method == DEAP_EA:
            return self._run_deap(task.budget, ends[task.protocol])
        return self._run_mode(task, n_generations, ends[task.protocol])

    def check(self, genome: BoolArray) -> Mapping[str, float]:
        """Return what ``genome`` is worth on images that no search has seen."""
        (evaluation,) = self.executor(self.seed + _CHECK_SEED).evaluate(genome[None], NETWORK_RUNG)
        return {"objective": evaluation.objective, "accuracy": evaluation.metrics.get("accuracy", float("nan"))}

    def _judge_greedy(self, budget: float) -> Course:
        preparation = self.preparation(budget)
        scores = two_step_scores(recipe_of(self.options(budget=budget), preparation))
        rng = np.random.default_rng(self.seed)
        genome = width_seeds(preparation.space, scores, rng=rng, n=1, budgets=preparation.budgets)[0]
        course = Course([])
        started = time.process_time()
        (evaluation,) = self.executor().evaluate(genome[None], NETWORK_RUNG)
        seconds = time.process_time() - started
        course.add(genome, evaluation.objective, seconds, is_feasible=self.is_feasible(genome, budget))
        return course

    def _run_mode(self, task: Task, n_generations: int, end: Both) -> Course:
        options = self.options(task.method, budget=task.budget, n_generations=n_generations)
        preparation = self.preparation(task.budget)
        search = make_search(options, preparation, self.knowledge(task.method, task.budget))
        recorder, space = CourseRecorder(), preparation.space
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory.create(Path(folder) / "run", options={}, hashes={})
            with EvaluationStore(run.evaluations_path, space.n_genes, space.fingerprint) as store:
                outcome = run_search(
                    search,
                    self.executor(mode=task.method),
                    store,
                    run,
                    callbacks=[recorder],
                    stop=replace(end, recorder=recorder),
                    clock=time.process_time,
                )
                genomes = {record.evaluation.digest: record.genome for record in store.records(NETWORK_RUNG)}
        if outcome.status != "finished":
            raise KeyboardInterrupt
        course = Course([])
        for seconds, judged in recorder.chunks:
            for digest, objective in judged:
                genome = genomes[digest]
                course.add(genome, objective, seconds, is_feasible=self.is_feasible(genome, task.budget))
        course.seconds = outcome.elapsed_s
        course.n_generations = outcome.generation + 1
        return course

    def _run_deap(self, budget: float, end: Both) -> Course:
        """Run DEAP's algorithm with DEAP's operators on lists; repair replaces what it hands over to be judged."""
        space, executor, course = self.preparation(budget).space, self.executor(), Course([])
        repairer, rng = Repairer(space, {"macs": budget}), np.random.default_rng(self.seed)
        known: dict[str, float] = {}
        started = time.process_time()

        def evaluate(individual: list[bool]) -> tuple[float]:
            genome = repairer(np.array(individual, np.bool_)[None], rng=rng)[0]
            individual[:] = genome.tolist()
            digest = genome_digest(genome)
            if digest not in known:
                (evaluation,) = executor.evaluate(genome[None], NETWORK_RUNG)
                known[digest] = evaluation.objective
                seconds = time.process_time() - started
                course.add(genome, evaluation.objective, seconds, is_feasible=self.is_feasible(genome, budget))
                if end.reason(Progress(0, course.n_evaluations, seconds, ())) is not None:
                    raise _EndedError
            return (known[digest],)

        toolbox = base.Toolbox()
        toolbox.register("evaluate", evaluate)
        toolbox.register("mate", tools.cxUniform, indpb=0.5)
        toolbox.register("mutate", tools.mutFlipBit, indpb=0.05)
        toolbox.register("select", tools.selTournament, tournsize=3)
        n, state = self.setting.population, random.getstate()
        random.seed(self.seed)
        try:
            population = [_ListIndividual(random.random() < 0.5 for _ in range(space.n_genes)) for _ in range(n)]
            with suppress(_EndedError):
                algorithms.eaMuPlusLambda(population, toolbox, n, n, cxpb=0.5, mutpb=0.2, ngen=10**6, verbose=False)
        finally:
            random.setstate(state)
        return course


class _EndedError(Exception):
    """DEAP's algorithms end by generations alone."""


class _Minimised(base.Fitness):
    weights = (-1.0,)


class _ListIndividual(list[bool]):
    """What DEAP's ``creator`` would make, without its global state."""

    def __init__(self, bits: Iterator[bool]) -> None:
        super().__init__(bits)
        self.fitness = _Minimised()
