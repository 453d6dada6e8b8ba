from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fitness.criteria import CRITERIA, ChannelKnowledge, Criterion, CriterionInput, MaskFamily, cached_knowledge
from fitness.criteria.drawing import draw_seeds
from fitness.criteria.exp import ExpectationClasses
from fitness.criteria.knowledge_cache import knowledge_key
from fitness.criteria.weights import FilterNorm, RandomScores
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.errors import GenomeShapeError, ObjectiveValueError
from search_spaces.surgery import named_tensors
from tests.fitness.criteria.networks import data_of, killed
from tests.fitness.criteria.test_contract import assert_equal


class Counting:
    """A criterion that counts how often it is asked."""

    def __init__(self, inner: Criterion) -> None:
        self.inner = inner
        self.name, self.summary = inner.name, inner.summary
        self.roles, self.reference = inner.roles, inner.reference
        self.n_calls = 0

    def __repr__(self) -> str:
        return repr(self.inner)

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        self.n_calls += 1
        return self.inner.compute(data)


@pytest.mark.parametrize("name", ["exp-bn", "dtc", "qsfm-ssim"])
def test_second_call_reads_what_the_first_computed(name: str, tmp_path: Path) -> None:
    data, criterion = data_of("coupled, several readers"), Counting(CRITERIA[name])
    first = cached_knowledge(criterion, data, folder=tmp_path)
    second = cached_knowledge(criterion, data, folder=tmp_path)
    assert criterion.n_calls == 1
    assert_equal(first, second)
    assert_equal(first, CRITERIA[name].compute(data))


def test_draws_are_the_same_from_the_cache_however_many_groups_there_are(tmp_path: Path) -> None:
    """A file lists group 10 before group 2."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.ReLU()) for i in range(12)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()
    inputs = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    space = SearchSpace.trace(model, inputs)
    assert len(space.groups) > 10
    data = CriterionInput(Program(space, named_tensors(model)), inputs)
    computed, read = (cached_knowledge(CRITERIA["qsfm-ssim"], data, folder=tmp_path) for _ in range(2))
    seeds = [
        draw_seeds(knowledge, space, rng=np.random.default_rng(0), n=8, budgets={"macs": 0.5})
        for knowledge in (computed, read)
    ]
    assert len(np.unique(seeds[0], axis=0)) > 4
    assert np.array_equal(*seeds)


def test_damaged_entry_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, criterion = data_of("convolution"), Counting(FilterNorm(1))
    whole = cached_knowledge(criterion, data, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert_equal(cached_knowledge(criterion, data, folder=tmp_path), whole)
    assert criterion.n_calls == 2
    assert "computed anew" in caplog.text
    cached_knowledge(criterion, data, folder=tmp_path)
    assert criterion.n_calls == 2


def test_key_tells_everything_that_decides() -> None:
    data = data_of("convolution")
    other_seed = CriterionInput(data.program, data.inputs, data.labels, seed=1)
    unlabelled = CriterionInput(data.program, data.inputs)
    fewer = CriterionInput(data.program, data.inputs[:3], data.labels[:3] if data.labels is not None else None)
    keys = [
        *(knowledge_key(FilterNorm(1), entry) for entry in (data, other_seed, unlabelled, fewer, killed(data, 0))),
        knowledge_key(FilterNorm(2), data),
        knowledge_key(RandomScores(), data),
        knowledge_key(ExpectationClasses(), data),
        knowledge_key(ExpectationClasses(threshold=0.5), data),
    ]
    assert len(set(keys)) == len(keys)


def test_knowledge_is_not_older_than_the_statistics_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of("convolution")
    before = knowledge_key(FilterNorm(1), data)
    monkeypatch.setattr("fitness.criteria.knowledge_cache.STATISTICS_FORMAT", -1)
    assert knowledge_key(FilterNorm(1), data) != before


SIZES = (2, 3)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({}, GenomeShapeError, "offers nothing"),
        ({"strength": np.zeros(5)}, GenomeShapeError, "offers nothing"),
        ({"scores": np.zeros(4)}, GenomeShapeError, r"scores must have shape \(5,\)"),
        ({"scores": np.array([0, 1, np.nan, 0, 0])}, ObjectiveValueError, "1 of 5 are not"),
        ({"similarity": {2: np.eye(2)}}, GenomeShapeError, r"in \[0, 2\)"),
        ({"similarity": {0: np.eye(3)}}, GenomeShapeError, r"shape \(2, 2\)"),
        ({"similarity": {0: np.array([[1, 2.0], [2.0, 1]])}}, ObjectiveValueError, r"lie in \[0, 1\]"),
        ({"similarity": {0: np.array([[1, 0.2], [0.3, 1]])}}, ObjectiveValueError, "symmetric"),
        ({"classes": np.array([0, 1, -1, 0, 0])}, ObjectiveValueError, "counted from 0"),
        ({"widths": np.array([0.0, 1.0])}, ObjectiveValueError, r"\(0, 1\]"),
        ({"widths": np.array([1.0])}, GenomeShapeError, "widths"),
        ({"family": MaskFamily(np.zeros(2), np.ones((1, 5), np.bool_))}, GenomeShapeError, "one row per dial"),
        ({"scores": np.zeros(5), "merge": np.array([0, 2, 2, 3, 4])}, GenomeShapeError, "same group"),
        ({"scores": np.zeros(5), "merge": np.array([0, 1, 2, 3, 9])}, GenomeShapeError, "same group"),
    ],
)
def test_knowledge_is_checked(fields: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ChannelKnowledge(SIZES, **fields)  # type: ignore[arg-type]


def test_roles_are_what_is_given() -> None:
    knowledge = ChannelKnowledge(SIZES, scores=np.zeros(5), widths=np.ones(2), merge=np.array([1, 1, 2, 2, 4]))
    assert knowledge.roles == {"scores", "widths"}
    assert knowledge.starts.tolist() == [0, 2]
    assert knowledge.n_genes == 5
