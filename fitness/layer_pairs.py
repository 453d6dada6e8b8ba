"""Two layers with a ReLU between them, solved together for what the second one makes.

Solved one by one, the first of two layers aims at the dense network's own maps, of which some channels are gone. What
counts is what the second layer makes of them. Where the ReLU is open is known, so that this is linear in the first
layer's weights but for those places that open or close on the way: a Gauss-Newton step is one linear least-squares
problem over all its weights, which LSMR solves. There is no learning rate, no label and no loss beside the layer's own.

References:
    Fong 2011, LSMR: an iterative algorithm for sparse least-squares problems. The use of it here is our own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from fitness.folding import FoldedLayer
from fitness.program import Program
from fitness.regression import LayerTarget, gather_outputs, gather_patches, to_rows

_N_ITERATIONS = 8  # of LSMR; few of them regularise, as a ridge would
_N_HALVINGS = 3  # of a step that raises the error, since too many places opened or closed
_MAX_ELEMENTS = 6e7  # of the first layer's patches, in float32
_EQUATIONS_PER_WEIGHT = 8


@dataclass(frozen=True)
class LayerPair:
    """A convolution whose output only a ReLU reads, whose output only a second convolution reads.

    Attributes:
        first: The layer before the ReLU.
        between: Name of the ReLU's value.
        second: The layer behind it.
    """

    first: FoldedLayer
    between: str
    second: FoldedLayer


def layer_pairs(program: Program, solved: Collection[str]) -> dict[str, LayerPair]:
    """Return, by the second's name, the pairs of planar convolutions in ``program`` both of which are ``solved``."""
    readers = program.readers()
    pairs: dict[str, LayerPair] = {}
    for name, second in program.layers.items():
        between = program.input_of[name]
        makers = [step.operation for step in program.steps if step.operation.name == between]
        if not makers or makers[0].op != "relu" or len(readers[between]) != 1 or between in program.outputs:
            continue
        first = program.layers.get(makers[0].args[0].name)
        if first is None or len(readers[first.name]) != 1 or first.name in program.outputs:
            continue
        is_planar = len(first.kernel) == len(second.kernel) == 2
        if is_planar and first.name in solved and name in solved:
            pairs[name] = LayerPair(first, between, second)
    return pairs


