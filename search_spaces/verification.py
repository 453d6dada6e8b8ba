"""Self-verification: a group is offered only after random genomes that cut it were sliced, run and compared."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.cuttable import CuttableSpace
from search_spaces.errors import TraceError
from search_spaces.genome import BoolArray
from search_spaces.masking import masked
from search_spaces.surgery import prune_model

#: Largest accepted difference of logits, relative to the largest logit. float32 agrees to about 1e-6.
TOLERANCE = 1e-3
_SMALL_GROUP = 4
_NOT_COMPARABLE = "cannot be verified: the outputs of the network are all zero or not finite"

_LOGGER = logging.getLogger(__name__)


def count_macs(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the MACs of one forward pass per sample, by PyTorch's own counter (which counts 2 operations per MAC).

    Independent of the search space: it watches the operators that really run.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*(value.clone() for value in inputs))
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
    """Return the largest absolute difference of two outputs over the largest absolute value of ``left``.

    Outputs of different shape, and such that hold NaN or infinity, differ by infinity.
    """
    worst = 0.0
    for a, b in zip(output_tensors(left), output_tensors(right), strict=True):
        if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
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


def make_generic(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """Give ``model`` generic weights and return generic inputs of the shapes and types of ``inputs``.

    Images that are zero, or weights that are, hide what is cut wrongly. What makes no comparable outputs, finite and
    not all zero, is passed over: random weights that overflow (networks without norms) for the model's own ones,
    normal inputs for positive ones, and these for ``inputs``. Integers stay. The same on every run.

    Returns:
        The inputs; ``None``, with the model's own weights, where nothing makes comparable outputs.
    """
    saved = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    normal = tuple(_random_like(value, torch.randn, generator) for value in inputs)
    positive = tuple(_random_like(value, torch.rand, generator) for value in inputs)
    for trial in (normal, positive, tuple(inputs)):
        randomise(model)
        if _is_comparable(model, trial):
            return trial
        model.load_state_dict(saved)
        if _is_comparable(model, trial):
            return trial
    return None


def _random_like(value: Tensor, draw: Callable[..., Tensor], generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return torch.empty_like(value).copy_(draw(value.shape, generator=generator, dtype=torch.float32))


def _is_comparable(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether ``model`` makes outputs of ``inputs`` in which a wrong cut would be seen."""
    try:
        outputs = output_tensors(_outputs_of(model, inputs))
    except TraceError:  # out of time
        raise
    except Exception:  # user code may raise anything, as on numbers that stand for something else
        _LOGGER.debug("generic inputs were refused", exc_info=True)
        return False
    return all(bool(tensor.isfinite().all()) for tensor in outputs) and any(bool(tensor.any()) for tensor in outputs)


def _outputs_of(model: nn.Module, inputs: Sequence[Tensor]) -> object:
    """Return what ``model`` makes of copies of ``inputs``, since its code may write into them."""
    with torch.no_grad():
        return model(*(value.clone() for value in inputs))


