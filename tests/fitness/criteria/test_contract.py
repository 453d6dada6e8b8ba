"""What every criterion must do, over every entry of the mapping."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from fitness.criteria import CRITERIA, ROLES, ChannelKnowledge, CriterionInput, draw_seeds
from tests.fitness.networks import program_of

NETWORKS = ["convolution", "coupled, several readers", "flatten to linear", "grouped", "depthwise", "option-A shortcut"]


@cache
def data_of(name: str, n_images: int = 24) -> CriterionInput:
    model, program, inputs = program_of(name)
    return CriterionInput(program, inputs[:n_images], torch.arange(n_images) % 3, model)


@cache
def knowledge_of(criterion: str, name: str) -> ChannelKnowledge:
    return CRITERIA[criterion].compute(data_of(name))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_offers_what_it_says_on_every_wiring(criterion: str, name: str) -> None:
    knowledge = knowledge_of(criterion, name)
    assert CRITERIA[criterion].name == criterion
    assert knowledge.roles == CRITERIA[criterion].roles <= set(ROLES)
    assert knowledge.n_genes == data_of(name).space.n_genes


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_seeds_are_feasible(criterion: str, name: str) -> None:
    space = data_of(name).space
    rng = np.random.default_rng(0)
    seeds = draw_seeds(knowledge_of(criterion, name), space, rng=rng, n=7, budgets={"macs": 0.6})
    assert seeds.shape == (7, space.n_genes)
    assert space.is_valid(seeds).all()
    assert (space.macs(seeds) <= 0.6 * space.macs_dense).all()
