"""DenseNet-40 (growth 12) for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.models.layers import global_average, initialise, scaled


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution whose ``growth`` channels are put behind the input's."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(n_in)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(n_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, C + growth, H, W)`` for ``x`` ``(n, C, H, W)``."""
        return torch.cat((x, self.conv(self.relu(self.bn(x)))), dim=1)


class DenseNetCifar(nn.Module):
    """A stem of 16 channels, three dense blocks with transitions between them, global average, ``linear``.

    No bottleneck and no compression.

    References:
        Huang 2017, Densely connected convolutional networks, Sec. 3 (L = 40, k = 12).
    """

    def __init__(self, n_layers: int, growth: int, n_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        n_channels, growth = scaled(16, width), scaled(growth, width)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, n_channels, 3, padding=1, bias=False)]
        for block in range(3):
            if block:
                layers += [nn.BatchNorm2d(n_channels), nn.ReLU()]
                layers += [nn.Conv2d(n_channels, n_channels, 1, bias=False), nn.AvgPool2d(2)]
            for _ in range(n_layers):
                layers.append(DenseLayer(n_channels, growth))
                n_channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(n_channels), nn.ReLU())
        self.linear = nn.Linear(n_channels, n_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, n_classes)`` of ``x`` ``(n, in_channels, H, W)``."""
        return self.linear(global_average(self.features(x)))


def densenet40(*, n_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> DenseNetCifar:
    """Return DenseNet-40 with growth 12; ``width`` scales the stem and the growth."""
    return DenseNetCifar(12, 12, n_classes, in_channels, width)
