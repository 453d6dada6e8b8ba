"""The small networks that are handed back: cut from the dense network and adapted with all care."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fitness.compensation import SequentialCompensation
from fitness.data import ImageData, crop_turn_and_jitter, normalise
from fitness.image_draws import IMAGE_STREAM, draw
from fitness.ladder import final_solve
from fitness.merging import MergeCompensation
from fitness.options import FitnessOptions
from fitness.precision import candidate_dtype
from fitness.program import Program, SlicedTensors, largest_activation
from fitness.recalibration import recalibrate
from fitness.writeback import compensated_model
from search_spaces import SearchSpace, prune_model
from search_spaces.genome import BoolArray
from search_spaces.surgery import named_tensors

_Compensate = Callable[[BoolArray], SlicedTensors]


class FinalNetwork(NamedTuple):
    """A small network, on the CPU and in evaluation mode.

    Attributes:
        network: It.
        uncompensated: Layers that keep their weights, since their regression is ill-conditioned.
    """

    network: nn.Module
    uncompensated: tuple[str, ...] = ()


class FinalNetworks:
    """Makes the small networks of genomes; no gradient step is taken.

    The first call computes what depends on the dense network alone, all others take it from there. Calls from several
    threads at the same time are fine; each needs memory for the calibration images' activations.

    Args:
        model: The dense network, on the CPU; not changed.
        space: Its search space.
        data: Training images are used, nothing else.
        options: ``compensation`` and all that begins with ``final_`` count here.
        seed: Chooses the calibration images.
        raise_if_stopped: Called again and again while a network is made; an error that it raises ends the call.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        data: ImageData,
        options: FitnessOptions | None = None,
        *,
        seed: int = 0,
        raise_if_stopped: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._space, self._data, self._seed = model, space, data, seed
        self._options = options or FitnessOptions()
        self._raise_if_stopped = raise_if_stopped or (lambda: None)
        self._lock = threading.Lock()
        self._shared: tuple[Program, _Compensate] | None = None

    def __call__(self, genome: BoolArray) -> FinalNetwork:
        """Return the network that ``genome`` ``(n_genes,)`` describes."""
        compensation = self._options.final_compensation
        if compensation in ("none", "recalibrate"):
            small = prune_model(self._model, self._space, genome).eval()
            if compensation == "recalibrate":
                recalibrate(small, self._batches())
            return FinalNetwork(small)
        program, compensate = self._prepared()
        tensors = compensate(genome)
        return FinalNetwork(compensated_model(self._model, program, tensors), tensors.uncompensated)

    def _inputs(self) -> Tensor:
        images = final_images(self._model, self._space, self._data, self._options, self._seed)
        return normalise(images, self._data.mean, self._data.std)

    def _batches(self) -> Iterator[Tensor]:
        """Yield the images in batches; one image alone has no variance, and goes with the batch before it."""
        batches = list(self._inputs().split(self._options.batch_size))
        if len(batches) > 1 and len(batches[-1]) < 2:
            batches[-2:] = [torch.cat(batches[-2:])]
        for batch in batches:
            self._raise_if_stopped()
            yield batch

    def _prepared(self) -> tuple[Program, _Compensate]:
        """Return the dense program and what compensates the tensors of a genome."""
        with self._lock:
            if self._shared is None:
                program = Program(self._space, named_tensors(self._model))
                self._shared = program, self._compensation(program)
            return self._shared

    def _compensation(self, program: Program) -> _Compensate:
        inputs = self._inputs()
        if self._options.final_compensation == "merge":
            return MergeCompensation(program, inputs)
        inputs = inputs.to(candidate_dtype(self._model, self._space, "cpu"))  # solves and weights stay in float32
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        solve = final_solve(self._options)
        return SequentialCompensation(program, inputs, solve, raise_if_stopped=self._raise_if_stopped)


def final_network(
    model: nn.Module,
    space: SearchSpace,
    genome: BoolArray,
    data: ImageData,
    options: FitnessOptions | None = None,
    *,
    seed: int = 0,
) -> nn.Module:
    """Return the small network that ``genome`` ``(n_genes,)`` describes; see :class:`FinalNetworks`."""
    return FinalNetworks(model, space, data, options, seed=seed)(genome).network


def final_images(model: nn.Module, space: SearchSpace, data: ImageData, options: FitnessOptions, seed: int) -> Tensor:
    """Return the uint8 training images from which the network that is handed back is compensated.

    So many that the largest activation of all of them stays within ``options.final_max_bytes`` in float32. Where layers
    are solved sequentially, ``options.final_augmented_share`` of them are augmented.
    """
    rng = np.random.default_rng([seed, IMAGE_STREAM, 1])
    program = Program(space, named_tensors(model))
    n_elements = largest_activation(program, normalise(data.train.take(np.arange(1)).images, data.mean, data.std))
    n_fitting = max(1, options.final_max_bytes // (4 * n_elements))
    images = draw(data.train, min(options.final_calibration_images, n_fitting), rng).images
    n_augmented = int(options.final_augmented_share * len(images))
    if options.final_compensation != "sequential" or not n_augmented:
        return images
    rows = torch.from_numpy(np.sort(rng.permutation(len(images))[:n_augmented]))
    images = images.clone()
    images[rows] = crop_turn_and_jitter(images[rows], rng=rng, flip=data.may_flip)
    return images
