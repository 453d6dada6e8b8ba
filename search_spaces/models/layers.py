"""What the CIFAR forms of several families share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from search_spaces.errors import OptionError


def scaled(n_channels: int, width: float) -> int:
    """Return ``n_channels * width``, rounded, and at least 1.

    Raises:
        OptionError: ``width`` is not positive.
    """
    if not width > 0:
        raise OptionError(f"`width > 0` must hold, but got {width}; 1 is the published width")
    return max(1, round(n_channels * width))


def conv_bn_relu(n_in: int, n_out: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a bias-free, size-preserving convolution, its batch norm and its ReLU."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(n_in, n_out, kernel_size, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    ]


def global_average(x: Tensor) -> Tensor:
    """Return ``(n, C)``, the mean over the positions of ``x`` ``(n, C, H, W)``."""
    return functional.adaptive_avg_pool2d(x, 1).flatten(1)


def initialise(model: nn.Module) -> None:
    """Draw the convolutions and linears of ``model`` by He's rule (fan-out) from torch's generator, biases zero.

    References:
        He 2015, Delving deep into rectifiers, Sec. 2.2.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
