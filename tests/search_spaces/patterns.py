"""Small networks, one per wiring that a search space must understand, and how many genes each must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from search_spaces.models import ChannelPad, Subsample


def image(channels: int = 3, size: int = 8) -> tuple[Tensor, ...]:
    return (torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64),)


class Net(nn.Module):
    """A body that ends in ``width`` channels, followed by pooling and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 5)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def conv(n_in: int, n_out: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


def conv_bn(n_in: int, n_out: int, kernel: int = 3, **options: object) -> nn.Sequential:
    return nn.Sequential(conv(n_in, n_out, kernel, bias=False, **options), nn.BatchNorm2d(n_out), nn.ReLU())


class Chain(Net):
    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__(width)
        self.layers = nn.Sequential(*layers)

    def body(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.inner, self.outer = conv_bn(3, 6), conv_bn(6, 4), nn.Sequential(conv(4, 6), nn.BatchNorm2d(6))

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(x + self.outer(self.inner(x)))


class ConvShortcut(Net):
    def __init__(self) -> None:
        super().__init__(7)
        self.stem, self.inner, self.outer = conv_bn(3, 6), conv_bn(6, 4, stride=2), conv(4, 7)
        self.shortcut = conv(6, 7, 1, stride=2)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.shortcut(x) + self.outer(self.inner(x)))


class OptionA(Net):
    """The parameter-free shortcut of CIFAR ResNets, with its padding in a module."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.inner, self.outer = conv_bn(3, 4), conv_bn(4, 6, stride=2), conv(6, 8)
        self.shortcut = nn.Sequential(Subsample(), ChannelPad(2, 2))

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.shortcut(x) + self.outer(self.inner(x)))


class LiteralPad(OptionA):
    """The same with a literal ``F.pad`` in its forward: the padded stream stays."""

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.outer(self.inner(x)))


class Concat(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.left, self.right, self.join = conv_bn(3, 4), conv(3, 5, 1), conv(4 + 5 + 3, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.left(x), x, F.relu(self.right(x))], 1))


class ConcatSelf(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.join = conv(3, 4), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.join(torch.cat([x, x], 1))


class Dense(Net):
    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.one, self.two = conv(3, 4), conv_bn(4, 4), conv_bn(8, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.one(x)], 1)
        return torch.cat([x, self.two(x)], 1)


class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.down, self.up = conv_bn(3, 8), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class LinearSqueezeExcite(Net):
    """Squeeze-and-excitation with linear layers and a view back."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.down, self.up = conv_bn(3, 8), nn.Linear(8, 3), nn.Linear(3, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.shape
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3)))))).view(n, c, 1, 1)


class Shuffle(Net):
    """A ShuffleNet unit: halves, a branch, and a channel shuffle."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.inner, self.outer, self.last = conv_bn(3, 8), conv_bn(4, 6, 1), conv_bn(6, 4, 1), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept, worked = x.chunk(2, dim=1)
        x = torch.cat([kept, self.outer(self.inner(worked))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.relu(self.last(x))


class NormedLinears(Net):
    """A ConvNeXt block: depthwise, layer norm over channels, pointwise linears, scaled and added."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.depthwise = conv(3, 6), conv(6, 6, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


class FlattenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 6), nn.MaxPool2d(2), conv(6, 4))
        self.classifier = nn.Sequential(nn.Linear(4 * 4 * 4, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class MaximaLinear(nn.Module):
    """Adaptive maxima, whose sizes stand beside their indices, then every channel becomes several features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 6), nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_max_pool2d(self.stem(x), 2).flatten(1))


class ViewLinear(FlattenLinear):
    """The same with ``view(batch, -1)``, as older code writes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class CalledTwice(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.shared = conv_bn(3, 6), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.shared(F.relu(self.shared(x)))


class SharedHead(Net):
    """One layer on two feature maps of different size."""

    def __init__(self) -> None:
        super().__init__(4)
        self.stem, self.down, self.shared = conv_bn(3, 6), conv_bn(6, 6, stride=2), conv(6, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.shared(x)).mean((2, 3), keepdim=True) + F.relu(self.shared(self.down(x)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = conv(3, 5), conv(2, 6), nn.Linear(11, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(a).mean((2, 3)), F.relu(self.right(b)).mean((2, 3))], 1))


class Frames(Net):
    """Convolutions see every frame of a film as a sample of its own."""

    def __init__(self) -> None:
        super().__init__(4)
        self.stem, self.last = conv_bn(3, 6), conv_bn(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.last(self.stem(x.flatten(0, 1))).mean((2, 3))
        return self.head(frames.view(*x.shape[:2], -1).mean(1))


class Tokens(Net):
    """Linear layers see every position of the map as a sample of its own."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.wide, self.narrow = conv(3, 6), nn.Linear(6, 12), nn.Linear(12, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tokens = self.narrow(F.gelu(self.wide(x.permute(0, 2, 3, 1).flatten(0, 2))))
        return tokens.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class OwnTable(Net):
    """A layer that does not see the batch."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.wide, self.narrow = conv(3, 6), nn.Linear(2, 5), nn.Linear(5, 6)

    def body(self, x: Tensor) -> Tensor:
        table = torch.arange(8, dtype=x.dtype, device=x.device).view(4, 2)
        return self.stem(x) + self.narrow(F.relu(self.wide(table))).sum(0).view(1, -1, 1, 1)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.map, self.head = conv_bn(3, 6), conv(6, 2, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"map": self.map(x), "logits": self.head(x.mean((2, 3)))}


class FeaturesOut(nn.Module):
    """Features leave the network, so their channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv_bn(3, 6), conv_bn(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.two(self.one(x))
        return x, self.head(x.mean((2, 3)))


class SpatialGate(Net):
    """One gate channel that scales all channels: it stays."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.gate_in, self.gate = conv_bn(3, 6), conv_bn(6, 3), conv(3, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x * torch.sigmoid(self.gate(self.gate_in(x)))


class InPlace(Net):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.inner, self.outer = conv(3, 6), conv(6, 4), conv(4, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.outer(F.relu_(self.inner(x)))
        y += x
        y.mul_(0.5).clamp_(min=0)
        return y


class InPlaceView(Net):
    """An update through a view: the channels it touches by number stay, all else can go."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.middle, self.last = conv(3, 6), conv(6, 6), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :2] *= 2.0
        return self.last(F.relu(self.middle(x)))


class ViewBeforeUpdate(Net):
    """A view that is taken before its base is updated in place, and read afterwards."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.side = conv(3, 6), conv(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        flat = x.flatten(2)
        side = self.side(F.relu(x, inplace=True))
        return self.head((side.flatten(2) + flat).mean(2))


class ChunkUpdate(Net):
    """A chunk that is updated in place: code that holds on to the whole tensor sees it."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.middle = conv(3, 6), conv(6, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x)).detach()  # gradients forbid updates of a part
        x.chunk(2, 1)[0].relu_()
        return x


class ChunkUpdateAlone(Net):
    """A chunk that is updated in place, when only the chunks are read afterwards."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.last = conv(3, 8), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).detach().chunk(2, 1)
        left.relu_()
        return self.last(torch.cat([left, right], 1))


class UpdatedTwice(Net):
    """An earlier name of a tensor that is updated in place twice."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.last = conv(3, 5), conv(5, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rectified = F.relu(x, inplace=True)
        x += 1
        return self.last(rectified)


class Tied(Net):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.one, self.two = conv_bn(3, 6), conv(6, 6), conv(6, 6)
        self.two.weight = self.one.weight

    def body(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(self.stem(x))))


class MadeWeights(Net):
    """Layers and a norm whose tensors are made by an operator, though it leaves every element at its place."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.scaled, self.shifted = conv(3, 5), conv(5, 6), conv(6, 6)
        self.square, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm2d(6), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(self.stem(x), self.scaled.weight * 0.5, self.scaled.bias, padding=1))
        x = F.relu(F.conv2d(x, self.shifted.weight, self.shifted.bias.clone(), padding=1))
        x = F.linear(x.movedim(1, 3), self.square.weight.t(), self.square.bias).movedim(3, 1)
        norm = self.norm
        x = F.batch_norm(x + 1, norm.running_mean, norm.running_var, norm.weight.to(x.dtype), norm.bias)
        return self.last(F.relu(x))


class HardCoded(Net):
    """Code that holds a channel number."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.middle, self.last = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        return self.last(x.reshape(-1, 8, 64).reshape(-1, 8, 8, 8))


class Asserting(Net):
    """A check of the channel number at run time, which only running the cut network can find."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.middle, self.last = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        if x.shape[1] != 8:
            raise ValueError("expected 8 channels")
        return self.last(x)


class ScalesWithWidth(Net):
    """The number of channels enters the arithmetic: only comparing outputs can find it."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.middle, self.last = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        return self.last(x / x.shape[1])


class MultiHeadAttention(Net):
    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.attention = conv_bn(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def body(self, x: Tensor) -> Tensor:
        n, c, h, w = (x := self.stem(x)).shape
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens + self.down(F.gelu(self.up(tokens)))
        return tokens.transpose(1, 2).reshape(n, c, h, w)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Parameterless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).mean((2, 3))


class WholeMean(Net):
    """A mean over channels, as spatial attention takes it."""

    def __init__(self) -> None:
        super().__init__(5)
        self.stem, self.gate, self.last = conv_bn(3, 6), conv(2, 1), conv_bn(6, 5)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.last(x * torch.sigmoid(self.gate(maps)))


class FrozenInputSum(Net):
    """The image itself is added to a feature map."""

    def __init__(self) -> None:
        super().__init__(5)
        self.stem, self.back, self.last = conv_bn(3, 6), conv(6, 3), conv_bn(3, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x + self.back(self.stem(x)))


class Decoder(Net):
    """A linear layer whose output is viewed as a map, then upsampled by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__(4)
        self.start, self.up, self.last = nn.Linear(8, 6 * 4), nn.ConvTranspose2d(6, 5, 2, stride=2), conv(5, 4)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.start(x)).view(x.size(0), -1, 2, 2)
        return self.last(F.relu(self.up(x)))


class SelectiveKernels(Net):
    """Two paths, weighted by a softmax over the paths."""

    def __init__(self) -> None:
        super().__init__(6)
        self.left, self.right, self.last = conv_bn(3, 6), conv_bn(3, 6, 1), conv(6, 6)
        self.down, self.up = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        paths = torch.stack([self.left(x), self.right(x)], dim=1)
        weights = self.up(F.relu(self.down(paths.sum(1).mean((2, 3), keepdim=True))))
        n, c, h, w = weights.shape
        weights = weights.view(n, 2, c // 2, h, w).softmax(dim=1)
        return self.last((paths * weights).sum(dim=1))


class ChannelSoftmax(Net):
    """A softmax over channels: they stay."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.middle, self.last = conv_bn(3, 6), conv(6, 6), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.stem(x)).softmax(dim=1))


class VolumeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.head = (
            nn.Conv3d(3, 6, 3),
            nn.BatchNorm3d(6),
            nn.Conv3d(6, 4, 1),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.relu(self.norm(self.one(x))), 2)
        return self.head(self.two(x).mean((2, 3, 4)))


class SignalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.head = (
            nn.Conv1d(3, 6, 3),
            nn.BatchNorm1d(6),
            nn.Conv1d(6, 4, 1),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.one(x))), 2)
        return self.head(F.adaptive_avg_pool1d(self.two(x), 1).squeeze(-1))


@dataclass(frozen=True)
class Pattern:
    """A network and what a search space must find in it.

    Attributes:
        build: Makes it.
        n_genes: Genes that must be offered: neither fewer (channels left frozen) nor more.
        inputs: Makes the example inputs.
        reason: Part of the reason for which the remaining channels stay, if it matters.
    """

    build: Callable[[], nn.Module]
    n_genes: int
    inputs: Callable[[], tuple[Tensor, ...]] = image
    reason: str | None = None


PATTERNS: Mapping[str, Pattern] = {
    "chain": Pattern(lambda: Chain(conv_bn(3, 6), conv_bn(6, 4), conv_bn(4, 5), width=5), 15),
    "chain without batch norm": Pattern(lambda: Chain(conv(3, 6), nn.ReLU(), conv(6, 4), nn.Tanh(), width=4), 10),
    "chain without bias": Pattern(
        lambda: Chain(conv(3, 6, bias=False), nn.ReLU(), conv(6, 4, bias=False), width=4), 10
    ),
    "bias under batch norm": Pattern(
        lambda: Chain(conv(3, 6), nn.BatchNorm2d(6), nn.Sigmoid(), conv(6, 4), nn.BatchNorm2d(4), width=4), 10
    ),
    "batch norm without affine": Pattern(
        lambda: Chain(conv(3, 6), nn.BatchNorm2d(6, affine=False), nn.ReLU(), conv(6, 4), width=4), 10
    ),
    "dilated and strided": Pattern(
        lambda: Chain(
            nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2),
            nn.ELU(),
            nn.Conv2d(6, 4, (1, 3), stride=(1, 2)),
            width=4,
        ),
        10,
    ),
    "dropout": Pattern(
        lambda: Chain(conv_bn(3, 6), nn.Dropout2d(), conv_bn(6, 4), nn.AlphaDropout(), nn.Dropout(), width=4), 10
    ),
    "prelu": Pattern(
        lambda: Chain(conv(3, 6), nn.PReLU(6), conv(6, 4), nn.PReLU(), conv(4, 5), nn.PReLU(1), width=5), 15
    ),
    "instance norm": Pattern(
        lambda: Chain(
            conv(3, 6), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), conv(6, 4), nn.InstanceNorm2d(4), width=4
        ),
        10,
    ),
    "instance norm with statistics": Pattern(
        lambda: Chain(conv(3, 6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), conv(6, 4), width=4), 10
    ),
    "group norm": Pattern(
        lambda: Chain(conv(3, 6), nn.GroupNorm(3, 6), nn.ReLU(), conv_bn(6, 4), width=4), 4, reason="group_norm"
    ),
    "one channel": Pattern(
        lambda: Chain(conv(1, 6), nn.ReLU(), conv(6, 1), nn.ReLU(), conv(1, 4), width=4), 10, lambda: image(1)
    ),
    "depthwise": Pattern(lambda: Chain(conv_bn(3, 6), conv_bn(6, 6, groups=6), conv_bn(6, 4, 1), width=4), 10),
    "depthwise with multiplier": Pattern(
        lambda: Chain(conv_bn(3, 6), conv_bn(6, 12, groups=6), conv_bn(12, 4, 1), width=4), 10
    ),
    "depthwise on the image": Pattern(lambda: Chain(conv_bn(3, 6, groups=3), conv_bn(6, 4), width=4), 4),
    "grouped": Pattern(lambda: Chain(conv_bn(3, 8), conv_bn(8, 12, groups=4), conv_bn(12, 4), width=4), 2 + 3 + 4),
    "grouped to depthwise": Pattern(
        lambda: Chain(conv_bn(3, 8), conv_bn(8, 8, groups=4), conv_bn(8, 8, groups=8), conv(8, 4), width=4), 2 + 2 + 4
    ),
    "transposed": Pattern(
        lambda: Chain(conv_bn(3, 6), nn.ConvTranspose2d(6, 5, 2, stride=2), nn.ReLU(), conv(5, 4), width=4), 15
    ),
    "transposed grouped": Pattern(
        lambda: Chain(conv_bn(3, 6), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), conv(8, 4), width=4),
        3 + 4 + 4,
    ),
    "transposed depthwise": Pattern(
        lambda: Chain(conv_bn(3, 6), nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6), nn.ReLU(), conv(6, 4), width=4),
        10,
    ),
    "transposed depthwise with multiplier": Pattern(
        lambda: Chain(conv_bn(3, 6), nn.ConvTranspose2d(6, 12, 2, groups=6), nn.ReLU(), conv(12, 4), width=4), 10
    ),
    "pooling and upsampling": Pattern(
        lambda: Chain(
            conv_bn(3, 6),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2),
            conv(6, 5),
            nn.AvgPool2d(3, 1),
            nn.ReflectionPad2d(1),
            conv(5, 4),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.AdaptiveMaxPool2d(2),
            width=4,
        ),
        15,
    ),
    "pixel shuffle": Pattern(
        lambda: Chain(conv_bn(3, 6), conv(6, 8), nn.PixelShuffle(2), conv(2, 4), width=4), 6 + 2 + 4
    ),
    "residual": Pattern(Residual, 10),
    "convolution in the shortcut": Pattern(ConvShortcut, 6 + 4 + 7),
    "option-A shortcut": Pattern(OptionA, 8 + 6),
    "literal pad": Pattern(LiteralPad, 6, reason="literal number of channels"),
    "concat": Pattern(Concat, 15),
    "concat of itself": Pattern(ConcatSelf, 10),
    "dense connections": Pattern(Dense, 12),
    "squeeze and excitation": Pattern(SqueezeExcite, 11),
    "squeeze and excitation by linears": Pattern(LinearSqueezeExcite, 11),
    "channel shuffle": Pattern(Shuffle, 4 + 6 + 8),
    "module of channel shuffle": Pattern(
        lambda: Chain(conv_bn(3, 8), nn.ChannelShuffle(2), conv_bn(8, 4, groups=2), conv(4, 4), width=4), 2 + 2 + 4
    ),
    "layer norm and pointwise linears": Pattern(NormedLinears, 12, reason="layer_norm"),
    "flatten to linear": Pattern(FlattenLinear, 6 + 4 + 9),
    "adaptive maxima to linear": Pattern(MaximaLinear, 6),
    "view to linear": Pattern(ViewLinear, 6 + 4 + 9),
    "module called twice": Pattern(CalledTwice, 6),
    "module on two maps": Pattern(SharedHead, 6 + 4),
    "two inputs": Pattern(TwoInputs, 11, lambda: (*image(), *image(2))),
    "frames in the batch": Pattern(Frames, 10, lambda: (torch.ones(1, 4, 3, 8, 8, dtype=torch.float64),)),
    "tokens in the batch": Pattern(Tokens, 6 + 12 + 6),
    "layer without the batch": Pattern(OwnTable, 6 + 5, lambda: (torch.ones(2, 3, 8, 8, dtype=torch.float64),)),
    "two outputs": Pattern(TwoOutputs, 6),
    "features as output": Pattern(FeaturesOut, 6, reason="output of the network"),
    "spatial gate": Pattern(SpatialGate, 9, reason="broadcast over channels"),
    "in-place operators": Pattern(InPlace, 10),
    "in-place update of a view": Pattern(InPlaceView, 12),
    "view before an update of its base": Pattern(ViewBeforeUpdate, 6),
    "in-place update of a chunk": Pattern(ChunkUpdate, 6, reason="literal channel number"),
    "in-place update of a chunk alone": Pattern(ChunkUpdateAlone, 4 + 6),
    "in-place update of another name": Pattern(UpdatedTwice, 5 + 6),
    "tied weights": Pattern(Tied, 6),
    "weights made by an operator": Pattern(MadeWeights, 6, reason="a convolution with a computed weight"),
    "hard-coded channel number": Pattern(HardCoded, 14, reason="cut network"),
    "checked channel number": Pattern(Asserting, 14, reason="expected 8 channels"),
    "arithmetic on the channel number": Pattern(ScalesWithWidth, 14, reason="differ"),
    "attention": Pattern(MultiHeadAttention, 16),
    "multi-layer perceptron": Pattern(Mlp, 24),
    "no parameters": Pattern(Parameterless, 0),
    "mean over channels": Pattern(WholeMean, 5, reason="over channels"),
    "image added to features": Pattern(FrozenInputSum, 6 + 5, reason="fixed channels"),
    "selective kernels": Pattern(SelectiveKernels, 6 + 4 + 6),
    "softmax over channels": Pattern(ChannelSoftmax, 12, reason="'softmax' over channels"),
    "decoder": Pattern(Decoder, 6 + 5 + 4, lambda: (torch.ones(1, 8, dtype=torch.float64),)),
    "three dimensions": Pattern(lambda: VolumeNet(), 10, lambda: (torch.ones(1, 3, 4, 6, 6, dtype=torch.float64),)),
    "one dimension": Pattern(lambda: SignalNet(), 10, lambda: (torch.ones(1, 3, 16, dtype=torch.float64),)),
}


def build_pattern(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network called ``name`` in float64 with generic weights, in evaluation mode, and its inputs."""
    from search_spaces.verification import randomise

    pattern = PATTERNS[name]
    model = pattern.build()
    randomise(model, seed=3)
    return model.double().eval(), pattern.inputs()
