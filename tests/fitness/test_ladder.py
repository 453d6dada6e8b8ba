"""One evaluator for all rungs; each a pure function of the genome, each failure that of one candidate."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fitness.data import ImageData
from fitness.data.images import MEAN, STD, in_memory_data
from fitness.evaluation import Evaluation
from fitness.final_network import final_images, final_network
from fitness.ladder import ModelSource
from fitness.network import NetworkEvaluator
from fitness.options import FitnessOptions
from fitness.program import Program, largest_activation
from fitness.recipe import EvaluatorRecipe, make_recipe
from fitness.seeding import two_step_of
from search_spaces import SearchSpace
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise

RUNGS = ("e1", "e2", "wavelet", "network@8", "network", "shipped", "distill")
ARGS = {"width": 0.125}
OPTIONS = FitnessOptions(
    n_fitness_images=16,
    n_calibration_images=32,
    n_elite_images=20,
    final_calibration_images=40,
    n_lessons=32,
    n_distillation_steps=2,
)


@cache
def data() -> ImageData:
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rng.integers(0, 256, (n, 3, 16, 16), np.uint8)), torch.arange(n) % 10

    return in_memory_data("noise", [split(n) for n in (64, 32, 8)], n_classes=10, mean=MEAN, std=STD, may_flip=True)


@cache
def setting() -> tuple[torch.nn.Module, SearchSpace, BoolArray]:
    model = build_model("resnet20", 10, ARGS).eval().requires_grad_(False)
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 16, 16), verify=False)
    return model, space, space.sample(rng=np.random.default_rng(1), n=4, macs_budget=0.6)


def recipe(*rungs: str, options: FitnessOptions = OPTIONS) -> EvaluatorRecipe:
    model, space, _ = setting()
    source = ModelSource("resnet20", 10, ARGS, (3, 16, 16))
    return make_recipe(model, space, data(), options, seed=5, rungs=rungs, source=source)


@pytest.mark.parametrize("compensation", ["sequential", "static"])
def test_every_rung_answers_for_itself_whoever_is_asked_beside(
    compensation: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    _, _, genomes = setting()
    options = FitnessOptions(**{**vars(OPTIONS), "compensation": compensation})
    whole = recipe(*RUNGS, options=options).build()
    assert tuple(whole.rungs) == RUNGS
    n_images = {"e1": 0, "e2": 0, "wavelet": 0, "network@8": 8, "network": 16, "shipped": 20, "distill": 16}
    for rung in RUNGS:
        evaluations = whole.evaluate(genomes, rung)
        assert [evaluation.rung for evaluation in evaluations] == [rung] * 4
        assert {evaluation.n_images for evaluation in evaluations} == {n_images[rung]}
        assert not any(evaluation.failure for evaluation in evaluations)
        alone = recipe(rung, options=options).build()
        assert alone.evaluate(genomes[2:3], rung) == evaluations[2:3]
    with pytest.raises(UnknownNameError, match="network"):
        whole.evaluate(genomes, "netwrok")
    with pytest.raises(UnknownNameError, match="rung"):
        recipe("network@0")


def test_candidates_that_are_compensated_statically_are_shipped_as_all_others(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    model, space, genomes = setting()
    static = replace(OPTIONS, compensation="static")
    evaluators = [recipe("network", "shipped", options=options).build() for options in (OPTIONS, static)]
    judged, judged_statically = (evaluator.evaluate(genomes, "network") for evaluator in evaluators)
    as_sliced = recipe("network", options=replace(OPTIONS, compensation="none")).build().evaluate(genomes, "network")
    for rows in zip(judged, judged_statically, as_sliced, strict=True):
        assert len({evaluation.objective for evaluation in rows}) == 3
    shipped, shipped_statically = (evaluator.evaluate(genomes, "shipped") for evaluator in evaluators)
    assert shipped == shipped_statically
    handed_back = [final_network(model, space, genomes[0], data(), o, seed=5).state_dict() for o in (OPTIONS, static)]
    assert all(torch.equal(handed_back[0][name], handed_back[1][name]) for name in handed_back[0])


def test_all_that_rests_on_dense_statistics_shares_one_entry_of_the_cache(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    made = recipe("e2", "network@8", "network", options=replace(OPTIONS, compensation="static"))
    made.build()
    (entry,) = (tmp_path / "statistics").iterdir()
    two_step_of(made).scores()
    entries = sorted(path.name for path in (tmp_path / "statistics").iterdir())
    assert entries == sorted([entry.name, *(name for name in entries if name.startswith(f"{entry.stem}-"))])


def test_statistics_are_those_of_the_processor_wherever_candidates_run(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    made: list[Any] = []
    monkeypatch.setattr("fitness.ladder.NetworkEvaluator", lambda *arguments: made.append(arguments))
    there = recipe("e2", "network", options=replace(OPTIONS, compensation="static"))
    for device in ("cpu", "meta"):
        replace(there, device=device, in_bfloat16=("meta",), rungs=("network",)).build()
    replace(there, device="meta", in_bfloat16=("meta",), rungs=("e2",)).build()
    assert made[1][3].dtype == torch.bfloat16  # what candidates there are compensated from
    assert [path.suffix for path in (tmp_path / "statistics").iterdir()] == [".safetensors"]


def test_a_worker_builds_the_modules_that_this_process_has(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    model, _, genomes = setting()
    here = recipe("distill").build(model).evaluate(genomes[:1], "distill")
    assert recipe("distill").build().evaluate(genomes[:1], "distill") == here
    with pytest.raises(OptionError, match="given as a Python object"):
        replace(recipe("distill"), source=None).build()


def test_the_dearest_rung_judges_the_network_that_is_handed_back() -> None:
    """Within rounding: candidates run in bfloat16 where the processor has it, the last network in float32.

    But for the steps of pairs, which are too dear for all but the last network.
    """
    model, space, genomes = setting()
    made = recipe("network", "shipped")
    assert made.options.final_pair_steps == 1
    evaluator: Any = made.build()
    shipped: NetworkEvaluator = evaluator.evaluators["shipped"]
    assert shipped.compensate is not None
    tensors = shipped.compensate(genomes[0])
    small = final_network(model, space, genomes[0], data(), replace(OPTIONS, final_pair_steps=0), seed=5)
    inputs = made.inputs("elite/images")
    with torch.inference_mode():
        logits = shipped.program.run(tensors.cast(inputs.dtype), [inputs])[shipped.program.outputs[0]].float()
        expected = small(inputs.float())
    assert float((logits - expected).abs().max()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("n_images", [1, 2, 3, 4, 5])
def test_no_image_is_left_alone_when_batch_norms_are_recalibrated(n_images: int) -> None:
    model, space, genomes = setting()
    options = replace(OPTIONS, compensation="recalibrate", final_calibration_images=n_images + 8, batch_size=4)
    small = final_network(model, space, genomes[0], data(), options, seed=5)
    assert all(torch.isfinite(tensor).all() for tensor in small.state_dict().values())


def test_elites_see_images_that_the_judge_did_not_as_far_as_there_are_any() -> None:
    made = recipe("network", "shipped", options=replace(OPTIONS, fitness_images="heldout"))
    judged = {image.tobytes() for image in made.arrays["fitness/images"]}
    elite = {image.tobytes() for image in made.arrays["elite/images"]}
    assert (len(judged), len(elite)) == (16, 20)
    assert len(judged & elite) == 4  # 32 images in all
    assert not {image.tobytes() for image in data().test.take(np.arange(8)).images.numpy()} & (judged | elite)


def _out_of_memory(largest: int) -> Any:
    """Return a ``Program.run`` for which more than ``largest`` images are too many."""
    run = Program.run

    def limited(self: Program, tensors: Any, inputs: Any, **more: Any) -> Any:
        if inputs and len(inputs[0]) > largest and not more.get("on_layer"):
            raise torch.OutOfMemoryError(f"{len(inputs[0])} images")
        return run(self, tensors, inputs, **more)

    return limited


def _judge(evaluator: Any, rung: str = "network") -> list[Evaluation]:
    return evaluator.evaluate(setting()[2], rung)  # type: ignore[no-any-return]


def test_out_of_memory_halves_the_batch_then_fails_that_candidate_only(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = recipe("network").build()
    expected = _judge(evaluator)
    with monkeypatch.context() as patched:
        patched.setattr(Program, "run", _out_of_memory(4))
        for found, wanted in zip(_judge(evaluator), expected, strict=True):
            assert not found.failure
            assert found.objective == pytest.approx(wanted.objective, rel=0.1)  # other batches may round otherwise
    limited, run = _out_of_memory(0), Program.run

    def second_fails(self: Program, tensors: Any, inputs: Any, **more: Any) -> Any:
        return (limited if np.array_equal(tensors.kept, setting()[2][1]) else run)(self, tensors, inputs, **more)

    monkeypatch.setattr(Program, "run", second_fails)
    evaluations = _judge(evaluator)
    assert [evaluation.failure_reason for evaluation in evaluations] == ["", "out of memory", "", ""]
    assert evaluations[1].objective == math.inf
    assert evaluations[0] == expected[0]
    assert evaluations[3] == expected[3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rung", ["network", "distill"])
def test_predictions_that_are_not_finite_fail(rung: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator: Any = recipe(rung).build()
    broken = torch.full((16, 10), value)
    if rung == "network":
        monkeypatch.setattr(evaluator, "_run", lambda genome, _: (evaluator.program.slice(genome), broken))
    else:
        monkeypatch.setattr(evaluator, "_logits", lambda _: broken)
    evaluations = evaluator.evaluate(setting()[2][:1], rung)
    assert [(e.objective, e.failure, dict(e.metrics)) for e in evaluations] == [
        (math.inf, "the predictions are not finite", {})
    ]


def test_an_infinite_objective_is_a_failure_with_a_reason() -> None:
    for value, reason in ((math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")):
        evaluation = Evaluation("d", "e1", 0, value)
        assert (evaluation.objective, evaluation.failure_reason) == (math.inf, f"the objective is {reason}")


@pytest.mark.parametrize("rung", RUNGS)
def test_a_layer_that_is_constant_zero_is_no_obstacle(
    rung: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    _, space, genomes = setting()
    model = build_model("resnet20", 10, ARGS).eval().requires_grad_(False)
    randomise(model)
    norm: Any = model.get_submodule("layer2.0.bn1")
    norm.weight.zero_()
    norm.bias.fill_(-1.0)
    made = make_recipe(model, space, data(), OPTIONS, rungs=(rung,))
    evaluations = made.build(model).evaluate(genomes, rung)
    assert all(math.isfinite(evaluation.objective) for evaluation in evaluations), evaluations


def test_layers_that_keep_their_weights_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator: Any = recipe("network").build()
    assert [evaluation.metrics["n_uncompensated"] for evaluation in _judge(evaluator)] == [0.0] * 4
    evaluator.compensate.inputs = evaluator.compensate.inputs * math.nan
    (found,) = evaluator.evaluate(setting()[2][:1], "network")
    assert found.metrics["n_uncompensated"] == len(evaluator.compensate(setting()[2][0]).uncompensated) > 0


def test_wide_activations_get_fewer_final_images() -> None:
    model, space, _ = setting()
    n_elements = largest_activation(Program(space, named_tensors(model)), torch.zeros(1, *data().input_shape))
    options = replace(OPTIONS, final_max_bytes=7 * 4 * n_elements)
    assert len(final_images(model, space, data(), options, seed=0)) == 7
    assert len(final_images(model, space, data(), replace(options, final_max_bytes=1), seed=0)) == 1
    assert len(final_images(model, space, data(), OPTIONS, seed=0)) == OPTIONS.final_calibration_images


def test_a_share_of_the_final_images_is_augmented_where_layers_are_solved() -> None:
    model, space, _ = setting()

    def images(**options: Any) -> Tensor:
        return final_images(model, space, data(), replace(OPTIONS, **options), seed=3)

    plain = images(final_augmented_share=0.0)
    for share, n_augmented in ((0.5, 20), (1.0, 40), (1 / 3, 13)):
        found = images(final_augmented_share=share)
        is_changed = (found != plain).flatten(1).any(dim=1)
        assert int(is_changed.sum()) == n_augmented
        assert found.dtype == torch.uint8
        assert torch.equal(found, images(final_augmented_share=share))
    for compensation in ("recalibrate", "merge", "none"):
        assert torch.equal(images(compensation=compensation), plain)
    assert not torch.equal(images(compensation="static"), plain)  # the final network is solved sequentially


def test_elites_are_solved_on_an_even_share_of_the_final_images() -> None:
    model, space, _ = setting()
    options = replace(OPTIONS, n_elite_calibration_images=10)
    final = final_images(model, space, data(), options, seed=5).numpy()
    np.testing.assert_array_equal(recipe("network", "shipped", options=options).arrays["elite/calibration"], final[::4])
