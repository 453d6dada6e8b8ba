"""The evolutionary search: genomes are proposed, judged elsewhere and told back. No other package imports DEAP."""

from __future__ import annotations

from evoprune.search.baselines import GivenGenomes, RandomSearch
from evoprune.search.config import LadderPlan, SearchConfig
from evoprune.search.engine import Search
from evoprune.search.feasibility import Repairer, Space
from evoprune.search.guides import Guide, Prior, normalise_scores
from evoprune.search.individual import BestIndividuals, Individual
from evoprune.search.initialisation import InitialShares, initial_population, uniform_genomes
from evoprune.search.messages import BestGenome, EvaluationRequest
from evoprune.search.operators import LocalError, build_toolbox
from evoprune.search.pareto import ParetoSearch
from evoprune.search.priors import PriorMixture
from evoprune.search.randomness import make_generator
from evoprune.search.state import SearchState
from evoprune.search.strategy import Strategy, comparable_rows

__all__ = [
    "BestGenome",
    "BestIndividuals",
    "EvaluationRequest",
    "GivenGenomes",
    "Guide",
    "Individual",
    "InitialShares",
    "LadderPlan",
    "LocalError",
    "ParetoSearch",
    "Prior",
    "PriorMixture",
    "RandomSearch",
    "Repairer",
    "Search",
    "SearchConfig",
    "SearchState",
    "Space",
    "Strategy",
    "build_toolbox",
    "comparable_rows",
    "initial_population",
    "make_generator",
    "normalise_scores",
    "uniform_genomes",
]
