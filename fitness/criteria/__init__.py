"""Criteria: what the field's pruning rules know of a network's channels, as seeds and priors of a search."""

from fitness.criteria.catalogue import CRITERIA
from fitness.criteria.contract import ROLES, ChannelKnowledge, Criterion, MaskFamily
from fitness.criteria.drawing import draw_seeds
from fitness.criteria.inputs import CriterionInput
from fitness.criteria.knowledge_cache import cached_knowledge
from fitness.criteria.removal import removal_order
from fitness.criteria.shapley import shapley_values

__all__ = [
    "CRITERIA",
    "ROLES",
    "ChannelKnowledge",
    "Criterion",
    "CriterionInput",
    "MaskFamily",
    "cached_knowledge",
    "draw_seeds",
    "removal_order",
    "shapley_values",
]
