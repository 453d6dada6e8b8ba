from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evoprune.baseline import l1_scores, uniform_l1_genome
from fitness.criteria import CRITERIA, CriterionInput
from search_spaces import SearchSpace
from search_spaces.models import build_model
from tests.fitness.networks import program_of


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize(("name", "budget"), [("resnet20", 0.7), ("resnet20", 0.04), ("vgg16", 0.3)])
def test_an_equal_share_at_the_budget(name: str, budget: float, metric: str) -> None:
    model = build_model(name, model_args={"width": 0.5})
    space = SearchSpace.trace(model, torch.zeros(2, 3, 16, 16))
    genome = uniform_l1_genome(model, space, {metric: budget}, seed=0)
    costs, dense = (space.macs, space.macs_dense) if metric == "macs" else (space.n_params, space.n_params_dense)
    assert 0.95 * budget * dense < costs(genome[None])[0] <= budget * dense
    shares = {group: genome[group.start : group.stop].mean() for group in space.groups}
    coupled = {share for group, share in shares.items() if len(group.layers) > 1}
    alone = [share for group, share in shares.items() if len(group.layers) == 1]
    smallest_step = max(1 / group.size for group in space.groups)
    assert max(alone) - min(alone) <= 2 * smallest_step
    if name == "resnet20":
        # The residual stream stays whole where the budget lets it.
        assert coupled == {1.0} if budget == 0.7 else max(coupled) < 0.5


@pytest.mark.parametrize("budget", [0.7, 0.04])
def test_blocks_that_could_be_removed_stay(budget: float) -> None:
    model = build_model("resnet20", model_args={"width": 0.5})
    images = torch.zeros(2, 3, 16, 16)
    space = SearchSpace.trace(model, images, block_genes=True)
    genome = uniform_l1_genome(model, space, {"macs": budget}, seed=0)
    assert all(genome[group.start : group.stop].all() for group in space.groups if group.kind == "block")


def test_the_largest_filters_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        for channel, norm in enumerate([5.0, 1.0, 4.0, 0.5, 3.0, 2.0]):
            model[0].weight[channel] = norm / 27 * (-1) ** channel
    space = SearchSpace.trace(model, torch.zeros(2, 3, 8, 8))
    assert np.allclose(l1_scores(model, space), [5.0, 1.0, 4.0, 0.5, 3.0, 2.0])
    genome = uniform_l1_genome(model, space, {"macs": 0.5}, seed=0)
    assert genome.tolist() == [True, False, True, False, True, False]


def test_coupled_layers_add_up() -> None:
    model = build_model("resnet20", seed=1)
    space = SearchSpace.trace(model, torch.zeros(2, 3, 16, 16))
    stream = space.groups[0]
    expected = sum(
        model.get_parameter(f"{layer}.weight").detach().double().abs().sum((1, 2, 3))[: stream.size]
        for layer in ("conv1", *(f"layer1.{i}.conv2" for i in range(3)))
    )
    # The first stage's channels lie in the middle of the wider streams behind the padded shortcuts.
    for layer, first in (("layer2.{}.conv2", 8), ("layer3.{}.conv2", 24)):
        for i in range(3):
            weight = model.get_parameter(f"{layer.format(i)}.weight").detach().double()
            expected = expected + weight.abs().sum((1, 2, 3))[first : first + stream.size]
    assert np.allclose(l1_scores(model, space)[stream.start : stream.stop], expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["coupled, several readers", "grouped", "transposed", "depthwise"])
def test_the_baseline_is_the_criterion_of_that_name(name: str) -> None:
    model, program, images = program_of(name)
    scores = CRITERIA["l1"].compute(CriterionInput(program, images)).scores
    assert l1_scores(model, program.space) == pytest.approx(scores, rel=1e-6)
