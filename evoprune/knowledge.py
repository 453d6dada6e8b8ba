"""What criteria know before a search begins: first genomes and mutation priors, by name.

``python -m benchmarks.priors`` measures what each of them, and the default mixtures, make of a search.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from evoprune.search import InitialShares, Prior
from evoprune.search.guides import LearnScores
from fitness.criteria import CRITERIA, ChannelKnowledge, CriterionInput, cached_knowledge, draw_seeds, shapley_values
from fitness.gradients import deterministic_kernels
from fitness.recipe import EvaluatorRecipe
from search_spaces import SearchSpace
from search_spaces.errors import EvoPruneError, OptionError, UnknownNameError
from search_spaces.genome import BoolArray, FloatArray

_LOGGER = logging.getLogger(__name__)

MIXTURE, NONE, TWO_STEP = "mixture", "none", "two-step"
#: Seeds of the default mixture, in the order in which they are dealt: of eight, five come from two-step elimination,
#: whose genomes are the best of all criteria once weights are updated. Group Fisher's come second, also where a small
#: population has room for a few seeds alone: its widths are best where two-step's are poor (VGG-16 at mild cuts).
SEED_MIXTURE = (TWO_STEP, "group-fisher", TWO_STEP, "l1", TWO_STEP, "group-fisher", TWO_STEP, TWO_STEP)
#: A layer's view, the loss's view, and pairs of channels that look alike: what each says, the others do not.
PRIOR_MIXTURE = (TWO_STEP, "group-fisher", "qsfm-ssim")
#: Where weights are not updated, what their update would leave says little.
UNCOMPENSATED_SEED_MIXTURE = ("group-fisher", "l1", "fpgm")
UNCOMPENSATED_PRIOR_MIXTURE = ("group-fisher", "l1", "qsfm-ssim")


@dataclass(frozen=True)
class LearnedCriterion:
    """A criterion that knows nothing beforehand: it scores genes by what a search itself has judged.

    Attributes:
        summary: One line for people.
        learn: As in :class:`evoprune.search.Prior`.
    """

    summary: str
    learn: LearnScores


#: Criteria that ``--prior`` takes besides those that look at the network.
LEARNED: Mapping[str, LearnedCriterion] = {
    "shapley": LearnedCriterion(
        "Shapley values of single channels from the genomes a search has judged, anew each generation; prior only",
        shapley_values,
    )
}

#: Criteria on statistics that are gathered and solved in float64 on small matrices.
_ON_THE_PROCESSOR = frozenset({TWO_STEP, "entropic"})
#: Images that criteria look at, evenly spread over the calibration images; two-step elimination takes all of these.
_N_IMAGES = 128


@dataclass(frozen=True)
class Choice:
    """Which criteria are asked for what, and how much they decide.

    Attributes:
        seeds: Criteria that propose first genomes, in the order in which genomes are dealt to them.
        priors: Criteria that guide mutation.
        optional: Those that are left out where they cannot be computed for a network; for others that is an error.
        seed_share: Share of the first population that criteria propose.
        random_share: Share of it that is purely random.
    """

    seeds: tuple[str, ...]
    priors: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    seed_share: float = 0.5
    random_share: float = 0.2

    @classmethod
    def of(
        cls, seed_with: str, prior: str, *, is_compensated: bool, seed_share: float = 0.5, random_share: float = 0.2
    ) -> Choice:
        """Return the choice that the options stand for.

        Args:
            seed_with: As for :func:`parse_criteria`.
            prior: Likewise.
            is_compensated: Whether candidates are compensated before they are judged, which decides the mixtures.
            seed_share: As in the class.
            random_share: As in the class.

        Raises:
            UnknownNameError: A name is none of a criterion.
        """
        seeds, priors = parse_criteria(seed_with), parse_criteria(prior, LEARNED)
        by_name = {*(seeds or ()), *(priors or ())}
        if seeds is None:
            seeds = SEED_MIXTURE if is_compensated else UNCOMPENSATED_SEED_MIXTURE
        if priors is None:
            priors = PRIOR_MIXTURE if is_compensated else UNCOMPENSATED_PRIOR_MIXTURE
        return cls(seeds, priors, frozenset((*seeds, *priors)) - by_name, seed_share, random_share)

    def n_seeds(self, population_size: int) -> int:
        """Return how many first genomes criteria propose."""
        return round(self.seed_share * population_size) if self.seeds else 0

    def initial_shares(self, population_size: int) -> InitialShares:
        """Return how the rest of the first population is composed: two uniform individuals to one mixed one.

        Where no criterion may propose genomes, all of it is random.
        """
        n_rest = population_size - self.n_seeds(population_size)
        random = min(1.0, self.random_share * population_size / max(n_rest, 1)) if self.seeds else 1.0
        return InitialShares(uniform=(1 - random) * 2 / 3, random=random)


@dataclass(frozen=True)
class Knowledge:
    """What a search starts from.

    Attributes:
        seeds: ``(n, n_genes)`` feasible genomes, best guess first; None without any.
        priors: For mutation and repair.
        n_seeds: Genomes per criterion.
        left_out: Criteria of a mixture that could not be computed, with the reason.
    """

    seeds: BoolArray | None
    priors: tuple[Prior, ...]
    n_seeds: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def channel_scores(self) -> FloatArray | None:
        """``(n_genes,)`` scores of the first prior that has any."""
        return next((prior.scores for prior in self.priors if prior.scores is not None), None)

    def to_json(self) -> dict[str, Any]:
        """Return what a run directory records."""
        return {
            "seeds": dict(self.n_seeds),
            "priors": {prior.name: prior.fingerprint() for prior in self.priors},
            "left_out": dict(self.left_out),
        }


def parse_criteria(text: str, learned: Collection[str] = ()) -> tuple[str, ...] | None:
    """Return the criteria in ``NAME[,NAME...]``, none for ``none``, and None for ``mixture``.

    Args:
        text: What the user wrote.
        learned: Names besides those of :data:`fitness.criteria.CRITERIA`.

    Raises:
        UnknownNameError: A name is none of a criterion.
        OptionError: A name is given twice, or ``mixture`` or ``none`` among others.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name in LEARNED and name not in learned:
            raise OptionError(
                f"the criterion {name!r} learns from what a search has judged, so that it cannot propose first "
                "genomes; use it with `--prior`"
            )
        if name not in (*CRITERIA, *learned, MIXTURE, NONE):
            raise UnknownNameError("criterion", name, (*CRITERIA, *learned, MIXTURE, NONE))
    if len(set(names)) < len(names) or (len(names) > 1 and {MIXTURE, NONE} & set(names)):
        raise OptionError(
            f"criteria are different names separated by commas, or one of {MIXTURE} and {NONE}, but got {text!r}"
        )
    if names == (MIXTURE,):
        return None
    return () if names == (NONE,) else names


