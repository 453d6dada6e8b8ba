"""The folded program computes what the sliced network computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fitness.compensation import CompensationOptions, SequentialCompensation
from fitness.program import Program
from fitness.writeback import compensated_model
from search_spaces import SearchSpace, prune_model
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise, relative_difference

_NETWORKS = {
    "vgg16": {"width": 0.125},
    "resnet20": {"width": 0.5},
    "mobilenet_v2": {"width": 0.25},
    "densenet40": {"width": 0.5},
    "googlenet": {"width": 0.125},
    "torchvision:shufflenet_v2_x0_5": {},
    "torchvision:regnet_y_400mf": {},
}


@pytest.mark.parametrize("name", _NETWORKS)
def test_program_equals_the_sliced_network(name: str) -> None:
    model = build_model(name, model_args=_NETWORKS[name]).eval()
    randomise(model)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    space = SearchSpace.trace(model, images[:1], verify=False)
    program = Program(space, named_tensors(model))
    genomes = np.concatenate([space.all_ones(), space.sample(rng=np.random.default_rng(0), n=2, macs_budget=0.6)])
    for genome in genomes:
        with torch.inference_mode():
            expected = prune_model(model, space, genome)(images)
            actual = program.run(program.slice(genome), [images])[program.outputs[0]]
        assert relative_difference(expected, actual) < 1e-4


def test_removed_blocks_are_skipped_and_written_back() -> None:
    model = build_model("resnet20", model_args={"width": 0.5}).eval()
    randomise(model)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    space = SearchSpace.trace(model, images[:1], block_genes=True)
    assert len(space.blocks) > 3
    program = Program(space, named_tensors(model))
    genome = space.sample(rng=np.random.default_rng(1), n=1, macs_budget=0.7)[0]
    genome[-2] = genome[-3] = False
    genome = space.repair(genome[None], rng=np.random.default_rng(2))[0]
    assert len(space.removed_blocks(genome)) >= 2
    with torch.inference_mode():
        expected = prune_model(model, space, genome)(images)
        values = program.run(program.slice(genome), [images])
        assert relative_difference(expected, values[program.outputs[0]]) < 1e-4
        solved = SequentialCompensation(program, images, CompensationOptions(n_positions=64))(genome)
        small = compensated_model(model, program, solved)
        reached = program.run(solved, [images])[program.outputs[0]]
        assert relative_difference(reached, small(images)) < 1e-4


def test_the_first_step_of_the_last_group_leaves_a_prefix_that_all_share() -> None:
    model = build_model("vgg16", model_args={"width": 0.125}).eval()
    space = SearchSpace.trace(model, torch.zeros(1, 3, 32, 32), verify=False)
    program = Program(space, named_tensors(model))
    last = space.groups[-1]
    step = program.first_step_of(np.arange(last.start, last.stop))
    layer = program.steps[step].layer
    assert layer is not None
    assert layer.record.module == last.name
    assert program.first_step_of(np.empty(0, np.int64)) == len(program.steps)
