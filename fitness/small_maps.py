"""A convolution of maps that hold fewer samples than its kernel, as one matrix product.

On a map of 2 x 2, a padded 3 x 3 kernel multiplies 36 pairs of positions, of which 16 exist; the rest meets the zeros
of the padding. Written as a matrix from all samples of the input to all of the output, the convolution costs those 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fitness.folding import FoldedLayer

_MAX_GROWTH = 4  # of a matrix beyond the weights that it is made of


@dataclass
class SmallMapMatrices:
    """The matrices of one network's convolutions of small maps, made when first needed.

    Attributes:
        made: By layer name: the weight that a matrix was made of, the size of the maps, and the matrix.
    """

    made: dict[str, tuple[Tensor, tuple[int, int], Tensor]] = field(default_factory=dict)

    def of(self, layer: FoldedLayer, weight: Tensor, size: tuple[int, int]) -> Tensor:
        """Return :func:`as_matrix`; a layer whose ``weight`` has been replaced since gets a new one."""
        known = self.made.get(layer.name)
        if known is None or known[0] is not weight or known[1] != size:
            known = self.made[layer.name] = weight, size, as_matrix(layer, weight, size)
        return known[2]


def is_cheaper_as_matrix(layer: FoldedLayer, value: Tensor) -> bool:
    """Return whether ``layer`` multiplies less as a matrix product, where ``value`` ``(batch, channels, ...)`` is read.

    Only for planar convolutions of one group on the processor whose matrix has at most four times their weights, and
    never where gradients are wanted: there weights change in place.
    """
    if len(layer.kernel) != 2 or value.ndim != 4 or value.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return False
    if layer.record.groups > 1 or layer.record.is_transposed or layer.is_lopsided:
        return False
    size, n_taps = (value.shape[2], value.shape[3]), layer.kernel[0] * layer.kernel[1]
    n_inputs = size[0] * size[1]
    return n_inputs < n_taps and n_inputs * math.prod(output_size(layer, size)) <= _MAX_GROWTH * n_taps


def convolve_small_maps(
    layer: FoldedLayer, weight: Tensor, bias: Tensor, value: Tensor, matrices: SmallMapMatrices
) -> Tensor:
    """Return what the convolution makes of ``value``, as ``(batch, out, height, width)`` in channels-last order.

    Args:
        layer: Gives kernel, stride, padding and dilation.
        weight: ``(out, in, kernel, kernel)``.
        bias: ``(out,)``.
        value: ``(batch, in, height, width)``.
        matrices: Of the network that ``weight`` belongs to.
    """
    size = value.shape[2], value.shape[3]
    height, width = output_size(layer, size)
    matrix = matrices.of(layer, weight, size)
    rows = value.permute(0, 2, 3, 1).reshape(len(value), -1)
    result = torch.nn.functional.linear(rows, matrix, bias.repeat(height * width))
    return result.view(len(value), height, width, len(bias)).permute(0, 3, 1, 2)


def as_matrix(layer: FoldedLayer, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``weight`` ``(out, in, ...)`` as ``(height_out * width_out * out, height * width * in)``.

    Channels are the fastest dimension on both sides; pairs of positions that no tap connects have zeros.

    Args:
        layer: Gives kernel, stride, padding and dilation.
        weight: Of as many channels as are kept.
        size: Height and width of the input maps.
    """
    n_out, n_in = weight.shape[:2]
    taps = weight.movedim(1, -1).reshape(n_out, -1, n_in)
    taps = torch.cat([taps, taps.new_zeros((n_out, 1, n_in))], dim=1)
    blocks = [taps.index_select(1, row) for row in _taps_between(layer, size)]
    return torch.stack(blocks).reshape(len(blocks) * n_out, size[0] * size[1] * n_in)


def output_size(layer: FoldedLayer, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what ``layer`` makes of maps of ``size``."""
    height, width = (
        (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for side, pad, gap, kernel, step in zip(
            size, layer.padding, layer.dilation, layer.kernel, layer.stride, strict=True
        )
    )
    return height, width


def _taps_between(layer: FoldedLayer, size: tuple[int, int]) -> Tensor:
    """Return ``(output positions, input positions)`` the tap between each pair, or the number of taps where none is."""
    per_side = []
    for axis, n_outputs in enumerate(output_size(layer, size)):
        outputs, inputs = torch.arange(n_outputs).unsqueeze(1), torch.arange(size[axis])
        offset = inputs - outputs * layer.stride[axis] + layer.padding[axis]
        gap, kernel = layer.dilation[axis], layer.kernel[axis]
        is_tap = (offset >= 0) & (offset % gap == 0) & (offset // gap < kernel)
        per_side.append(torch.where(is_tap, offset // gap, -1))
    rows, columns = per_side[0][:, None, :, None], per_side[1][None, :, None, :]
    n_taps = layer.kernel[0] * layer.kernel[1]
    taps = torch.where((rows >= 0) & (columns >= 0), rows * layer.kernel[1] + columns, n_taps)
    return taps.flatten(2, 3).flatten(0, 1)
