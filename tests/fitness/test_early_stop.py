"""A candidate is given up only where it is proven to be worse than a limit; nothing else is changed by that."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
import pytest
import torch

from fitness.compensation import CompensationOptions
from fitness.evaluation import LOWER_BOUND, Evaluation
from fitness.ladder import LadderEvaluator
from fitness.network import NETWORK_RUNG, NetworkEvaluator, StageEvaluator
from fitness.options import FitnessOptions
from fitness.program import Program
from fitness.quality import EarlyStop, JudgedImages, judge, quality
from search_spaces import SearchSpace
from search_spaces.errors import UnknownNameError
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise

_Objective = Literal["kl", "cross_entropy", "error"]
_OBJECTIVES: tuple[_Objective, ...] = ("kl", "cross_entropy", "error")


def _images(n: int, parts: tuple[int, ...], seed: int = 0) -> JudgedImages:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, 5, generator=generator)
    teacher = torch.log_softmax(3 * torch.randn(n, 5, generator=generator), dim=1)
    return JudgedImages(torch.zeros(n, 1), labels / labels.sum(1, keepdim=True), teacher, parts)


@pytest.mark.parametrize("parts", [(12,), (5, 7), (4, 4, 4)])
@pytest.mark.parametrize("temperature", [1.0, 16.0])
@pytest.mark.parametrize("objective", _OBJECTIVES)
def test_what_is_seen_bounds_the_objective_from_below(
    objective: _Objective, temperature: float, parts: tuple[int, ...]
) -> None:
    images = _images(12, parts)
    logits = 3 * torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    truth = quality(logits, images, temperature)[objective]
    stop = EarlyStop(images, objective, temperature, limit=0.0)
    bounds = [stop.bound(logits[:n]) for n in range(1, 13)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(truth, rel=1e-5)
    assert bounds[-1] <= truth
    begun = sum(parts[:-1]) if objective != "error" else 0
    assert all(bound > 0 for bound in bounds[begun + 3 :])


def test_only_a_bound_beyond_the_limit_stops_and_the_last_image_never_does() -> None:
    images = _images(12, (4, 8))
    logits = 3 * torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    batches = list(logits.split(2))
    bound = EarlyStop(images, "kl", 16.0, 0.0).bound(logits[:8])
    above, below = (EarlyStop(images, "kl", 16.0, bound * factor) for factor in (1.01, 0.99))
    assert not above.is_hopeless(batches[:4])
    assert below.is_hopeless(batches[:4])
    assert not below.is_hopeless(batches)


def test_predictions_that_are_not_finite_fail_whether_stopped_or_not() -> None:
    images = _images(6, (6,))
    for bad in (math.nan, math.inf):
        stop = EarlyStop(images, "kl", 16.0, limit=1e-9)
        logits = torch.zeros(6, 5)
        logits[0, 0] = bad
        assert not stop.is_hopeless([logits[:3]]) or bad == math.inf
        for seen in (3, 6):
            verdict = judge(lambda seen=seen, logits=logits: logits[:seen], images, "kl", 16.0, stop)
            assert (verdict.metrics, verdict.objective) == ({}, math.inf)
            assert verdict.failure == "the predictions are not finite"


@cache
def _setting() -> tuple[SearchSpace, Program, BoolArray]:
    model = build_model("resnet20", model_args={"width": 0.25}).eval()
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 16, 16), verify=False)
    rng = np.random.default_rng(0)
    genomes = np.concatenate([space.sample(rng=rng, n=4, macs_budget=budget) for budget in (0.8, 0.4)])
    return space, Program(space, named_tensors(model)), genomes


def _evaluator(*, max_prefix_bytes: int, objective: _Objective = "kl") -> NetworkEvaluator:
    _, program, _ = _setting()
    images = torch.rand(36, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.nn.functional.one_hot(torch.arange(24) % 10, 10).float()
    options = FitnessOptions(
        batch_size=4,
        solve=CompensationOptions(n_positions=8),
        max_prefix_bytes=max_prefix_bytes,
        objective=objective,
    )
    return NetworkEvaluator(program, images[:24], labels, images[24:], options, part_sizes=(8, 16))


def _check(whole: list[Evaluation], found: list[Evaluation], limit: float) -> int:
    """Check ``found`` against the ``whole`` evaluations and return how many of them were stopped."""
    for true, seen in zip(whole, found, strict=True):
        if not seen.is_stopped:
            assert seen == true
            continue
        assert limit < seen.metrics[LOWER_BOUND] <= true.objective
        assert seen.metrics[LOWER_BOUND] < seen.objective
        assert 0 < seen.n_images < true.n_images
        assert not seen.failure
        assert not seen.is_whole
    assert all(seen == true for true, seen in zip(whole, found, strict=True) if true.objective <= limit)
    return sum(seen.is_stopped for seen in found)


@pytest.mark.parametrize("objective", _OBJECTIVES)
@pytest.mark.parametrize("max_prefix_bytes", [0, 1 << 29])
def test_candidates_within_the_limit_are_judged_as_ever(max_prefix_bytes: int, objective: _Objective) -> None:
    _, _, genomes = _setting()
    whole = _evaluator(max_prefix_bytes=max_prefix_bytes, objective=objective).evaluate(genomes, NETWORK_RUNG)
    assert not any(evaluation.is_stopped for evaluation in whole)
    limit = sorted(evaluation.objective for evaluation in whole)[2] / 2
    evaluator = _evaluator(max_prefix_bytes=max_prefix_bytes, objective=objective)
    assert _check(whole, evaluator.evaluate_up_to(genomes, NETWORK_RUNG, limit), limit) > 0
    # What a stopped one leaves behind is of no harm to those after it.
    assert evaluator.evaluate(genomes, NETWORK_RUNG) == whole
    assert evaluator.evaluate_up_to(genomes, NETWORK_RUNG, math.inf) == whole


def test_stages_and_ladders_stop_too_and_other_rungs_judge_as_ever() -> None:
    space, _, genomes = _setting()
    stage = space.groups[len(space.groups) // 2].start
    genomes = np.where(np.arange(space.n_genes) < stage, genomes[0], genomes)
    evaluator = _evaluator(max_prefix_bytes=0)
    whole = evaluator.evaluate(genomes, NETWORK_RUNG)
    limit = min(evaluation.objective for evaluation in whole) / 2
    staged = StageEvaluator(evaluator, genomes[0], np.arange(stage, space.n_genes))
    assert _check(whole, staged.evaluate_up_to(genomes, NETWORK_RUNG, limit), limit) > 0
    plain = _WithoutStops(evaluator)
    ladder = LadderEvaluator({"plain": plain, NETWORK_RUNG: evaluator})
    assert _check(whole, ladder.evaluate_up_to(genomes, NETWORK_RUNG, limit), limit) > 0
    assert ladder.evaluate_up_to(genomes, "plain", limit) == whole
    with pytest.raises(UnknownNameError, match="dear"):
        ladder.evaluate_up_to(genomes, "dear", limit)


class _WithoutStops:
    """Another rung, which knows no limits."""

    rungs = ("plain",)

    def __init__(self, evaluator: NetworkEvaluator) -> None:
        self._evaluator = evaluator

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        assert rung == "plain"
        return self._evaluator.evaluate(genomes, NETWORK_RUNG)


def test_a_stopped_evaluation_answers_limits_below_its_bound() -> None:
    stopped = Evaluation("0", NETWORK_RUNG, 8, 3.0, {LOWER_BOUND: 2.0})
    assert stopped.answers(1.9)
    assert not stopped.answers(2.0)
    assert not stopped.answers(math.inf)
    assert Evaluation("0", NETWORK_RUNG, 8, 3.0).answers(math.inf)
    assert not Evaluation("0", NETWORK_RUNG, 8, math.inf).is_whole
