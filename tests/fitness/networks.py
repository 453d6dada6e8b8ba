"""Random networks, one per way of reading channels, with their folded programs and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise
from tests.search_spaces.patterns import PATTERNS, Chain, conv, conv_bn

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "convolution": PATTERNS["chain"].build,
    "no bias": lambda: Chain(
        conv(3, 6, bias=False), nn.ReLU(), conv(6, 4, bias=False), nn.ReLU(), conv(4, 5, bias=False), width=5
    ),
    "dilated and strided": lambda: Chain(
        conv_bn(3, 6),
        nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(8, 4, (1, 3), stride=(1, 2)),
        width=4,
    ),
    "pointwise": lambda: Chain(conv_bn(3, 6), conv(6, 5, 1), nn.ReLU(), conv(5, 4, 1, stride=2), width=4),
    "grouped": PATTERNS["grouped"].build,
    "depthwise": PATTERNS["depthwise"].build,
    "linear": PATTERNS["multi-layer perceptron"].build,
    "flatten to linear": PATTERNS["flatten to linear"].build,
    "concat": PATTERNS["concat"].build,
    "concat of itself": PATTERNS["concat of itself"].build,
    "coupled, several readers": PATTERNS["residual"].build,
    "option-A shortcut": PATTERNS["option-A shortcut"].build,
    "squeeze and excitation": PATTERNS["squeeze and excitation"].build,
    "transposed": PATTERNS["transposed"].build,
    "transposed grouped": PATTERNS["transposed grouped"].build,
    "called twice": PATTERNS["module called twice"].build,
}


@cache
def program_of(name: str) -> tuple[nn.Module, Program, Tensor]:
    """Return the network, its program, and 24 images of 8 x 8 that no two layers see alike."""
    model = NETWORKS[name]()
    randomise(model, seed=3)
    return (*prepared(model), images(24))


def prepared(model: nn.Module) -> tuple[nn.Module, Program]:
    model = model.eval().requires_grad_(False)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 8, 8))
    return model, Program(space, named_tensors(model))


def images(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(n, 3, 4, 4, generator=generator), (8, 8), mode="bilinear")
    return smooth + 0.3 * torch.randn(n, 3, 8, 8, generator=generator)
