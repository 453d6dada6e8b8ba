"""Stages: every group in exactly one, first executed first, cut where the staging says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from search_spaces import SearchSpace, stages_of
from search_spaces.errors import OptionError
from search_spaces.models import build_model


@cache
def space_of(name: str, *, block_genes: bool = False) -> SearchSpace:
    model = build_model(name, model_args={"width": 0.25}).eval()
    return SearchSpace.trace(model, torch.zeros(1, 3, 32, 32), verify=False, block_genes=block_genes)


def names_of(space: SearchSpace, staging: str) -> dict[str, list[str]]:
    stages = stages_of(space, staging)
    every = np.concatenate([stage.groups for stage in stages])
    assert sorted(every.tolist()) == list(range(len(space.groups)))
    assert len({stage.name for stage in stages}) == len(stages)
    return {stage.name: [space.groups[index].name for index in stage.groups] for stage in stages}


def test_vgg_changes_resolution_at_every_pool() -> None:
    stages = names_of(space_of("vgg16"), "resolution")
    assert {name: len(groups) for name, groups in stages.items()} == {
        "32x32": 2,
        "16x16": 2,
        "8x8": 3,
        "4x4": 3,
        "2x2": 3,
        "vector": 1,
    }


def test_resnet_changes_resolution_at_every_stage_and_streams_belong_to_their_first_layer() -> None:
    stages = names_of(space_of("resnet20"), "resolution")
    assert list(stages) == ["32x32", "16x16", "8x8"]
    assert stages["32x32"] == ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1"]
    assert stages["16x16"][:2] == ["layer2.0.conv1", "layer2.0.conv2"]


def test_blocks_are_the_modules_that_hold_the_layers() -> None:
    stages = names_of(space_of("resnet20"), "blocks")
    assert list(stages) == ["conv1", *(f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2))]
    assert stages["layer2.0"] == ["layer2.0.conv1", "layer2.0.conv2"]


@pytest.mark.parametrize("staging", ["resolution", "blocks"])
def test_genes_of_residual_blocks_go_with_their_block(staging: str) -> None:
    stages = names_of(space_of("resnet20", block_genes=True), staging)
    by_group = {group: name for name, groups in stages.items() for group in groups}
    assert by_group["layer1.1"] == by_group["layer1.1.conv1"]
    assert by_group["layer3.2"] == by_group["layer3.2.conv1"]


def test_patterns_take_groups_in_turn_and_leave_the_rest_for_last() -> None:
    stages = names_of(space_of("resnet20"), "layer2*, conv1 ,*.0.*")
    assert list(stages) == ["layer2*", "conv1", "*.0.*", "others"]
    assert stages["*.0.*"] == ["layer1.0.conv1", "layer3.0.conv1", "layer3.0.conv2"]


@pytest.mark.parametrize("staging", ["nothing*", "*,layer1*", "layer1*,"])
def test_a_pattern_that_gets_no_group_is_refused(staging: str) -> None:
    with pytest.raises(OptionError, match="must match a group that no earlier one does"):
        stages_of(space_of("resnet20"), staging)
