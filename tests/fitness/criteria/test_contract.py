"""What every criterion must do, over every entry of the mapping."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fitness.criteria import CRITERIA, ROLES, ChannelKnowledge, CriterionInput, draw_seeds
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise
from tests.fitness.criteria.networks import data_of, duplicated, killed, permuted, within_groups
from tests.fitness.networks import images
from tests.search_spaces.patterns import PATTERNS

WIRINGS = ["convolution", "coupled, several readers", "flatten to linear", "grouped", "depthwise"]
EVERY_WIRING = [
    *WIRINGS,
    "option-A shortcut",
    "concat of itself",
    "squeeze and excitation",
    "transposed grouped",
    "linear",
]
#: Rules that do not follow the channels, with the reason.
ARBITRARY = {"random": "its numbers belong to places"}
#: Rules under which a dead channel may outlive others, with the reason.
BLIND_TO_DEAD = {
    "random": "looks at nothing",
    "fpgm": "a filter of zeros is nearest to the others only where their mean is near zero",
}
#: Rules of similarity or classes that may tell a channel from its duplicate, with the reason.
BLIND_TO_DUPLICATES: dict[str, str] = {}

SCORING = [name for name, criterion in CRITERIA.items() if "scores" in criterion.roles]
COMPARING = [name for name, criterion in CRITERIA.items() if criterion.roles & {"similarity", "classes"}]


@cache
def knowledge_of(criterion: str, name: str) -> ChannelKnowledge:
    return CRITERIA[criterion].compute(data_of(name))


def assert_equal(one: ChannelKnowledge, other: ChannelKnowledge) -> None:
    for field in fields(ChannelKnowledge):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "similarity":
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[index], b[index]) for index in a)
        elif field.name == "family":
            assert (a is None) == (b is None)
            assert a is None or (np.array_equal(a.dials, b.dials) and np.array_equal(a.masks, b.masks))
        else:
            assert np.array_equal(a, b), field.name


def same_class(classes: np.ndarray) -> np.ndarray:
    return classes[:, None] == classes[None, :]


def drops_dead_first(criterion: str, name: str, group_index: int) -> bool:
    data = data_of(name)
    group = data.space.groups[group_index]
    scores = CRITERIA[criterion].compute(killed(data, group.start + 1)).scores
    assert scores is not None
    others = np.delete(scores[group.start : group.stop], 1)
    return bool(scores[group.start + 1] <= others.min() + 1e-9 * np.abs(others).max())


@pytest.mark.parametrize("name", EVERY_WIRING)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_offers_what_it_says_on_every_wiring(criterion: str, name: str) -> None:
    knowledge = knowledge_of(criterion, name)
    assert CRITERIA[criterion].name == criterion
    assert knowledge.roles == CRITERIA[criterion].roles <= set(ROLES)
    assert knowledge.n_genes == data_of(name).space.n_genes


@pytest.mark.parametrize("name", EVERY_WIRING)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_seeds_are_feasible(criterion: str, name: str) -> None:
    space = data_of(name).space
    rng = np.random.default_rng(0)
    budget = max(0.6, 1.1 * space.macs_range[0] / space.macs_dense)
    seeds = draw_seeds(knowledge_of(criterion, name), space, rng=rng, n=7, budgets={"macs": budget})
    assert seeds.shape == (7, space.n_genes)
    assert space.is_valid(seeds).all()
    assert (space.macs(seeds) <= budget * space.macs_dense).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_says_the_same_twice(criterion: str) -> None:
    data = data_of("coupled, several readers")
    fresh = CriterionInput(data.program, data.inputs, data.labels, data.model)
    assert_equal(CRITERIA[criterion].compute(fresh), knowledge_of(criterion, "coupled, several readers"))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_leaves_the_network_as_it_is(criterion: str) -> None:
    data = data_of("convolution")
    assert data.model is not None
    before = {name: tensor.clone() for name, tensor in named_tensors(data.model).items()}
    folded = {name: layer.weight.clone() for name, layer in data.program.layers.items()}
    CRITERIA[criterion].compute(CriterionInput(data.program, data.inputs, data.labels, data.model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(data.model).items())
    assert all(torch.equal(layer.weight, folded[name]) for name, layer in data.program.layers.items())
    assert not any(parameter.requires_grad for parameter in data.model.parameters())
    assert not data.model.training


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ARBITRARY])
def test_follows_a_permutation_of_the_channels(criterion: str, name: str) -> None:
    data = data_of(name)
    order = within_groups(data.space, np.random.default_rng(5))
    before, after = knowledge_of(criterion, name), CRITERIA[criterion].compute(permuted(data, order))
    for vector in ("scores", "strength"):
        found, expected = getattr(after, vector), getattr(before, vector)
        if expected is not None:
            scale = float(np.abs(expected).max(initial=1e-30))
            assert found == pytest.approx(expected[order], rel=1e-4, abs=1e-5 * scale)
    for index, group in enumerate(data.space.groups):
        inside = order[group.start : group.stop] - group.start
        if index in before.similarity:
            assert after.similarity[index] == pytest.approx(before.similarity[index][np.ix_(inside, inside)], abs=1e-4)
        if before.classes is not None and after.classes is not None:
            old, new = (k.classes[group.start : group.stop] for k in (before, after))
            assert np.array_equal(same_class(new), same_class(old[inside]))
    if before.widths is not None:
        assert after.widths == pytest.approx(before.widths, abs=1e-3)
    if before.family is not None and after.family is not None:
        assert np.array_equal(after.family.masks, before.family.masks[:, order])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_image_is_enough(criterion: str) -> None:
    data = data_of("coupled, several readers", 1)
    assert CRITERIA[criterion].compute(data).roles == CRITERIA[criterion].roles


@pytest.mark.parametrize("criterion", CRITERIA)
def test_labels_may_be_absent(criterion: str) -> None:
    data = data_of("convolution")
    knowledge = CRITERIA[criterion].compute(CriterionInput(data.program, data.inputs))
    assert knowledge.roles == CRITERIA[criterion].roles


@cache
def data_with_block() -> CriterionInput:
    model = PATTERNS["residual"].build()
    randomise(model, seed=3)
    space = SearchSpace.trace(model.eval(), torch.zeros(1, 3, 8, 8), block_genes=True)
    assert len(space.blocks) == 1
    return CriterionInput(Program(space, named_tensors(model)), images(8), torch.arange(8) % 3)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_residual_blocks_come_last_to_go(criterion: str) -> None:
    data = data_with_block()
    knowledge = CRITERIA[criterion].compute(data)
    if knowledge.scores is not None and criterion != "random":
        assert knowledge.scores[-1] == knowledge.scores.max()
    if knowledge.family is not None:
        assert knowledge.family.masks[:, -1].all()
    assert draw_seeds(knowledge, data.space, rng=np.random.default_rng(0), n=4, budgets={"macs": 0.7})[:, -1].all()


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("criterion", [name for name in SCORING if name not in BLIND_TO_DEAD])
def test_dead_channel_goes_first(criterion: str, name: str) -> None:
    assert all(drops_dead_first(criterion, name, index) for index in range(2))


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("criterion", [name for name in COMPARING if name not in BLIND_TO_DUPLICATES])
def test_duplicate_is_found(criterion: str, name: str) -> None:
    data = data_of(name)
    for index, group in enumerate(data.space.groups[:2]):
        knowledge = CRITERIA[criterion].compute(duplicated(data, group.start, group.stop - 1))
        if index in knowledge.similarity:
            matrix = knowledge.similarity[index]
            pairs = matrix[np.triu_indices(group.size, 1)]
            assert matrix[0, -1] >= pairs.max() - 1e-6
        if knowledge.classes is not None:
            assert knowledge.classes[group.start] == knowledge.classes[group.stop - 1]


@pytest.mark.parametrize("criterion", BLIND_TO_DEAD)
def test_exception_for_dead_channels_is_needed(criterion: str) -> None:
    assert not all(drops_dead_first(criterion, name, index) for name in WIRINGS for index in range(2))


def test_tables_of_exceptions_name_criteria() -> None:
    assert {*ARBITRARY, *BLIND_TO_DEAD} <= set(CRITERIA)
    assert set(BLIND_TO_DUPLICATES) <= set(COMPARING)


def test_documentation_lists_every_criterion_with_what_it_offers() -> None:
    page = (Path(__file__).parents[3] / "docs" / "criteria.md").read_text()
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| `")]
    assert rows == [[f"| `{name}`", ", ".join(sorted(entry.roles))] for name, entry in CRITERIA.items()]
