"""The networks that benchmarks of quality work on: trained on CIFAR-10, or very small and untrained for a smoke run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fitness.data import ImageData, load_data
from search_spaces import SearchSpace
from search_spaces.models import build_model, load_weights

_SHARED = Path(os.environ.get("EVOPRUNE_SHARED", Path(__file__).parents[2] / "shared"))
WEIGHTS = _SHARED / "data" / "weights"
_FILES = {"resnet20": "resnet20_cifar10", "resnet56": "resnet56_cifar10", "vgg16": "vgg16_bn_cifar10"}
#: Share of the MACs at which each network is searched.
BUDGETS = {"resnet20": 0.5, "resnet56": 0.5, "vgg16": 0.3}
SMOKE = "resnet20"


@dataclass(frozen=True)
class Subject:
    """A dense network in evaluation mode, its images and its space."""

    name: str
    model: nn.Module
    data: ImageData
    space: SearchSpace


def load_subject(
    name: str, data: ImageData, *, weights: Path = WEIGHTS, smoke: bool = False, whole_streams: bool = False
) -> Subject:
    """Return a network with its space.

    Args:
        name: A name of :data:`BUDGETS`.
        data: The images.
        weights: Folder that holds the safetensors files.
        smoke: A quarter of the width, without weights.
        whole_streams: Leave channels alone that several layers make together (residual streams), as most rules do.
    """
    model = build_model(name, data.n_classes, {"width": 0.25} if smoke else {}, data.input_shape)
    if not smoke:
        load_weights(model, weights / f"{_FILES[name]}.safetensors")
    model = model.eval().requires_grad_(False)
    example = torch.zeros(1, *data.input_shape)
    space = SearchSpace.trace(model, example)
    if whole_streams:
        coupled = [group.name for group in space.groups if len(group.layers) > 1]
        space = SearchSpace.trace(model, example, protect=coupled) if coupled else space
    return Subject(name, model, data, space)


def load_images(name: str, *, smoke: bool = False) -> ImageData:
    """Return the images called ``name``, or small ones that need no download."""
    return load_data("digits" if smoke else name)