def gather_knowledge(
    recipe: EvaluatorRecipe,
    choice: Choice,
    *,
    population_size: int,
    rng: np.random.Generator,
    budgets: Mapping[str, float],
    model: nn.Module | None = None,
    seed: int = 0,
    is_spread: bool = False,
) -> Knowledge:
    """Return seeds and priors by the criteria of ``choice``, from the user's cache where they were computed before.

    Args:
        recipe: Gives network and calibration images.
        choice: Which criteria, for what.
        population_size: Individuals of the first population.
        rng: Varies the seeds.
        model: The dense network, for criteria that run its own code.
        seed: For criteria that draw random numbers themselves.
        budgets: As for :meth:`SearchSpace.repair`.
        is_spread: Whether seeds are of evenly spread costs, from the first budget down to the least, and not all at it.

    Raises:
        EvoPruneError: A criterion that was asked for by name cannot be computed, or offers no prior; the message says
            which one.
    """
    source = KnowledgeSource(recipe, model, seed)
    known: dict[str, ChannelKnowledge] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys((*choice.seeds, *choice.priors)):
        if name in LEARNED:
            continue
        found = source.knowledge(name)
        if isinstance(found, ChannelKnowledge):
            known[name] = found
        elif name in choice.optional:
            left_out[name] = str(found)
        else:
            raise OptionError(
                f"the criterion {name!r} cannot be computed for this network: {found}; choose others with "
                "`--seed-with` and `--prior`"
            ) from found
    dealt = [name for name in choice.seeds if name in known]
    wanted = [dealt[index % len(dealt)] for index in range(choice.n_seeds(population_size) if dealt else 0)]
    n_seeds = {name: wanted.count(name) for name in dict.fromkeys(wanted)}
    if is_spread:
        levels = _spread(recipe.space, budgets, len(wanted))
        draws = [(name, 1, level) for name, level in zip(wanted, levels, strict=True)]
    else:
        draws = [(name, n, budgets) for name, n in n_seeds.items()]
    seeds = [draw_seeds(known[name], recipe.space, rng=rng, n=n, budgets=within) for name, n, within in draws]
    priors = tuple(
        Prior(name, learn=LEARNED[name].learn) if name in LEARNED else prior_of(name, known[name])
        for name in choice.priors
        if name in LEARNED or name in known
    )
    return Knowledge(np.concatenate(seeds) if seeds else None, priors, n_seeds, left_out)


