"""VGG-16 with batch norm for small images."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.models.layers import conv_bn_relu, global_average, initialise, scaled

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGGCifar(nn.Module):
    """Thirteen 3x3 convolutions with max pooling between the five stages, global average, two linears.

    The last stage is not pooled by two but averaged, so images of 16 x 16 and more are accepted.

    References:
        Simonyan 2015, Very deep convolutional networks, Tab. 1 (D), with batch norm and a small classifier.
    """

    def __init__(self, n_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = in_channels
        for stage, widths in enumerate(_WIDTHS):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for n_channels in widths:
                n_out = scaled(n_channels, width)
                layers.extend(conv_bn_relu(n_in, n_out, 3))
                n_in = n_out
        self.features = nn.Sequential(*layers)
        n_hidden = scaled(512, width)
        self.classifier = nn.Sequential(
            nn.Linear(n_in, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_classes)
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, n_classes)`` of ``x`` ``(n, in_channels, H, W)``."""
        return self.classifier(global_average(self.features(x)))


def vgg16(*, n_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGGCifar:
    """Return VGG-16 with batch norm, every layer ``width`` times as wide as published."""
    return VGGCifar(n_classes, in_channels, width)
