"""Evolutionary channel search: a trained convolutional network and a compute budget in, a smaller dense network out."""

from __future__ import annotations

from evoprune.api import evaluate, finetune, inspect, latency, pick, resume, search
from evoprune.artefact import load
from evoprune.callbacks import Callback
from evoprune.exporting import export
from evoprune.result import SearchResult
from evoprune.search import EvaluationRequest, LadderPlan, Search, SearchConfig, SearchState
from fitness.evaluation import Evaluation
from search_spaces.errors import EvoPruneError

__all__ = [
    "Callback",
    "Evaluation",
    "EvaluationRequest",
    "EvoPruneError",
    "LadderPlan",
    "Search",
    "SearchConfig",
    "SearchResult",
    "SearchState",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "latency",
    "load",
    "pick",
    "resume",
    "search",
]
