"""One search after the other, each over a part of the genes: what ``staged`` and ``layerwise`` have in common.

The parts before the open one are frozen at their winners, those behind it are dense until their turn. Budgets count the
network as it is *planned*: the parts behind at the widths that a plan gives them. So every winner leaves room for the
parts to come, and the last one meets the budgets from below within one channel group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evoprune.modes.mode import SearchTask
from evoprune.search import BestGenome, EvaluationRequest, Prior, Search, SearchConfig, SearchState, make_generator
from fitness.evaluation import Evaluation
from search_spaces import Stage, SubSpace
from search_spaces.errors import ExecutionError, OptionError, RunDirectoryError
from search_spaces.genome import BoolArray, genome_digest

_STATE_VERSION = 1
_OPEN = "open_"  # begins the names of the arrays of the open search
_Answers = dict[tuple[str, str], float]  # objectives by rung and digest


class SequentialSearch:
    """Searches that follow each other, behind the interface of one.

    A subclass says what is measured before the first one (:meth:`_probes`), what is planned from that
    (:meth:`_make_plan`), and with which first genomes a part begins (:meth:`_seeds`).

    Args:
        task: What the run has prepared.
        parts: In the order of their turns; together they hold every group once.
        config: Of each of the searches; its generations count per part.
        options: What else decides the outcome, as JSON values; a restored search must have the same.

    Raises:
        OptionError: There are no parts, or some group is in none or in several.
    """

    def __init__(
        self, task: SearchTask, parts: Sequence[Stage], config: SearchConfig, options: Mapping[str, Any]
    ) -> None:
        every = sorted(index for part in parts for index in part.groups.tolist())
        if every != list(range(len(task.space.groups))) or not every:
            raise OptionError(
                f"a search in parts needs every group in exactly one part, but of {len(task.space.groups)} groups "
                f"{len(set(every))} are in {len(every)} places; see `evoprune inspect`"
            )
        self.space = task.space
        self.seed = task.options.seed
        self.task = task
        self.parts = tuple(parts)
        self.config = config
        self.logbook: list[dict[str, Any]] = []
        self._options = dict(options)
        self._answers: _Answers = {}
        self._plan: BoolArray | None = None
        self._frozen = task.space.all_ones()[0]
        self._index = 0
        self._n_before = 0  # generations of the parts that are closed
        self._open: Search | None = None
        self._part: SubSpace | None = None
        self._plain: _Answers = {}  # of the open part, before the cost term
        self._best: BestGenome | None = None
        self._request: EvaluationRequest | None = None
        self._inner_request: EvaluationRequest | None = None
        self._state = self._capture()

    # ------------------------------------------------------------------ what a subclass decides

    def _probes(self) -> Mapping[str, BoolArray]:
        """Return genomes ``(n, n_genes)`` to measure before the first part, by rung."""
        return {}

    def _make_plan(self) -> BoolArray:
        """Return the genome ``(n_genes,)`` whose widths the parts behind the open one are costed at."""
        return self.space.all_ones()[0]

    def _seeds(self, part: SubSpace) -> BoolArray | None:
        """Return genomes ``(n, part.n_genes)`` that the search over ``part`` begins with."""
        del part
        return None

    def _make_search(self, part: SubSpace, seed: int) -> Search:
        return Search(part, self.config, seed=seed, seeds=self._seeds(part), priors=self._priors(part))

    def _priors(self, part: SubSpace) -> list[Prior]:
        """Return what the priors of the task say about the genes of ``part``."""
        priors = (_restricted(prior, part) for prior in self.task.priors)
        return [prior for prior in priors if prior.says_anything(part.lattice)]

    def _priced(self, evaluation: Evaluation, genome: BoolArray) -> float:
        """Return what the open search minimises for ``genome`` ``(n_genes,)``."""
        del genome
        return evaluation.objective

    def _useful_objective(self, priced: float) -> float:
        """Return the objective above which :meth:`_priced` exceeds ``priced`` for every genome; inf where none is."""
        return priced

    def _first_valid_generation(self) -> int:
        """Return the first generation whose evaluations still hold in the open part."""
        return 0

    # ------------------------------------------------------------------ what it knows

    @property
    def n_generations(self) -> int:
        """The last generation, where no stop rule ends a further part before its time."""
        n_left = len(self.parts) - self._index
        return self._n_before + n_left * (self.config.n_generations + 1) - 1

    @property
    def population_size(self) -> int:
        """Survivors per generation."""
        return self.config.population_size

    @property
    def generation(self) -> int:
        """The last finished generation, counted over all parts."""
        return self._n_before + (self._open.generation if self._open is not None else -1)

    @property
    def is_finished(self) -> bool:
        """Whether the last part is closed."""
        return self._index == len(self.parts)

    @property
    def is_complete(self) -> bool:
        """Whether the last part has begun: before, some part is still dense."""
        is_last = self._index == len(self.parts) - 1
        return self.is_finished or (is_last and self._open is not None and self._open.generation >= 0)

    @property
    def best(self) -> BestGenome | None:
        """The best genome of the open part with all that is frozen; the parts behind it are dense."""
        inner = self._open.best if self._open is not None else None
        if inner is None or self._part is None:
            return self._best
        genome = self._part.embed(inner.genome[None], self._frozen)[0]
        digest = genome_digest(genome)
        return BestGenome(genome, digest, self._plain[inner.rung, digest], inner.rung)

    @property
    def objectives(self) -> Mapping[tuple[str, str], float]:
        """What the probes were worth, by rung and digest."""
        return self._answers

    # ------------------------------------------------------------------ ask and tell

    def ask(self) -> EvaluationRequest:
        """Return what is to be evaluated next; the same until it is told.

        Raises:
            ExecutionError: The search is finished.
        """
        if self._request is None:
            self._request = self._next_probe() or self._next_request()
        return self._request

    def tell(self, evaluations: Sequence[Evaluation]) -> bool:
        """Take the ``evaluations`` of the last request, in its order, and return whether they ended a generation.

        Raises:
            OptionError: They do not answer the request.
            ExecutionError: Nothing was asked, or all that is needed failed.
        """
        request = self._request
        if request is None:
            raise ExecutionError("`tell` answers `ask`, but nothing was asked; call `ask` first")
        received = [(evaluation.digest, evaluation.rung) for evaluation in evaluations]
        if received != [(digest, request.rung) for digest in request.digests]:
            raise OptionError(
                f"`tell` needs one evaluation per requested genome, in order: {len(request.digests)} at "
                f"{request.rung!r}, but got {len(received)}, or others"
            )
        answers = {(request.rung, e.digest): e.objective for e in evaluations}
        self._request = None
        if request.role == "probe":
            self._answers.update(answers)
            return False
        inner, search = self._inner_request, self._open
        assert inner is not None
        assert search is not None
        self._plain.update(answers)
        renamed = [
            dataclasses.replace(evaluation, digest=digest, objective=self._priced(evaluation, genome))
            for evaluation, digest, genome in zip(evaluations, inner.digests, request.genomes, strict=True)
        ]
        if not search.tell(renamed):
            return False
        self._record(search)
        if search.is_finished:
            self._close()
        self._state = self._capture()
        return True

    def hurry(self) -> None:
        """Close the open part with the best that it has, unless it is the last one or has none."""
        if self._open is not None and self._open.generation >= 0 and not self.is_complete:
            self._close()
            self._request = None
            self._state = self._capture()

    def _next_probe(self) -> EvaluationRequest | None:
        if self._plan is not None:
            return None
        for rung, genomes in self._probes().items():
            digests = tuple(genome_digest(genome) for genome in genomes)
            if any((rung, digest) not in self._answers for digest in digests):
                return EvaluationRequest(0, rung, "probe", genomes, digests)
        return None

    def _next_request(self) -> EvaluationRequest:
        if self.is_finished:
            raise ExecutionError("a search in parts asks for nothing more once its last part is closed; read `best`")
        if self._open is None:
            self._begin()
        assert self._open is not None
        assert self._part is not None
        inner = self._inner_request = self._open.ask()
        genomes = self._part.embed(inner.genomes, self._frozen)
        digests = tuple(genome_digest(genome) for genome in genomes)
        return dataclasses.replace(
            inner,
            generation=self._n_before + inner.generation,
            genomes=genomes,
            digests=digests,
            since=self._first_valid_generation(),
            limit=self._useful_objective(inner.limit),
        )

    # ------------------------------------------------------------------ one part after the other

    def _begin(self) -> None:
        """Open the part whose turn it is."""
        if self._plan is None:
            self._plan = self._make_plan()
        background = self._frozen.copy()
        for part in self.parts[self._index :]:
            for group in (self.space.groups[index] for index in part.groups):
                background[group.start : group.stop] = self._plan[group.start : group.stop]
        self._part = SubSpace(self.space, self.parts[self._index].groups, background)
        seed = int(make_generator(self.seed, "stages", self._index).integers(2**62))
        self._open = self._make_search(self._part, seed)
        self._plain = {}

    def _close(self) -> None:
        """Freeze the open part at its winner."""
        self._best = self.best
        assert self._best is not None
        assert self._open is not None
        self._frozen = self._best.genome
        self._n_before += self._open.generation + 1
        self._index += 1
        self._open = self._part = self._inner_request = None

    def _record(self, search: Search) -> None:
        best = self.best
        assert best is not None
        row = {**search.logbook[-1], "gen": self.generation, "stage": self.parts[self._index].name}
        self.logbook.append({**row, "best_digest": best.digest, "best_plain": self._judged(search)})

    def _judged(self, search: Search) -> float:
        """Return what the best network of the open part is worth by its judge, without any cost."""
        assert self._part is not None
        genome = self._part.embed(search.best_individuals[0].genome[None], self._frozen)[0]
        return self._plain[search.config.ladder.judge, genome_digest(genome)]

    # ------------------------------------------------------------------ state

    def state(self) -> SearchState:
        """Return the search after its last finished generation, the closed parts and the open search included."""
        return self._state

    def restore(self, state: SearchState) -> None:
        """Go back (or on) to ``state``, which a search with the same space, configuration and seed has returned.

        Raises:
            RunDirectoryError: The state is of another version, seed, configuration or space.
        """
        data, arrays = state.data, state.arrays
        expected = self._identity()
        differing = [name for name, value in expected.items() if data.get(name) != value]
        if differing:
            raise RunDirectoryError(
                "a search can only be restored from a state of its own, but these differ: "
                f"{', '.join(f'{name} (saved {data.get(name)}, now {expected[name]})' for name in differing)}; "
                "restore them, or start a new run"
            )
        self._answers = _objectives_from(data["answers"])
        self._plain = _objectives_from(data["plain"])
        self._plan = _unpacked(arrays["plan"], self.space.n_genes)[0] if len(arrays["plan"]) else None
        self._frozen = _unpacked(arrays["frozen"], self.space.n_genes)[0]
        self._index, self._n_before = int(data["index"]), int(data["n_before"])
        self.logbook = [dict(row) for row in data["logbook"]]
        self._open = self._part = self._request = self._inner_request = self._best = None
        if data["best"] is not None:
            objective, rung = data["best"]
            self._best = BestGenome(self._frozen, genome_digest(self._frozen), float(objective), str(rung))
        if data["open"] is not None:
            plain = self._plain
            self._begin()
            self._plain = plain
            inner = {name.removeprefix(_OPEN): array for name, array in arrays.items() if name.startswith(_OPEN)}
            assert self._open is not None
            self._open.restore(SearchState(inner, data["open"]))
        self._state = self._capture()

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "n_genes": self.space.n_genes,
            "parts": [[part.name, *part.groups.tolist()] for part in self.parts],
            "generations_per_part": self.config.n_generations,
            "options": self._options,
        }

    def _capture(self) -> SearchState:
        best = None if self._best is None else [self._best.objective, self._best.rung]
        arrays: dict[str, npt.NDArray[Any]] = {
            "frozen": np.packbits(self._frozen[None], axis=1),
            "plan": np.packbits(self._plan[None], axis=1) if self._plan is not None else np.empty((0, 0), np.uint8),
        }
        data: dict[str, Any] = {
            **self._identity(),
            "index": self._index,
            "n_before": self._n_before,
            "best": best,
            "answers": [[rung, digest, _as_json(value)] for (rung, digest), value in self._answers.items()],
            "plain": [[rung, digest, _as_json(value)] for (rung, digest), value in self._plain.items()],
            "logbook": [dict(row) for row in self.logbook],
            "open": None,
        }
        if self._open is not None:
            inner = self._open.state()
            data["open"] = dict(inner.data)
            arrays |= {f"{_OPEN}{name}": array for name, array in inner.arrays.items()}
        return SearchState(arrays, data)


def _restricted(prior: Prior, part: SubSpace) -> Prior:
    opened = part.open_groups.tolist()
    similarity = {opened.index(group): matrix for group, matrix in prior.similarity.items() if group in opened}
    scores = None if prior.scores is None else prior.scores[part.open_genes]
    classes = None if prior.classes is None else prior.classes[part.open_genes]
    return Prior(prior.name, scores, similarity, classes, prior.learn)


def _objectives_from(rows: Sequence[Sequence[Any]]) -> _Answers:
    return {(rung, digest): np.inf if value is None else float(value) for rung, digest, value in rows}


def _as_json(value: float) -> float | None:
    """Return ``value``; None for infinity, which JSON does not have."""
    return value if np.isfinite(value) else None


def _unpacked(packed: npt.NDArray[Any], n_genes: int) -> BoolArray:
    return np.unpackbits(packed, axis=1, count=n_genes).astype(np.bool_)
