"""From a network and images to an evaluator, on this machine or on a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.compensation import SequentialCompensation
from fitness.data import ImageBatch, ImageData, normalise, plain_and_noisy
from fitness.evaluation import Evaluator
from fitness.merging import MergeCompensation
from fitness.network import NetworkEvaluator
from fitness.options import FitnessOptions
from fitness.precision import gains_by_bfloat16
from fitness.program import Program
from fitness.recalibration import recalibrate
from fitness.writeback import compensated_model
from search_spaces import SearchSpace, prune_model
from search_spaces.genome import BoolArray
from search_spaces.surgery import named_tensors

_IMAGE_STREAM = 0x1A6E5


@dataclass(frozen=True)
class EvaluatorRecipe:
    """Everything that an evaluator is made of, as plain data: it travels to workers without the network's code.

    Attributes:
        space: The traced search space.
        options: How to judge.
        mean: Per channel, of images in [0, 1].
        std: Likewise.
        device: Where candidates run.
        part_sizes: Sizes of the parts of the fitness images, each of one kind.
        arrays: Weights (``tensor/<name>``) and uint8 images; shared by the workers of one machine.
    """

    space: SearchSpace
    options: FitnessOptions
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str = "cpu"
    part_sizes: tuple[int, ...] = ()
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def with_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> EvaluatorRecipe:
        """Return this recipe with other content; ``{}`` strips it for the journey."""
        return replace(self, arrays=arrays)

    def program(self) -> Program:
        """Return the folded network."""
        tensors = {
            name.removeprefix("tensor/"): _tensor(array).to(self.device)
            for name, array in self.arrays.items()
            if name.startswith("tensor/")
        }
        return Program(self.space, tensors)

    def calibration_inputs(self) -> Tensor:
        """Return the normalised calibration images, in the dtype that candidates run in."""
        return self._inputs("calibration/images")

    def build(self) -> Evaluator:
        """Return the evaluator, with everything that depends on the dense network alone computed."""
        return NetworkEvaluator(
            self.program(),
            self._inputs("fitness/images"),
            _tensor(self.arrays["fitness/soft_labels"]).to(self.device),
            self.calibration_inputs(),
            self.options,
            self.part_sizes,
        )

    def _inputs(self, name: str) -> Tensor:
        dtype = torch.bfloat16 if gains_by_bfloat16(self.device) else torch.float32
        images = normalise(_tensor(self.arrays[name]), self.mean, self.std).to(self.device, dtype)
        return images.contiguous(memory_format=torch.channels_last)


def make_recipe(
    model: nn.Module,
    space: SearchSpace,
    data: ImageData,
    options: FitnessOptions | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> EvaluatorRecipe:
    """Return the recipe of the evaluator for ``model``.

    Calibration images are training images; fitness images are validation images, as they are or as a mixture. The
    test set is not touched. The choice of images depends on ``seed`` and the data only.

    Args:
        model: The dense network.
        space: Its search space.
        data: Where images come from.
        options: How to judge.
        seed: Chooses the images.
        device: Where candidates will run.
    """
    options = options or FitnessOptions()
    rng = np.random.default_rng([seed, _IMAGE_STREAM])
    calibration = _draw(data.train, options.n_calibration_images, rng)
    fitness = _draw(data.val, options.n_fitness_images, rng)
    part_sizes: tuple[int, ...] = (len(fitness),)
    if options.fitness_images == "mixture":
        fitness, part_sizes = plain_and_noisy(fitness, rng=rng)
    soft = fitness.soft_labels
    if soft is None:
        soft = functional.one_hot(fitness.labels, data.n_classes).float()
    arrays: dict[str, npt.NDArray[Any]] = {
        f"tensor/{name}": tensor.detach().cpu().numpy() for name, tensor in named_tensors(model).items()
    }
    arrays["calibration/images"] = calibration.images.numpy()
    arrays["fitness/images"] = fitness.images.numpy()
    arrays["fitness/soft_labels"] = soft.float().numpy()
    return EvaluatorRecipe(space, options, tuple(data.mean), tuple(data.std), str(device), part_sizes, arrays)


def final_network(
    model: nn.Module,
    space: SearchSpace,
    genome: BoolArray,
    data: ImageData,
    options: FitnessOptions | None = None,
    *,
    seed: int = 0,
) -> nn.Module:
    """Return the small network that ``genome`` describes, compensated with all care; no gradient step is taken.

    Args:
        model: The dense network, on the CPU; not changed.
        space: Its search space.
        genome: ``(n_genes,)``.
        data: Training images are used, nothing else.
        options: ``compensation``, ``final_calibration_images`` and ``final_positions`` count here.
        seed: Chooses the calibration images.
    """
    options = options or FitnessOptions()
    rng = np.random.default_rng([seed, _IMAGE_STREAM, 1])
    images = _draw(data.train, options.final_calibration_images, rng).images
    inputs = normalise(images, data.mean, data.std)
    if options.compensation == "none":
        return prune_model(model, space, genome).eval()
    if options.compensation == "recalibrate":
        small = prune_model(model, space, genome).eval()
        recalibrate(small, inputs.split(options.batch_size))
        return small
    program = Program(space, named_tensors(model))
    if options.compensation == "merge":
        return compensated_model(model, program, MergeCompensation(program, inputs)(genome))
    solve = replace(
        options.solve,
        n_positions=options.final_positions,
        max_multiplications=options.final_multiplications,
        every_layer=True,
        n_rectified_passes=options.final_rectified_passes,
    )
    tensors = SequentialCompensation(program, inputs, solve)(genome)
    return compensated_model(model, program, tensors)


def _draw(split: Any, n: int, rng: np.random.Generator) -> ImageBatch:
    """Return ``n`` images of ``split``, or all where it has fewer, drawn without replacement."""
    indices = rng.choice(len(split), min(n, len(split)), replace=False)
    batch: ImageBatch = split.take(np.sort(indices))
    return batch


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
