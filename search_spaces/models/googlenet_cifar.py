"""GoogLeNet for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.models.layers import conv_bn_relu, global_average, initialise, scaled

# 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection
_STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four parallel branches, concatenated; the 5x5 branch is two 3x3 convolutions, every one with batch norm."""

    def __init__(self, n_in: int, widths: list[int]) -> None:
        super().__init__()
        n1, n3_reduce, n3, n5_reduce, n5, n_pool = widths
        self.branch1 = nn.Sequential(*conv_bn_relu(n_in, n1, 1))
        self.branch3 = nn.Sequential(*conv_bn_relu(n_in, n3_reduce, 1), *conv_bn_relu(n3_reduce, n3, 3))
        self.branch5 = nn.Sequential(
            *conv_bn_relu(n_in, n5_reduce, 1), *conv_bn_relu(n5_reduce, n5, 3), *conv_bn_relu(n5, n5, 3)
        )
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv_bn_relu(n_in, n_pool, 1))
        self.n_out = n1 + n3 + n5 + n_pool

    def forward(self, x: Tensor) -> Tensor:
        """Return the four branches' channels, one behind the other."""
        return torch.cat((self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)), dim=1)


class GoogLeNetCifar(nn.Module):
    """A stem of 192 channels, nine inception modules in three resolutions, global average, ``linear``.

    References:
        Szegedy 2015, Going deeper with convolutions, Tab. 1, without the first reductions and the auxiliary heads.
    """

    def __init__(self, n_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        n_channels = scaled(192, width)
        layers = conv_bn_relu(in_channels, n_channels, 3)
        for stage, modules in enumerate(_STAGES):
            if stage:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            for widths in modules:
                inception = Inception(n_channels, [scaled(n, width) for n in widths])
                layers.append(inception)
                n_channels = inception.n_out
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(n_channels, n_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, n_classes)`` of ``x`` ``(n, in_channels, H, W)``."""
        return self.linear(global_average(self.features(x)))


def googlenet(*, n_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> GoogLeNetCifar:
    """Return GoogLeNet in its CIFAR form, every branch ``width`` times as wide as published."""
    return GoogLeNetCifar(n_classes, in_channels, width)
