"""Random small networks out of every wiring, for Hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from search_spaces.models import ChannelPad
from tests.search_spaces.patterns import conv


@dataclass(frozen=True)
class Recipe:
    """What a random network is made of.

    Attributes:
        steps: ``(kind, width, option)`` per block, in order.
        tail: How features reach the classifier: ``mean``, ``flatten`` or ``hidden``.
        extra_output: A further output after this block, or -1.
        second_input: The block in front of which a second input joins, or -1.
    """

    steps: tuple[tuple[str, int, int], ...]
    tail: str
    extra_output: int
    second_input: int


class Step(nn.Module):
    """A block whose output has ``width`` channels."""

    width: int


class ConvStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width = width
        norms = (nn.BatchNorm2d(width), nn.Identity(), nn.InstanceNorm2d(width, affine=option % 2 == 0))
        activations = (nn.ReLU(inplace=True), nn.PReLU(width), nn.SiLU(), nn.Sigmoid())
        self.layers = nn.Sequential(
            conv(n_in, width, (3, 1)[option % 2], bias=option % 3 > 0), norms[option % 3], activations[option % 4]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DilatedStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Conv2d(n_in, width, 3, padding=2, dilation=2, bias=option % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(self.layer(x))


class ResidualStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width = n_in
        self.inner, self.norm, self.outer = conv(n_in, width), nn.BatchNorm2d(width), conv(width, n_in, bias=False)
        self.in_place = option % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(F.relu(self.norm(self.inner(x))))
        if self.in_place:
            y += x
            return F.relu_(y)
        return x + y


class ProjectedStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width = width + option % 3
        self.inner, self.outer = conv(n_in, width), conv(width, self.width)
        self.shortcut = nn.Sequential(conv(n_in, self.width, 1, bias=False), nn.BatchNorm2d(self.width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.outer(F.relu(self.inner(x))))


class PaddedStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        before, after = option % 3, 1 + option % 2
        self.width = n_in + before + after
        self.inner, self.outer, self.pad = conv(n_in, width), conv(width, self.width), ChannelPad(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pad(x) + self.outer(F.relu(self.inner(x))))


class ConcatStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.left, self.right, self.option = conv(n_in, width, 1), conv(n_in, 1 + width // 2), option % 3
        self.width = width + 1 + width // 2 + (n_in if self.option else 0) + (width if self.option == 2 else 0)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.left(x)), self.right(x)
        return torch.cat([[left, right], [left, x, right], [left, right, x, left]][self.option], 1)


class DepthwiseStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        multiplier = 1 + option % 2
        self.width = width if option % 3 else n_in * multiplier
        self.depthwise, self.norm = conv(n_in, n_in * multiplier, groups=n_in), nn.BatchNorm2d(n_in * multiplier)
        self.pointwise = conv(n_in * multiplier, width, 1) if option % 3 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(F.hardswish(self.norm(self.depthwise(x))))


class GroupedStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        groups = 2 + option % 2
        inner = groups * (1 + width // 2)
        self.width = n_in if option % 2 else groups * 2
        self.enter, self.grouped = conv(n_in, inner, 1), conv(inner, groups * 2, groups=groups)
        self.leave = conv(groups * 2, n_in, 1) if option % 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(F.relu(self.grouped(F.relu(self.enter(x)))))
        return x + y if isinstance(self.leave, nn.Conv2d) else y


class GateStep(Step):
    """Squeeze-and-excitation by convolutions, by linears, or a spatial gate."""

    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width, self.option = n_in, option % 3
        self.down = (conv(n_in, width, 1), nn.Linear(n_in, width), conv(n_in, width))[self.option]
        self.up = (conv(width, n_in, 1), nn.Linear(width, n_in), conv(width, 1))[self.option]

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        source = (x.mean((2, 3), keepdim=True), x.mean((2, 3)), x)[self.option]
        gate = torch.sigmoid(self.up(F.relu(self.down(source))))
        return x * (gate.view(n, c, 1, 1) if self.option == 1 else gate)


class ShuffleStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        half = 1 + width // 2
        self.width = 2 * half
        self.enter, self.inner, self.outer = conv(n_in, 2 * half, 1), conv(half, width), conv(width, half, 1)
        self.native = nn.ChannelShuffle(2) if option % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = self.enter(x).chunk(2, dim=1)
        x = torch.cat([kept, self.outer(F.relu(self.inner(worked)))], 1)
        if self.native is not None:
            return self.native(x)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class NormedStep(Step):
    """Layer norm over channels, pointwise linears, residual."""

    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width = n_in
        self.norm, self.up, self.down = nn.LayerNorm(n_in), nn.Linear(n_in, width), nn.Linear(width, n_in)
        self.scale = nn.Parameter(torch.ones(n_in, 1, 1)) if option % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + (y if self.scale is None else self.scale * y)


class GroupNormStep(Step):
    def __init__(self, n_in: int, width: int, _option: int) -> None:
        super().__init__()
        self.width = 2 * (1 + width // 2)
        self.layer, self.norm = conv(n_in, self.width), nn.GroupNorm(2, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.layer(x)))


class TransposedStep(Step):
    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        kinds: tuple[Callable[[], nn.ConvTranspose2d], ...] = (
            lambda: nn.ConvTranspose2d(n_in, width, 2, stride=2),
            lambda: nn.ConvTranspose2d(n_in, n_in, 2, stride=2, groups=n_in),
            lambda: nn.ConvTranspose2d(n_in, 2 * n_in, 2, stride=2, groups=n_in, bias=False),
        )
        self.layer = kinds[option % 3]()
        self.width = self.layer.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.layer(x)), 2)


class TwiceStep(Step):
    """One layer called twice, or two that share a weight."""

    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.width = width
        self.enter, self.one = conv(n_in, width, 1), conv(width, width)
        self.two = self.one if option % 2 else conv(width, width)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(self.enter(x))))


class PoolStep(Step):
    def __init__(self, n_in: int, _width: int, option: int) -> None:
        super().__init__()
        self.width = n_in
        self.layers = (
            nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Dropout2d()),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(n_in)),
            nn.Sequential(nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Softplus()),
        )[option % 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class WithoutFirstStep(Step):
    """Cuts channels off at a literal number."""

    def __init__(self, n_in: int, width: int, option: int) -> None:
        super().__init__()
        self.layer, self.width, self.option = conv(n_in, width + 2), width, option % 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layer(x))
        return x[:, 2:] if self.option else torch.split(x, [2, self.width], 1)[1]


STEPS: Mapping[str, Callable[[int, int, int], Step]] = {
    "concat": ConcatStep,
    "conv": ConvStep,
    "depthwise": DepthwiseStep,
    "dilated": DilatedStep,
    "gate": GateStep,
    "group norm": GroupNormStep,
    "grouped": GroupedStep,
    "literal": WithoutFirstStep,
    "normed": NormedStep,
    "padded": PaddedStep,
    "pool": PoolStep,
    "projected": ProjectedStep,
    "residual": ResidualStep,
    "shuffle": ShuffleStep,
    "transposed": TransposedStep,
    "twice": TwiceStep,
}
SIZE = 4


class RandomNetwork(nn.Module):
    """The network of a recipe, on images of ``(3, 4, 4)``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        width = 3
        self.steps = nn.ModuleList()
        for index, (kind, wanted, option) in enumerate(recipe.steps):
            if index == recipe.second_input:
                width += 2
            step = STEPS[kind](width, wanted, option)
            self.steps.append(step)
            width = step.width
            if index == recipe.extra_output:
                self.side = nn.Linear(width, 2)
        self.head = nn.Linear(width * (SIZE * SIZE if recipe.tail == "flatten" else 1), 4)
        self.hidden = (
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) if recipe.tail == "hidden" else nn.Identity()
        )

    def forward(self, x: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for index, step in enumerate(self.steps):
            if index == self.recipe.second_input:
                x = torch.cat([x, more[0]], 1)
            x = step(x)
            if index == self.recipe.extra_output:
                outputs.append(self.side(x.mean((2, 3))))
        x = x.flatten(1) if self.recipe.tail == "flatten" else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return (*outputs, self.hidden(self.head(x)))

    def example(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(7)
        channels = (3, 2) if 0 <= self.recipe.second_input < len(self.recipe.steps) else (3,)
        return tuple(torch.randn(1, c, SIZE, SIZE, generator=generator, dtype=torch.float64) for c in channels)


def recipes(max_steps: int = 5) -> st.SearchStrategy[Recipe]:
    """Return a strategy for recipes of one to ``max_steps`` blocks."""
    step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(1, 7), st.integers(0, 11))
    return st.builds(
        Recipe,
        steps=st.lists(step, min_size=1, max_size=max_steps).map(tuple),
        tail=st.sampled_from(["mean", "flatten", "hidden"]),
        extra_output=st.integers(-1, max_steps - 1),
        second_input=st.integers(-1, max_steps - 1),
    )