def in_full_precision(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Turn half-precision weights of ``model`` into float32 and return ``inputs`` to match.

    Rounding to eight bits would drown the differences that verification looks for.
    """
    half = (torch.float16, torch.bfloat16)
    if not any(tensor.dtype in half for tensor in model.parameters()):
        return tuple(inputs)
    model.float()
    return tuple(value.float() if value.dtype in half else value for value in inputs)


def _fill(tensor: Tensor, generator: torch.Generator) -> None:
    if tensor.ndim < 2:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    else:
        fan_in = max(tensor[0].numel(), 1)
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.4 / fan_in**0.5))


def failing_groups(
    model: nn.Module, space: CuttableSpace, inputs: Sequence[Tensor], rng: np.random.Generator
) -> Iterator[tuple[int, str]]:
    """Yield ``(group index, reason)`` for every group that cannot be cut safely, found by bisection.

    Args:
        model: A private copy of the network, in evaluation mode; its weights are replaced by generic ones.
        space: The space to verify.
        inputs: Example inputs; only their shapes and types matter, unless others make no comparable outputs.
        rng: Chooses the genomes.
    """
    generic = make_generic(model, in_full_precision(model, inputs))
    if generic is None:
        yield from ((index, _NOT_COMPARABLE) for index in range(len(space.groups)))
        return
    comparison = _Comparison(model, space, generic)
    # few genes make equal counts likely, and layers that must stay equally wide would go unnoticed: look more often
    n_rounds = 2 if all(group.size > _SMALL_GROUP for group in space.groups) else 4
    for _ in range(n_rounds):
        genome = _random_cut(space, rng)

        def disagreement(part: Sequence[int], genome: BoolArray = genome) -> str | None:
            return comparison.disagreement(_cut_only(space, part, genome)) if part else None

        yield from _culprits(disagreement, list(range(len(space.groups))))


def failing_blocks(
    model: nn.Module, space: CuttableSpace, inputs: Sequence[Tensor], rng: np.random.Generator
) -> Iterator[tuple[int, str]]:
    """Yield ``(index into space.blocks, reason)`` for every residual block that cannot be removed safely.

    Args:
        model: A private copy of the network, in evaluation mode; its weights are replaced by generic ones.
        space: The space to verify, sound in its channel genes.
        inputs: Example inputs; only their shapes and types matter, unless others make no comparable outputs.
        rng: Chooses what is cut beside the blocks.
    """
    generic = make_generic(model, in_full_precision(model, inputs))
    if generic is None:
        yield from ((index, _NOT_COMPARABLE) for index in range(len(space.blocks)))
        return
    comparison = _Comparison(model, space, generic)
    first = space.n_genes - len(space.blocks)
    for beside in (space.all_ones()[0], _random_cut(space, rng)):

        def disagreement(part: Sequence[int], beside: BoolArray = beside) -> str | None:
            genome = beside.copy()
            genome[first:] = True
            genome[[first + index for index in part]] = False
            return comparison.disagreement(genome) if part else None

        yield from _culprits(disagreement, list(range(len(space.blocks))))


def _culprits(disagreement: Callable[[Sequence[int]], str | None], indices: list[int]) -> Iterator[tuple[int, str]]:
    """Yield groups, and what is wrong with cutting them, without which the remaining ones can be cut.

    Args:
        disagreement: What is wrong when exactly the given groups are cut; ``None`` when nothing is.
        indices: All groups.
    """
    stack = [(indices, disagreement(indices))]
    while stack:
        part, reason = stack.pop()
        if reason is None:
            continue
        if len(part) == 1:
            yield part[0], reason
            continue
        halves = (part[: len(part) // 2], part[len(part) // 2 :])
        bad = [(half, why) for half in halves if (why := disagreement(half)) is not None]
        if bad:
            stack.extend(bad)
            continue
        passes, fails = (
            0,
            len(part),
        )  # only together do they fail: find a group that turns a passing start into a failing
        while fails - passes > 1:
            middle = (passes + fails) // 2
            why = disagreement(part[:middle])
            passes, fails = (middle, fails) if why is None else (passes, middle)
            reason = why or reason
        yield part[passes], reason
        rest = part[:passes] + part[passes + 1 :]
        stack.append((rest, disagreement(rest)))


def _random_cut(space: CuttableSpace, rng: np.random.Generator) -> BoolArray:
    """Return a genome that removes a random part of every group; of small groups at times nothing."""
    genome = np.ones(space.n_genes, np.bool_)
    for group in space.groups:
        allowed = [k for k in range(group.min_keep, group.size) if k % group.step == 0 or k == group.min_keep]
        if not allowed or (group.size <= _SMALL_GROUP and rng.random() < 0.3):
            continue
        dropped = rng.choice(group.size, group.size - int(rng.choice(allowed)), replace=False)
        genome[group.start + dropped] = False
    return genome


def _cut_only(space: CuttableSpace, indices: Sequence[int], genome: BoolArray) -> BoolArray:
    """Return a genome that removes of the groups ``indices`` what ``genome`` removes, and nothing else."""
    cut = np.ones_like(genome)
    for index in indices:
        genes = slice(space.groups[index].start, space.groups[index].stop)
        cut[genes] = genome[genes]
    return cut


class _Comparison:
    """Masked against cut networks of one space."""

    def __init__(self, model: nn.Module, space: CuttableSpace, inputs: Sequence[Tensor]) -> None:
        self.model, self.space, self.inputs = model, space, tuple(inputs)

    @functools.cached_property
    def in_double(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network and its inputs in float64."""
        inputs = tuple(value.double() if value.is_floating_point() else value for value in self.inputs)
        return copy.deepcopy(self.model).double(), inputs

    def disagreement(self, genome: BoolArray) -> str | None:
        """Return what is wrong with the network that ``genome`` describes, or ``None``."""
        try:
            gap, why = self._gap(self.model, self.inputs, genome)
            if why is None and gap > TOLERANCE and self.inputs[0].dtype == torch.float32:
                gap, why = self._gap(*self.in_double, genome)  # networks without norms amplify rounding
        except TraceError:  # out of time
            raise
        except Exception as error:  # user code may raise anything; it becomes the reason
            first = (str(error).splitlines() or [type(error).__name__])[0]
            _LOGGER.debug("a cut network failed", exc_info=True)
            return f"the cut network does not run: {type(error).__name__}: {first[:160]}"
        if why is not None:
            return why
        return None if gap <= TOLERANCE else f"masked and cut networks differ by {gap:.1e} relative"

    def _gap(self, model: nn.Module, inputs: Sequence[Tensor], genome: BoolArray) -> tuple[float, str | None]:
        with masked(model, self.space, genome) as dense:
            expected = _outputs_of(dense, inputs)
        small = prune_model(model, self.space, genome)
        actual = _outputs_of(small, inputs)
        predicted = int(self.space.macs(genome[None])[0]), int(self.space.n_params(genome[None])[0])
        counted = count_macs(small, inputs), sum(p.numel() for p in small.parameters())
        # a layer that does not see the batch leaves a fraction of a MAC per sample, which is rounded
        if abs(predicted[0] - counted[0]) > 1 or predicted[1] != counted[1]:
            return 0.0, f"(MACs, parameters) are {counted} and not {predicted} as predicted"
        return relative_difference(expected, actual), None
