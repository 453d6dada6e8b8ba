"""MobileNetV2 for small images: three of the five reductions of the ImageNet form remain."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.models.layers import conv_bn_relu, global_average, initialise, scaled

# expansion, channels, blocks, stride of the first block; the stem and the 24-channel stage keep the resolution
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3x3, linear projection; identity shortcut where the shape is kept."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        n_hidden = n_in * expansion
        layers = conv_bn_relu(n_in, n_hidden, 1) if expansion != 1 else []
        layers += conv_bn_relu(n_hidden, n_hidden, 3, stride=stride, groups=n_hidden)
        layers += conv_bn_relu(n_hidden, n_out, 1)[:2]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, ``x`` added where the shape is kept."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2Cifar(nn.Module):
    """Stem, seventeen inverted residuals, a last pointwise convolution, global average, ``linear``.

    References:
        Sandler 2018, MobileNetV2, Tab. 2, with strides of 1 in the stem and in the 24-channel stage.
    """

    def __init__(self, n_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        n_in = scaled(32, width)
        layers = conv_bn_relu(in_channels, n_in, 3)
        for expansion, n_channels, n_blocks, first_stride in _STAGES:
            n_out = scaled(n_channels, width)
            for block in range(n_blocks):
                layers.append(InvertedResidual(n_in, n_out, first_stride if block == 0 else 1, expansion))
                n_in = n_out
        n_last = scaled(1280, width)
        self.features = nn.Sequential(*layers, *conv_bn_relu(n_in, n_last, 1))
        self.linear = nn.Linear(n_last, n_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, n_classes)`` of ``x`` ``(n, in_channels, H, W)``."""
        return self.linear(global_average(self.features(x)))


def mobilenet_v2(*, n_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> MobileNetV2Cifar:
    """Return MobileNetV2 in its CIFAR form, every layer ``width`` times as wide as published."""
    return MobileNetV2Cifar(n_classes, in_channels, width)
