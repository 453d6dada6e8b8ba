"""The feature maps that wavelet aggregation judges: those that the first reader of each channel group sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitness.folding import FoldedLayer
from fitness.program import Program
from fitness.wavelet_transform import WaveletOptions
from search_spaces.genome import IntArray

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class GroupMaps:
    """The feature maps of one channel group.

    Attributes:
        values: ``(n, size, height, width)``.
        is_per_image: Whether there is one map per image, in the order of the images. A network that folds frames or
            tiles into the batch has others.
    """

    values: npt.NDArray[np.float32]
    is_per_image: bool


def collect_maps(program: Program, inputs: Tensor, options: WaveletOptions) -> dict[int, GroupMaps]:
    """Return the maps of every group that a layer reads, in float32.

    Of each group as many images, at least one, as fit into ``options.max_bytes`` in float32: the bound is on the maps
    of one group, and all groups are held at once.
    """
    readers = _readers(program)
    parts: dict[int, list[npt.NDArray[np.float32]]] = {}
    held: dict[int, int] = {}
    folded: set[int] = set()
    n_images = 0  # of the batch that is running

    def record(layer: FoldedLayer, values: Mapping[str, Any]) -> None:
        for index, places in readers.get(layer.name, ()):
            maps = _maps(values[program.input_of[layer.name]], layer, torch.from_numpy(places))
            if len(maps) != n_images:
                folded.add(index)
            per_image = maps[0].numel() * _FLOAT_BYTES
            n_left = max(1, options.max_bytes // max(per_image, 1)) - held.get(index, 0)
            if n_left > 0:
                held[index] = held.get(index, 0) + min(n_left, len(maps))
                parts.setdefault(index, []).append(maps[:n_left].float().cpu().numpy())

    dense = program.slice(program.space.all_ones()[0]).cast(inputs.dtype)
    with torch.inference_mode():
        for part in inputs.split(options.batch_size):
            n_images = len(part)
            program.run(dense, [part], on_layer=record)
    return {index: GroupMaps(np.concatenate(batches), index not in folded) for index, batches in parts.items()}


def _readers(program: Program) -> dict[str, list[tuple[int, IntArray]]]:
    """Return, per layer, the groups that it reads first, with the input positions ``(size, m)`` of their genes."""
    readers: dict[str, list[tuple[int, IntArray]]] = {}
    found: set[int] = set()
    for layer in program.layer_order():
        if layer.in_genes is None:
            continue
        for index, group in enumerate(program.space.groups):
            if index in found or group.start not in layer.in_genes:
                continue
            places = [np.flatnonzero(layer.in_genes == gene) for gene in range(group.start, group.stop)]
            if layer.kernel:  # a gene that stands for several channels is judged by the first
                places = [place[:1] for place in places]
            found.add(index)
            readers.setdefault(layer.name, []).append((index, np.stack(places)))
    return readers


def _maps(value: Tensor, layer: FoldedLayer, places: Tensor) -> Tensor:
    if layer.kernel:
        maps = value[:, places[:, 0]]
        return maps.unsqueeze(2) if maps.ndim == 3 else maps.flatten(2, -2)
    if value.ndim > 2:  # features last: the dimensions between are places
        return value[..., places[:, 0]].movedim(-1, 1).flatten(2).unsqueeze(2)
    side = int(places.shape[1] ** 0.5)
    square = (side, side) if side * side == places.shape[1] else (1, places.shape[1])
    return value[:, places].reshape(len(value), len(places), *square)
