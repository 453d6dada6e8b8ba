"""What genomes share is not computed again, and nothing else changes: evaluations are equal bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fitness.compensation import CompensationOptions, Prefix, SequentialCompensation
from fitness.network import NETWORK_RUNG, NetworkEvaluator, StageEvaluator
from fitness.options import FitnessOptions
from fitness.prefix import Pause, PauseStack
from fitness.program import Program, SlicedTensors
from search_spaces import SearchSpace, stages_of
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise


@cache
def setting(name: str, *, block_genes: bool = False) -> tuple[SearchSpace, Program]:
    model = build_model(name, model_args={"width": 0.25}).eval()
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 32, 32), verify=False, block_genes=block_genes)
    return space, Program(space, named_tensors(model))


def evaluator_of(program: Program, **options: Any) -> NetworkEvaluator:
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.nn.functional.one_hot(torch.arange(6) % 10, 10).float()
    fitness = FitnessOptions(batch_size=4, solve=CompensationOptions(n_positions=8), **options)
    return NetworkEvaluator(program, images[:6], labels, images[6:], fitness)


def staged_genomes(space: SearchSpace) -> BoolArray:
    """Return genomes as a staged search asks for them, and some of a global one."""
    rng = np.random.default_rng(3)
    frozen = space.all_ones()[0]
    genomes = [space.sample(rng=rng, n=2, macs_budget=0.6)]
    for stage in stages_of(space, "resolution"):
        sampled = space.sample(rng=rng, n=3, macs_budget=0.6)
        is_open = np.zeros(space.n_genes, np.bool_)
        for index in stage.groups:
            is_open[space.groups[index].start : space.groups[index].stop] = True
        population = np.where(is_open, sampled, frozen)
        frozen = population[0]
        genomes.append(population)
    return np.concatenate(genomes)


class _StepCount:
    """Counts the layers that a program runs."""

    def __init__(self, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        run_layer = program._run_layer

        def counted(*arguments: Any) -> Any:
            self.n += 1
            return run_layer(*arguments)

        monkeypatch.setattr(program, "_run_layer", counted)

    def of(self, evaluator: NetworkEvaluator, genomes: BoolArray) -> tuple[int, list[Any]]:
        before = self.n
        evaluations = [evaluator.evaluate(genome[None], NETWORK_RUNG)[0] for genome in genomes]
        return self.n - before, evaluations


@pytest.mark.parametrize("compensation", ["none", "sequential", "static", "merge", "recalibrate"])
@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_evaluations_are_equal_and_shared_stages_are_run_once(
    name: str, compensation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, program = setting(name)
    genomes = staged_genomes(space)
    plain, sharing = (evaluator_of(program, compensation=compensation, max_prefix_bytes=b) for b in (0, 1 << 29))
    count = _StepCount(program, monkeypatch)
    n_plain, expected = count.of(plain, genomes)
    n_sharing, found = count.of(sharing, genomes)
    assert found == expected
    assert n_sharing < 0.95 * n_plain  # calibration images share only where layers are solved
    order = np.random.default_rng(0).permutation(len(genomes))
    assert sharing.evaluate(genomes[order], NETWORK_RUNG) == [expected[index] for index in order]


def test_removed_blocks_change_what_is_shared() -> None:
    space, program = setting("resnet20", block_genes=True)
    genomes = space.sample(rng=np.random.default_rng(0), n=1).repeat(6, axis=0)
    genomes[1:4, -1] ^= True
    genomes[3:5, space.n_genes - len(space.blocks)] ^= True
    genomes = space.repair(genomes, rng=np.random.default_rng(1), macs_budget=1.0)
    plain, sharing = (evaluator_of(program, max_prefix_bytes=b) for b in (0, 1 << 29))
    assert sharing.evaluate(genomes, NETWORK_RUNG) == plain.evaluate(genomes, NETWORK_RUNG)


def test_the_bound_on_memory_is_kept_and_changes_nothing() -> None:
    space, program = setting("vgg16")
    genomes = staged_genomes(space)
    expected = evaluator_of(program, max_prefix_bytes=0).evaluate(genomes, NETWORK_RUNG)
    for bound in (1, 200_000, 400_000):
        evaluator = evaluator_of(program, max_prefix_bytes=bound)
        assert evaluator._paths is not None
        for genome, evaluation in zip(genomes, expected, strict=True):
            assert evaluator.evaluate(genome[None], NETWORK_RUNG) == [evaluation]
            assert sum(pause.n_bytes for pause in evaluator._paths.stack._pauses) <= bound


class _SizesAndParts(nn.Module):
    """Squeeze and excitation by sizes that the code asks for, then two layers, each on its half of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.left, self.right, self.head = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        n, channels, _, _ = x.size()
        gate = self.up(self.down(x.mean((2, 3)).view(n, channels)).relu()).sigmoid()
        first, second = (x * gate.view(n, channels, 1, 1)).chunk(2, 1)
        value: Tensor = self.head((self.left(first).relu() + self.right(second).relu()).mean((2, 3)))
        return value


