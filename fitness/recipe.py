"""From a network and images to an evaluator, on this machine or on a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.data import ImageBatch, ImageData, normalise, plain_and_noisy
from fitness.evaluation import Evaluator
from fitness.final_network import final_images
from fitness.image_draws import IMAGE_STREAM, draw, draw_indices, evenly, unseen_first
from fitness.ladder import SHIPPED_RUNG, ModelSource, build_ladder, check_rung, needs_modules
from fitness.network import NETWORK_RUNG
from fitness.options import FitnessOptions
from fitness.precision import candidate_dtype
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.surgery import named_tensors

_WEIGHTS, _TEACHER = "tensor/", "teacher/"  # begin the names of arrays


@dataclass(frozen=True)
class EvaluatorRecipe:
    """Everything that an evaluator is made of, as plain data: it travels to workers without the network's code.

    Attributes:
        space: The traced search space.
        options: How to judge.
        mean: Per channel, of images in [0, 1].
        std: Likewise.
        device: Where candidates run.
        in_bfloat16: On which devices the network runs in bfloat16; in float32 on all others.
        part_sizes: Sizes of the parts of the fitness images, each of one kind.
        elite_part_sizes: Likewise, of the images of the rung that judges what will be shipped.
        rungs: Names of the rungs that the evaluator offers, cheapest first (:data:`fitness.ladder.RUNGS`).
        seed: Of what a finetuning draws.
        source: How the network's own modules are built, where a rung needs them; None for a Python object.
        arrays: Weights (``tensor/<name>``), those of the teacher where it is another network (``teacher/<name>``) and
            uint8 images; shared by the workers of one machine.
    """

    space: SearchSpace
    options: FitnessOptions
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str = "cpu"
    in_bfloat16: tuple[str, ...] = ()
    part_sizes: tuple[int, ...] = ()
    elite_part_sizes: tuple[int, ...] = ()
    rungs: tuple[str, ...] = (NETWORK_RUNG,)
    seed: int = 0
    source: ModelSource | None = None
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def with_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> EvaluatorRecipe:
        """Return this recipe with other content; ``{}`` strips it for the journey."""
        return replace(self, arrays=arrays)

    def with_network(self, model: nn.Module) -> EvaluatorRecipe:
        """Return this recipe with ``model``, of the same shapes, in place of its network, which stays the teacher.

        Candidates are cut from ``model`` and compensated towards its activations. Their predictions are compared with
        those of the network that the recipe was first made for.
        """
        weights = {name: array for name, array in self.arrays.items() if name.startswith(_WEIGHTS)}
        first = {_TEACHER + name.removeprefix(_WEIGHTS): array for name, array in weights.items()}
        return self.with_arrays({**first, **self.arrays, **_weight_arrays(model)})

    def program(self) -> Program:
        """Return the folded network."""
        return self._program(_WEIGHTS)

    def teacher(self) -> Program | None:
        """Return the folded network whose predictions count as right; None where that is the network itself."""
        return self._program(_TEACHER) if self.has_teacher else None

    @property
    def has_teacher(self) -> bool:
        """Whether predictions are compared with those of another network than the one that candidates are cut from."""
        return any(name.startswith(_TEACHER) for name in self.arrays)

    def _program(self, kind: str) -> Program:
        tensors = {
            name.removeprefix(kind): _tensor(array).to(self.device)
            for name, array in self.arrays.items()
            if name.startswith(kind)
        }
        return Program(self.space, tensors)

    def calibration_inputs(self) -> Tensor:
        """Return the normalised calibration images, in the dtype that candidates run in."""
        return self.inputs("calibration/images")

    def build(self, model: nn.Module | None = None) -> Evaluator:
        """Return the evaluator, with everything that depends on the dense network alone computed.

        Args:
            model: The dense network, where it is at hand: only a rung that finetunes needs it, and builds it from
                ``source`` otherwise.

        Raises:
            OptionError: A rung needs the network's modules, and there is neither ``model`` nor ``source``.
        """
        return build_ladder(self, model)

    def tensor(self, name: str) -> Tensor:
        """Return the array ``name`` on the device."""
        return _tensor(self.arrays[name]).to(self.device)

    def inputs(self, name: str) -> Tensor:
        """Return the images ``name``, normalised, in the dtype that candidates run in."""
        dtype = torch.bfloat16 if self.device in self.in_bfloat16 else torch.float32
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
    rungs: Sequence[str] = (NETWORK_RUNG,),
    source: ModelSource | None = None,
) -> EvaluatorRecipe:
    """Return the recipe of the evaluator for ``model``.

    Calibration images are training images; fitness images are validation images, as they are or as a mixture. The
    test set is not touched. The choice of images depends on ``seed`` and the data only. The rung that judges what will
    be shipped has validation images of its own, as far as there are enough, and the very calibration images of
    :func:`fitness.final_network.final_network`.

    Args:
        model: The dense network.
        space: Its search space.
        data: Where images come from.
        options: How to judge.
        seed: Chooses the images.
        device: Where candidates will run.
        rungs: What the evaluator offers, cheapest first; names of :data:`fitness.ladder.RUNGS`.
        source: How a worker can build ``model`` anew, where it has a name.

    Raises:
        UnknownNameError: There is no such rung.
    """
    for rung in rungs:
        check_rung(rung)
    options = options or FitnessOptions()
    rng = np.random.default_rng([seed, IMAGE_STREAM])
    calibration = draw(data.train, options.n_calibration_images, rng)
    judged = draw_indices(len(data.val), options.n_fitness_images, rng)
    fitness, part_sizes = _as_judged(data.val.take(judged), options, rng)
    arrays: dict[str, npt.NDArray[Any]] = _weight_arrays(model)
    arrays["calibration/images"] = calibration.images.numpy()
    arrays["calibration/labels"] = calibration.labels.numpy()
    arrays |= _judged_arrays("fitness", fitness, data.n_classes)
    elite_part_sizes: tuple[int, ...] = ()
    if SHIPPED_RUNG in rungs:
        rng = np.random.default_rng([seed, IMAGE_STREAM, 2])
        elite = data.val.take(unseen_first(len(data.val), judged, options.n_elite_images, rng))
        elite, elite_part_sizes = _as_judged(elite, options, rng)
        arrays |= _judged_arrays("elite", elite, data.n_classes)
        final = final_images(model, space, data, options, seed)
        arrays["elite/calibration"] = final[evenly(len(final), options.n_elite_calibration_images)].numpy()
    if needs_modules(rungs):
        lessons = draw(data.train, options.n_lessons, np.random.default_rng([seed, IMAGE_STREAM, 3]))
        arrays["lessons/images"], arrays["lessons/labels"] = lessons.images.numpy(), lessons.labels.numpy()
    return EvaluatorRecipe(
        space=space,
        options=options,
        mean=tuple(data.mean),
        std=tuple(data.std),
        device=str(device),
        in_bfloat16=tuple(
            place
            for place in dict.fromkeys((str(device), "cpu"))  # statistics are those of the processor
            if candidate_dtype(model, space, place) == torch.bfloat16
        ),
        part_sizes=part_sizes,
        elite_part_sizes=elite_part_sizes,
        rungs=tuple(rungs),
        seed=seed,
        source=source,
        arrays=arrays,
    )


def _weight_arrays(model: nn.Module) -> dict[str, npt.NDArray[Any]]:
    return {_WEIGHTS + name: tensor.detach().cpu().numpy() for name, tensor in named_tensors(model).items()}


def _as_judged(
    batch: ImageBatch, options: FitnessOptions, rng: np.random.Generator
) -> tuple[ImageBatch, tuple[int, ...]]:
    """Return the images that judge, and the sizes of their parts."""
    return plain_and_noisy(batch, rng=rng) if options.fitness_images == "mixture" else (batch, (len(batch),))


def _judged_arrays(name: str, batch: ImageBatch, n_classes: int) -> dict[str, npt.NDArray[Any]]:
    soft = batch.soft_labels
    if soft is None:
        soft = functional.one_hot(batch.labels, n_classes)
    return {f"{name}/images": batch.images.numpy(), f"{name}/soft_labels": soft.float().numpy()}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
