"""Distillation between layers: what is searched next is a cut of the distilled network, and the teacher stays."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import evoprune
from evoprune import api
from evoprune.evaluation_store import EvaluationStore
from evoprune.execution import Executor, InProcessExecutor
from evoprune.layer_distillation import FOLDER, DistilledNetworks, FollowingExecutor
from evoprune.modes.layerwise import LayerwiseSearch
from evoprune.options import SearchOptions
from evoprune.resolving import resolve_options
from evoprune.run_directory import RunDirectory
from fitness.data import ImageData
from fitness.data.images import MEAN, STD, in_memory_data
from fitness.distillation import DISTILLATION_RUNG, DistillationEvaluator, DivergedError
from fitness.network import NETWORK_RUNG, NetworkEvaluator
from fitness.options import FitnessOptions
from fitness.program import Program
from fitness.recipe import EvaluatorRecipe, make_recipe
from search_spaces import SearchSpace, prune_model
from search_spaces.errors import ExecutionError, OptionError
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise
from tests.evoprune.fakes import CountingEvaluator, make_target
from tests.evoprune.modes.driving import make_strategy

OPTIONS = FitnessOptions(n_fitness_images=16, n_calibration_images=24, n_lessons=32)


@cache
def data() -> ImageData:
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rng.integers(0, 256, (n, 3, 16, 16), np.uint8)), torch.arange(n) % 10

    return in_memory_data("noise", [split(n) for n in (64, 32, 8)], n_classes=10, mean=MEAN, std=STD, may_flip=True)


@cache
def setting() -> tuple[nn.Module, SearchSpace, list[BoolArray]]:
    """Return a network, its space, and the winners of two layers."""
    model = build_model("resnet20", 10, {"width": 0.125}).eval().requires_grad_(False)
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 16, 16), verify=False)
    first = space.all_ones()[0]
    first[space.groups[1].start] = False
    second = first.copy()
    second[space.groups[3].start] = False
    return model, space, [first, second]


def recipe(rung: str) -> EvaluatorRecipe:
    model, space, _ = setting()
    return make_recipe(model, space, data(), OPTIONS, seed=5, rungs=[rung])


def networks(path: Path, n_steps: int = 3) -> DistilledNetworks:
    run = RunDirectory(path) if path.exists() else RunDirectory.create(path, options={}, hashes={})
    return DistilledNetworks(run, recipe(DISTILLATION_RUNG), setting()[0], n_steps)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in named_tensors(model).items()}


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    assert all(torch.equal(tensor, tensors_of(second)[name]) for name, tensor in tensors_of(first).items())


def test_each_network_follows_from_the_one_before_and_is_found_again(tmp_path: Path) -> None:
    model, space, winners = setting()
    dense = tensors_of(model)
    made = networks(tmp_path / "RUN")
    assert made.after([]) is model
    first, second = made.after(winners[:1]), made.after(winners)
    assert all(torch.equal(tensor, dense[name]) for name, tensor in tensors_of(model).items())

    options = replace(OPTIONS, n_distillation_steps=3)
    evaluator = replace(recipe(DISTILLATION_RUNG), options=options).with_network(first).build(first)
    assert isinstance(evaluator, DistillationEvaluator)
    assert_equal(prune_model(second, space, winners[1]), evaluator.finetuned(winners[1]))
    dropped = space.slot_genes["layer1.0.conv1.weight", 0] == space.groups[1].start
    assert dropped.sum() == 1
    assert not named_tensors(second)["layer1.0.conv1.weight"][torch.from_numpy(dropped)].any()

    folder = tmp_path / "RUN" / FOLDER
    (kept,) = folder.iterdir()
    assert kept.name.startswith("2-")
    written = kept.read_bytes()
    assert_equal(networks(tmp_path / "RUN").after(winners), second)
    events = [event for event in RunDirectory(tmp_path / "RUN").read_log() if event["event"] == "distilled"]
    assert [(event["n_layers"], event["n_steps"]) for event in events] == [(1, 3), (2, 3)]
    kept.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))  # damaged: both are distilled anew
    assert_equal(networks(tmp_path / "RUN").after(winners), second)
    found = load_file(kept)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors_of(second).items())


def test_candidates_are_cut_from_the_network_and_compared_with_the_teacher() -> None:
    model, space, _ = setting()
    other = build_model("resnet20", 10, {"width": 0.125}).eval().requires_grad_(False)
    randomise(other, seed=4)
    plain = recipe(NETWORK_RUNG)
    changed = plain.with_network(other)
    assert plain.teacher() is None
    own, evaluator = plain.build(), changed.build()
    assert isinstance(own, NetworkEvaluator)
    assert isinstance(evaluator, NetworkEvaluator)
    assert torch.equal(evaluator.images.teacher, own.images.teacher)
    for again in (changed, changed.with_network(model).with_network(other)):
        ours = again.build().evaluate(space.all_ones(), NETWORK_RUNG)[0]
        program = Program(space, named_tensors(other))
        inputs = plain.inputs("fitness/images")
        logits = program.run(program.slice(space.all_ones()[0]).cast(inputs.dtype), [inputs])[program.outputs[0]]
        divergence = functional.kl_div(
            functional.log_softmax(logits.double(), 1), own.images.teacher.double(), log_target=True, reduction="none"
        ).sum(1)
        parts = [float(part.mean()) for part in divergence.split(own.images.part_sizes)]
        assert ours.metrics["kl_plain"] == pytest.approx(np.prod(parts) ** (1 / len(parts)), rel=1e-6)


def test_a_distillation_that_diverges_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any) -> None:
        raise DivergedError("the distillation loss is nan in step 1 of 3")

    monkeypatch.setattr(DistillationEvaluator, "finetuned", diverge)
    with pytest.raises(ExecutionError, match=r"after its 1\. layer, but .* nan in step 1.*--layer-distill-steps"):
        networks(tmp_path / "RUN").after(setting()[2][:1])


def test_the_search_names_its_winners_and_asks_anew_after_each() -> None:
    search = make_strategy("layerwise", n_generations=1, n_layer_distillation_steps=2)
    assert isinstance(search, LayerwiseSearch)
    placed: list[tuple[int, Executor | None]] = []
    target = make_target(search.space.n_genes)

    class Networks(DistilledNetworks):
        def __init__(self) -> None:
            """Keep nothing: its networks only count the winners."""

        def after(self, winners: list[BoolArray]) -> nn.Module:
            return nn.ParameterList([torch.ones(len(winners))])

    def place(network: nn.Module, before: Executor | None) -> Executor:
        placed.append((len(next(network.parameters())), before))
        return InProcessExecutor(CountingEvaluator(target), 1)

    executor = FollowingExecutor(search, Networks(), place)
    n_parts, first_of_part = len(search.parts), []
    while not search.is_finished:
        request = search.ask()
        if not first_of_part or request.since != first_of_part[-1]:
            first_of_part.append(request.since)
        assert request.generation >= request.since
        search.tell(executor.evaluate(request.genomes, request.rung))
    executor.close()
    assert first_of_part == [2 * index for index in range(n_parts)]
    assert [n for n, _ in placed] == list(range(n_parts))
    assert placed[0][1] is None
    assert all(before is not None for _, before in placed[1:])
    winners = search.winners
    assert len(winners) == n_parts - 1
    assert search.best is not None
    for index, winner in enumerate(winners):
        for place_of, part in enumerate(search.parts):
            group = search.space.groups[int(part.groups[0])]
            expected = search.best.genome[group.start : group.stop] if place_of <= index else True
            assert (winner[group.start : group.stop] == expected).all()


def test_a_run_is_cut_from_what_was_distilled_and_says_so(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "model": "vgg16",
        "model_args": {"width": 0.0625},
        "budget": 0.5,
        "mode": "layerwise",
        "seed": 5,
        "population_size": 4,
        "n_generations": 0,
        "n_fitness_images": 16,
        "n_calibration_images": 16,
    }
    model = build_model("vgg16", 10, {"width": 0.0625}, (3, 16, 16))
    del given["model"], given["model_args"]
    results = {
        n_steps: evoprune.search(
            model, data(), out=tmp_path / str(n_steps), n_layer_distillation_steps=n_steps, **given
        )
        for n_steps in (0, 2)
    }
    distilled, plain = (tmp_path / str(n) for n in (2, 0))
    assert json.loads((distilled / "config.json").read_text())["options"]["n_layer_distillation_steps"] == 2
    assert not (plain / FOLDER).exists()
    (kept,) = (distilled / FOLDER).iterdir()
    events = [event for event in RunDirectory(distilled).read_log() if event["event"] == "generation"]
    n_groups = len({event["stage"] for event in events})
    assert kept.name.startswith(f"{n_groups - 1}-")
    assert (distilled / "best" / "weights.safetensors").read_bytes() != (
        plain / "best" / "weights.safetensors"
    ).read_bytes()
    assert all(figures.cost <= figures.limit for figures in results[2].budgets)
    for path, result in ((distilled, results[2]), (plain, results[0])):
        with EvaluationStore(path / "evaluations.sqlite", read_only=True) as store:
            assert len(store) == result.n_evaluations == sum(rung.n_evaluations for rung in result.rungs.values())
    with pytest.raises(OptionError, match="distilled 2 steps between its layers"):
        api.pick(distilled, 0.6, model=model, data=data())


def test_other_modes_and_negative_numbers_are_refused() -> None:
    with pytest.raises(OptionError, match="`n_layer_distillation_steps` is read in mode 'layerwise' only"):
        resolve_options(SearchOptions, {"n_layer_distillation_steps": 5})
    with pytest.raises(OptionError, match="n_layer_distillation_steps"):
        resolve_options(SearchOptions, {"n_layer_distillation_steps": -1, "mode": "layerwise"})
    with pytest.raises(OptionError, match="`compare` judges random cuts of the dense network"):
        resolve_options(SearchOptions, {"n_layer_distillation_steps": 5, "mode": "layerwise", "compare": "random"})
