from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fitness.distillation import DistillationEvaluator, DistillationOptions, DivergedError, Lessons
from fitness.network import logits_of
from fitness.program import Program
from fitness.quality import JudgedImages, quality
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from search_spaces.models import hash_weights
from tests.fitness.networks import images, prepared
from tests.search_spaces.patterns import Chain, conv, conv_bn

OPTIONS = DistillationOptions(n_steps=12, batch_size=16, learning_rate=0.02)


class SmallNet(nn.Module):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Chain(conv_bn(3, 8), nn.Dropout(0.5), conv_bn(8, 8), conv(8, 6), width=6)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def judged(program: Program, inputs: Tensor, n_classes: int = 5) -> JudgedImages:
    dense = program.slice(program.space.all_ones()[0])
    teacher = F.log_softmax(logits_of(program, dense, inputs, 64), dim=1)
    soft = F.one_hot(teacher.argmax(dim=1), n_classes).float()
    known: dict[str, Any] = {"inputs": inputs, "soft_labels": soft, "teacher": teacher}
    if "part_sizes" in JudgedImages.__dataclass_fields__:
        known["part_sizes"] = (len(inputs),)
    return JudgedImages(**known)


@pytest.fixture(scope="module")
def evaluator() -> DistillationEvaluator:
    torch.manual_seed(0)
    net = SmallNet()
    with torch.no_grad():  # a teacher that tells images apart, with its own batch statistics
        net.body.head.weight.mul_(30)
        for _ in range(30):
            net.train()(images(64))
    model, program = prepared(net)
    lessons = images(64)
    with torch.no_grad():
        labels = model(lessons).argmax(dim=1)
    return DistillationEvaluator(
        model, program, program.slice, Lessons(lessons, labels), judged(program, images(48, seed=1)), OPTIONS
    )


def halved(evaluator: DistillationEvaluator, n: int = 2) -> BoolArray:
    genomes = evaluator.program.space.all_ones(n)
    for index, genome in enumerate(genomes):
        for group in evaluator.program.space.groups:
            genome[group.start + index : group.stop : 2] = False
    return genomes


def test_steps_bring_the_candidate_nearer_to_the_teacher(evaluator: DistillationEvaluator) -> None:
    genomes = halved(evaluator)
    before = [
        quality(
            logits_of(evaluator.program, evaluator.program.slice(genome), evaluator.images.inputs, 64), evaluator.images
        )
        for genome in genomes
    ]
    long = DistillationEvaluator(
        evaluator.model,
        evaluator.program,
        evaluator.program.slice,
        evaluator.lessons,
        evaluator.images,
        replace(OPTIONS, n_steps=60),
    )
    after = long.evaluate(genomes, "distill")
    for evaluation, start in zip(after, before, strict=True):
        assert evaluation.objective == evaluation.metrics["kl"] < start["kl"]
        assert (evaluation.rung, evaluation.n_images, evaluation.failure) == ("distill", 48, "")


def test_no_steps_judge_the_network_as_it_is(evaluator: DistillationEvaluator) -> None:
    untouched = DistillationEvaluator(
        evaluator.model,
        evaluator.program,
        evaluator.program.slice,
        evaluator.lessons,
        evaluator.images,
        replace(OPTIONS, n_steps=0),
    )
    genome = halved(evaluator)[0]
    logits = logits_of(evaluator.program, evaluator.program.slice(genome), evaluator.images.inputs, 64)
    expected = quality(logits, evaluator.images)
    found = untouched.evaluate(genome[None], "distill")[0].metrics
    assert found["kl"] == pytest.approx(expected["kl"], rel=0.1, abs=1e-4)  # bfloat16 where it gains


def test_evaluation_is_deterministic_and_leaves_everything_as_it_was(evaluator: DistillationEvaluator) -> None:
    genomes = halved(evaluator)
    weights = hash_weights(evaluator.model)
    torch.manual_seed(1)
    first = evaluator.evaluate(genomes, "distill")
    after_first = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after_first)
    assert [evaluator.evaluate(genome[None], "distill")[0] for genome in genomes[::-1]] == first[::-1]
    assert first[0].metrics != first[1].metrics
    assert hash_weights(evaluator.model) == weights
    assert not evaluator.model.training
    assert all(p.grad is None for p in evaluator.model.parameters())


def test_seed_counts(evaluator: DistillationEvaluator) -> None:
    other = DistillationEvaluator(
        evaluator.model,
        evaluator.program,
        evaluator.program.slice,
        evaluator.lessons,
        evaluator.images,
        replace(OPTIONS, seed=1, objective="cross_entropy"),
    )
    genome = halved(evaluator)[:1]
    found = other.evaluate(genome, "distill")[0]
    assert found.metrics != evaluator.evaluate(genome, "distill")[0].metrics
    assert found.objective == found.metrics["cross_entropy"]


def test_divergence_is_a_failed_evaluation(evaluator: DistillationEvaluator) -> None:
    broken = DistillationEvaluator(
        evaluator.model,
        evaluator.program,
        evaluator.program.slice,
        Lessons(torch.full_like(evaluator.lessons.inputs, math.nan), evaluator.lessons.labels),
        evaluator.images,
        OPTIONS,
    )
    genome = halved(evaluator)[0]
    (evaluation,) = broken.evaluate(genome[None], "distill")
    assert evaluation.objective == math.inf
    assert "loss is nan in step 1" in evaluation.failure
    assert not evaluation.metrics
    with pytest.raises(DivergedError, match="step 1 of 12"):
        broken.finetuned(genome)


def test_broken_predictions_and_lack_of_memory_are_failed_evaluations(evaluator: DistillationEvaluator) -> None:
    blind = replace(evaluator.images, inputs=torch.full_like(evaluator.images.inputs, math.nan))
    genome = halved(evaluator)[:1]

    def greedy(_: BoolArray) -> Any:
        raise torch.OutOfMemoryError("no memory")

    for compensate, judge, reason in (
        (evaluator.program.slice, blind, "not finite"),
        (greedy, evaluator.images, "out of memory"),
    ):
        broken = DistillationEvaluator(
            evaluator.model, evaluator.program, compensate, evaluator.lessons, judge, replace(OPTIONS, n_steps=1)
        )
        (evaluation,) = broken.evaluate(genome, "distill")
        assert evaluation.objective == math.inf
        assert reason in evaluation.failure


def test_rung_and_options_are_checked(evaluator: DistillationEvaluator) -> None:
    with pytest.raises(UnknownNameError, match="valid: distill"):
        evaluator.evaluate(halved(evaluator), "distil")
    with pytest.raises(UnknownNameError, match="objective"):
        DistillationOptions(objective="accuracy")  # type: ignore[arg-type]
    for keyword, value in (("n_steps", -1), ("batch_size", 1), ("learning_rate", 0.0), ("alpha", 1.1), ("seed", -1)):
        with pytest.raises(OptionError, match=keyword):
            DistillationOptions(**{keyword: value})  # type: ignore[arg-type]