@dataclass(frozen=True)
class PairProblem:
    """What the first layer of a pair is solved for, at sampled output positions of the second.

    Attributes:
        patches: ``(n * taps, k + 1)`` what the first layer reads where the second one looks, and 1 for its bias; zero
            where the second one looks beyond the map.
        head: ``(out, taps * channels)`` weights of the second layer.
        offset: ``(n, out)`` or ``(out,)`` what is added to what it makes of the maps: its bias, and the shortcut.
        rows: ``(n, out)`` what the sum should be.
        is_rectified: Only a ReLU reads the sum: where it should be negative, any negative value will do.
    """

    patches: Tensor
    head: Tensor
    offset: Tensor
    rows: Tensor
    is_rectified: bool

    def residual(self, weights: Tensor) -> Tensor:
        """Return ``(n, out)`` what is missing with ``weights`` ``(channels, k + 1)`` of the first layer."""
        return self._missing(self._reached(self.patches @ weights.T))

    def error(self, weights: Tensor) -> float:
        """Return the mean squared residual."""
        return float(self.residual(weights).square().mean())

    def step(self, weights: Tensor) -> Tensor:
        """Return the Gauss-Newton step ``(channels, k + 1)`` from ``weights``."""
        before = self.patches @ weights.T
        is_open = (before > 0).float()
        reached = self._reached(before)
        counts = ((self.rows >= 0) | (reached > 0)).float() if self.is_rectified else torch.ones_like(self.rows)
        scale = self.patches.square().mean(0).sqrt().clamp(min=1e-6)  # of a weight, so that all are of one size

        def forwards(flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            change = _tensor(flat, weights) / scale
            moved = (is_open * (self.patches @ change.T)).reshape(len(self.rows), -1) @ self.head.T
            return _flat(moved * counts)

        def backwards(flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            outputs = _tensor(flat, self.rows) * counts
            maps = is_open * (outputs @ self.head).reshape(is_open.shape)
            return _flat((maps.T @ self.patches) / scale)

        shape = (self.rows.numel(), weights.numel())
        operator = LinearOperator(shape, matvec=forwards, rmatvec=backwards, dtype=np.float64)
        solution = lsmr(operator, _flat(self._missing(reached)), maxiter=_N_ITERATIONS)[0]
        return _tensor(solution, weights) / scale

    def _reached(self, before: Tensor) -> Tensor:
        return before.clamp(min=0).reshape(len(self.rows), -1) @ self.head.T + self.offset

    def _missing(self, reached: Tensor) -> Tensor:
        missing = self.rows - reached
        return torch.where(self.rows < 0, (-reached).clamp(max=0), missing) if self.is_rectified else missing


def refine(problem: PairProblem, weights: Tensor) -> Tensor | None:
    """Return better ``weights`` ``(channels, k + 1)`` of the first layer; None where no step lowers the error."""
    error, step = problem.error(weights), problem.step(weights)
    if not bool(torch.isfinite(step).all()):
        return None
    for power in range(_N_HALVINGS + 1):
        refined = weights + step / 2**power
        if problem.error(refined) < error:
            return refined
    return None


def pair_problem(
    pair: LayerPair,
    inputs: Tensor,
    values: Mapping[str, Any],
    solved: tuple[Tensor, Tensor],
    target: LayerTarget,
    *,
    max_multiplications: float,
) -> PairProblem | None:
    """Return the problem at as many evenly chosen positions as memory and time allow; None where these are too few.

    Args:
        pair: The layers.
        inputs: ``(batch, channels, height, width)`` what the first layer reads.
        values: The network's values so far; ``pair.between`` and the target's partner are read.
        solved: Weight and bias of the second layer.
        target: Of the second layer, its kept channels alone.
        max_multiplications: Bound on those of the whole step.
    """
    first, second = pair.first, pair.second
    weight, bias = solved
    n_images, n_positions = target.positions.shape
    n_taps, n_weights = second.kernel[0] * second.kernel[1], inputs.shape[1] * first.kernel[0] * first.kernel[1] + 1
    per_row = n_taps * n_weights
    n_rows = min(_MAX_ELEMENTS / per_row, max_multiplications / (2 * _N_ITERATIONS * per_row * weight.shape[1]))
    n_rows = min(int(n_rows), n_images * n_positions)
    if n_rows * target.rows.shape[1] < _EQUATIONS_PER_WEIGHT * n_weights * weight.shape[1]:
        return None
    device, per_image = inputs.device, -(-n_rows // n_images)
    n_used = n_rows // per_image
    images = torch.arange(n_used, device=device) * n_images // n_used
    # Those of an image are in order: from the next one, the next ones are taken.
    columns = (torch.arange(per_image, device=device) * n_positions // per_image + images[:, None]) % n_positions
    columns = columns.sort(dim=1).values
    chosen = target.positions[images].gather(1, columns)
    hidden, is_inside = _positions_before(second, chosen, target.output_width, values[pair.between].shape[2:])
    patches = gather_patches(first, inputs[images], hidden, values[pair.between].shape[3])
    ones = patches.new_full((len(patches), 1), float(first.has_bias))
    offset = bias if target.partner is None else bias + gather_outputs(values[target.partner][images], chosen)
    return PairProblem(
        patches=torch.cat([patches, ones], dim=1).mul_(is_inside),
        head=to_rows(weight),
        offset=offset,
        rows=target.rows[(images[:, None] * n_positions + columns).reshape(-1)],
        is_rectified=target.is_rectified,
    )


def _positions_before(
    layer: FoldedLayer, positions: Tensor, output_width: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return where ``layer`` looks for its outputs at ``positions`` ``(batch, n)``.

    Returns:
        Flat positions ``(batch, n * taps)`` in maps of ``size``, and ``(batch * n * taps, 1)`` whether they are inside.
    """
    places, is_inside = [], torch.ones(1, dtype=torch.bool, device=positions.device)
    for axis, outputs in enumerate((positions // output_width, positions % output_width)):
        taps = torch.arange(layer.kernel[axis], device=positions.device) * layer.dilation[axis] - layer.padding[axis]
        taps = taps.unsqueeze(1 - axis).expand(layer.kernel).reshape(-1)
        place = outputs.unsqueeze(-1) * layer.stride[axis] + taps
        is_inside = is_inside & (place >= 0) & (place < size[axis])
        places.append(place.clamp(0, size[axis] - 1))
    flat = places[0] * size[1] + places[1]
    return flat.flatten(1), is_inside.reshape(-1, 1)


def _flat(values: Tensor) -> npt.NDArray[np.float64]:
    flat: npt.NDArray[np.float64] = values.double().reshape(-1).cpu().numpy()
    return flat


def _tensor(flat: npt.NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(flat).to(like.device, torch.float32).reshape(like.shape)
