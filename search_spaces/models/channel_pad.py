"""The parameter-free shortcut of CIFAR ResNets, as modules whose channel numbers are attributes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ChannelPad(nn.Module):
    """Puts zero channels before and after the channels of its input.

    The two numbers are attributes and not literals in a ``forward``, so that surgery can rewrite them when channels of
    the residual stream are removed.

    Attributes:
        before: Zero channels in front, at least 0.
        after: Zero channels behind, at least 0.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, before + C + after, H, W)`` for ``x`` ``(n, C, H, W)``."""
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Return the two numbers for ``print(model)``."""
        return f"before={self.before}, after={self.after}"


class Subsample(nn.Module):
    """Takes every second pixel in both directions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, C, ceil(H / 2), ceil(W / 2))`` for ``x`` ``(n, C, H, W)``."""
        return x[:, :, ::2, ::2]