@pytest.mark.parametrize("compensation", ["none", "sequential"])
def test_sizes_and_parts_are_shared_like_activations(compensation: str) -> None:
    model = _SizesAndParts().eval()
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(2, 3, 32, 32))
    program = Program(space, named_tensors(model))
    assert len(space.groups) == 3
    genomes = [space.all_ones()[0]]
    for group in space.groups:
        for start in (group.start, group.start + 1):
            genomes.append(genomes[0].copy())
            genomes[-1][start] = False
    plain, sharing = (evaluator_of(program, compensation=compensation, max_prefix_bytes=b) for b in (0, 1 << 29))
    expected = plain.evaluate(np.stack(genomes), NETWORK_RUNG)
    assert not any(evaluation.failure for evaluation in expected)
    assert sharing.evaluate(np.stack(genomes), NETWORK_RUNG) == expected
    for index, group in enumerate(space.groups):
        rows = [0, 1 + 2 * index, 2 + 2 * index]
        stage = StageEvaluator(plain, genomes[0], np.arange(group.start, group.stop))
        assert stage.evaluate(np.stack([genomes[row] for row in rows]), NETWORK_RUNG) == [expected[row] for row in rows]


def pauses(stack: PauseStack, program: Program, genomes: BoolArray) -> Iterator[tuple[int | None, int | None]]:
    for genome in genomes:
        start, pause_at = stack.begin(genome)
        yield (None if start is None else start.step), pause_at
        if pause_at is not None:
            stack.keep(Pause(pause_at, None, ({"x": torch.zeros(10)},)))


def test_a_run_begins_at_the_latest_place_on_its_own_path() -> None:
    space, program = setting("vgg16")
    steps = [int(program.first_steps[group.start]) for group in space.groups]
    assert steps == sorted(set(steps))

    def without(*groups: int) -> BoolArray:
        genome = space.all_ones()[0]
        genome[[space.groups[index].start for index in groups]] = False
        return genome

    genomes = np.stack([without(9), without(9, 5), without(9, 5, 7), without(9, 5), without(9, 2), without(9, 5)])
    found = list(pauses(PauseStack(program, 1 << 20), program, genomes))
    assert found == [
        (None, None),
        (None, steps[5]),
        (steps[5], steps[7]),
        (steps[7], None),
        (None, steps[2]),
        (steps[2], None),
    ]


def test_the_pause_that_was_not_used_for_longest_goes_first() -> None:
    space, program = setting("vgg16")
    dense = space.all_ones()[0]
    stack = PauseStack(program, 80)  # two pauses of ten floats
    genomes = np.repeat(dense[None], 4, axis=0)
    for row, group in enumerate((3, 5, 7)):
        genomes[row + 1 :, space.groups[group].start] = False
    list(pauses(stack, program, genomes))
    assert [pause.step for pause in stack._pauses] == [int(program.first_steps[space.groups[g].start]) for g in (5, 7)]


def test_options_refuse_a_negative_bound() -> None:
    with pytest.raises(ValueError, match="max_prefix_bytes >= 0"):
        dataclasses.replace(FitnessOptions(), max_prefix_bytes=-1)


def test_calibration_images_go_no_further_than_the_last_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    space, program = setting("vgg16")
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    compensate = SequentialCompensation(program, images, CompensationOptions(n_positions=8))
    count = _StepCount(program, monkeypatch)
    genome, other = space.all_ones(2)
    genome[space.groups[4].start] = other[space.groups[8].start] = False

    def compensated(*arguments: Any) -> tuple[int, SlicedTensors, Prefix | None]:
        before = count.n
        tensors, prefix = compensate.paused(*arguments)
        return count.n - before, tensors, prefix

    assert compensated(space.all_ones()[0], None, None)[0] == 0
    n_layers, tensors, _ = compensated(genome, None, None)
    assert n_layers == 6  # that which makes the channel is the fifth, that which reads it the sixth
    behind = int(program.first_steps[space.groups[8].start])
    n_layers, paused, prefix = compensated(genome, None, behind)
    assert n_layers == 8  # the pause is for others, who need what is alive there
    both = genome & other
    _, continued, _ = compensated(both, prefix, None)

    monkeypatch.setattr(compensate, "_end_of_solves", lambda _: len(program.steps))
    for found, whole in ((tensors, genome), (paused, genome), (continued, both)):
        n_layers, expected, _ = compensated(whole, None, None)
        assert n_layers == len(program.layers)
        assert found.uncompensated == expected.uncompensated
        for name in program.layers:
            assert torch.equal(found.weights[name], expected.weights[name])
            assert torch.equal(found.biases[name], expected.biases[name])
