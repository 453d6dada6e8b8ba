"""Self-verification: a group is offered only after random genomes that cut it were sliced, run and compared."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.genome import BoolArray
from search_spaces.masking import masked
from search_spaces.surgery import prune_model

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

#: Largest accepted difference of logits, relative to the largest logit. float32 agrees to about 1e-6.
TOLERANCE = 1e-3

_LOGGER = logging.getLogger(__name__)


def count_macs(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the MACs of one forward pass per sample, by PyTorch's own counter (which counts 2 operations per MAC).

    Independent of the search space: it watches the operators that really run.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2 // int(inputs[0].shape[0])


def output_tensors(output: object) -> list[Tensor]:
    """Return all tensors in a network's output, in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in output_tensors(part)]
    return []


def relative_difference(left: object, right: object) -> float:
    """Return the largest absolute difference of two outputs over the largest absolute value of ``left``."""
    worst = 0.0
    for a, b in zip(output_tensors(left), output_tensors(right), strict=True):
        if a.shape != b.shape:
            return float("inf")
        scale = float(a.abs().max()) if a.numel() else 0.0
        gap = float((a - b).abs().max()) if a.numel() else 0.0
        worst = max(worst, gap / scale if scale > 0 else gap)
    return worst


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and running statistic a generic value, so that no zero or tie hides an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point():
                _fill(tensor, generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)


def _fill(tensor: Tensor, generator: torch.Generator) -> None:
    if tensor.ndim < 2:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    else:
        fan_in = max(tensor[0].numel(), 1)
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.4 / fan_in**0.5))


def failing_groups(
    model: nn.Module, space: SearchSpace, inputs: Sequence[Tensor], rng: np.random.Generator
) -> Iterator[tuple[int, str]]:
    """Yield ``(group index, reason)`` for every group that cannot be cut safely, found by bisection.

    Args:
        model: A private copy of the network, in evaluation mode; its weights are replaced by generic ones.
        space: The space to verify.
        inputs: Example inputs.
        rng: Chooses the genomes.
    """
    randomise(model)
    everything = list(range(len(space.groups)))
    for _ in range(2):
        yield from _bisect(model, space, inputs, everything, rng)


def _bisect(
    model: nn.Module, space: SearchSpace, inputs: Sequence[Tensor], indices: list[int], rng: np.random.Generator
) -> Iterator[tuple[int, str]]:
    stack = [indices]
    while stack:
        part = stack.pop()
        reason = _disagreement(model, space, inputs, _cut_only(space, part, rng)) if part else None
        if reason is None:
            continue
        if len(part) == 1:
            yield part[0], reason
            continue
        half = len(part) // 2
        halves = [part[:half], part[half:]]
        bad = [h for h in halves if _disagreement(model, space, inputs, _cut_only(space, h, rng)) is not None]
        if bad:
            stack.extend(bad)
        else:  # only together do they fail
            for index in part:
                yield index, f"fails together with other groups: {reason}"


def _cut_only(space: SearchSpace, indices: Sequence[int], rng: np.random.Generator) -> BoolArray:
    """Return a genome that removes a random part of the groups ``indices`` and nothing else."""
    genome = np.ones(space.n_genes, np.bool_)
    for index in indices:
        group = space.groups[index]
        allowed = [k for k in range(group.min_keep, group.size) if k % group.step == 0 or k == group.min_keep]
        keep = int(rng.choice(allowed)) if allowed else group.size
        dropped = rng.choice(group.size, group.size - keep, replace=False)
        genome[group.start + dropped] = False
    return genome


def _disagreement(model: nn.Module, space: SearchSpace, inputs: Sequence[Tensor], genome: BoolArray) -> str | None:
    with torch.no_grad():
        with masked(model, space, genome) as dense:
            expected = dense(*inputs)
        try:
            small = prune_model(model, space, genome)
            actual = small(*inputs)
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            _LOGGER.debug("a cut network failed", exc_info=True)
            return f"the cut network does not run: {type(error).__name__}: {first[:160]}"
    gap = relative_difference(expected, actual)
    return None if gap <= TOLERANCE else f"masked and cut networks differ by {gap:.1e} relative"