def _spread(space: SearchSpace, budgets: Mapping[str, float], n: int) -> list[Mapping[str, float]]:
    """Return ``n`` times ``budgets``, the first of them going down in equal steps to the least cost, which is left out.

    The first criterion of a mixture is the one that is trusted most, and makes the seed at the budget itself.
    """
    metric, most = next(iter(budgets.items()))
    smallest, dense = space.cost_range(metric)
    least = min((smallest + 0.5) / dense, most)
    return [{**budgets, metric: min(least + (most - least) * i / n, most)} for i in range(n, 0, -1)]


def prior_of(name: str, knowledge: ChannelKnowledge) -> Prior:
    """Return what ``knowledge`` means for mutation; a family of masks scores a gene by the share of masks that keep it.

    Raises:
        OptionError: The criterion only says how wide layers should be.
    """
    scores = knowledge.scores
    if scores is None and knowledge.family is not None:
        scores = knowledge.family.masks.mean(axis=0)
    if scores is None and not knowledge.similarity and knowledge.classes is None:
        raise OptionError(
            f"the criterion {name!r} says how wide layers should be and not which channels matter, and so "
            "cannot be a prior; use it with `--seed-with`"
        )
    return Prior(name, scores, knowledge.similarity, knowledge.classes)


class KnowledgeSource:
    """Computes what criteria know of one network, on the device of the recipe.

    Those that rest on the layers' Gram matrices are the processor's, as these are. What a device cannot do, for want
    of memory or of a kernel, the processor does, and a warning says so.

    Args:
        recipe: Gives network and calibration images.
        model: The dense network, for criteria that run its own code.
        seed: For criteria that draw random numbers.
    """

    def __init__(self, recipe: EvaluatorRecipe, model: nn.Module | None = None, seed: int = 0) -> None:
        self._recipe = recipe
        self._model = model
        self._seed = seed
        self._data: dict[tuple[int, str], CriterionInput] = {}

    def knowledge(self, name: str) -> ChannelKnowledge | EvoPruneError:
        """Return what the criterion knows, or why it knows nothing."""
        try:
            return self._computed(name, "cpu" if name in _ON_THE_PROCESSOR else self._recipe.device)
        except EvoPruneError as error:
            return error

    def _computed(self, name: str, device: str) -> ChannelKnowledge:
        try:
            with deterministic_kernels():
                return cached_knowledge(CRITERIA[name], self._criterion_input(name, device))
        except RuntimeError as error:  # what torch raises, out of memory included
            if device == "cpu" or isinstance(error, EvoPruneError):
                raise
            _LOGGER.warning("the criterion %s is computed on the processor, since %s cannot: %s", name, device, error)
            return self._computed(name, "cpu")

    def _criterion_input(self, name: str, device: str) -> CriterionInput:
        recipe = replace(self._recipe, device=device)
        inputs = recipe.calibration_inputs()
        n = len(inputs) if name == TWO_STEP else min(len(inputs), _N_IMAGES)
        if (n, device) not in self._data:
            spread = np.linspace(0, len(inputs) - 1, n).round().astype(np.int64)
            self._data[n, device] = CriterionInput(
                recipe.program(), inputs[torch.from_numpy(spread)], model=self._model, seed=self._seed
            )
        return self._data[n, device]
