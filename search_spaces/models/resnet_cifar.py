"""CIFAR ResNets of 6k + 2 layers with parameter-free (option A) shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.models.channel_pad import ChannelPad, Subsample
from search_spaces.models.layers import global_average, initialise, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; where the shape changes, the shortcut subsamples and pads channels."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()
        before = (n_out - n_in) // 2
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(Subsample(), ChannelPad(before, n_out - n_in - before))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(residual(x) + shortcut(x))``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class ResNetCifar(nn.Module):
    """Stem, three stages of ``n_blocks`` basic blocks with 16, 32 and 64 channels, global average, ``linear``.

    References:
        He 2016, Deep residual learning for image recognition, Sec. 4.2.
    """

    def __init__(self, n_blocks: int, n_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        widths = [scaled(n_channels, width) for n_channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(n_blocks, widths[0], widths[0], stride=1)
        self.layer2 = _stage(n_blocks, widths[0], widths[1], stride=2)
        self.layer3 = _stage(n_blocks, widths[1], widths[2], stride=2)
        self.linear = nn.Linear(widths[2], n_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, n_classes)`` of ``x`` ``(n, in_channels, H, W)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(global_average(x))


def _stage(n_blocks: int, n_in: int, n_out: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(n_in, n_out, stride)
    return nn.Sequential(first, *(BasicBlock(n_out, n_out, 1) for _ in range(n_blocks - 1)))


def resnet_cifar(depth: int, *, n_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNetCifar:
    """Return a CIFAR ResNet of ``depth = 6 k + 2`` layers, each stage ``width`` times as wide as published."""
    return ResNetCifar((depth - 2) // 6, n_classes, in_channels, width)
