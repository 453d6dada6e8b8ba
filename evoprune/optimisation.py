"""The gradient loop that training from scratch and finetuning share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fitness.data import ImageBatch, ImageData, ImageSplit, crop_and_flip, normalise
from fitness.gradients import Descent, autocast, deterministic_kernels, first_logits
from search_spaces.errors import EvoPruneError, check_rules

# inputs (n, C, H, W) float32 and the batch that they came from -> scalar loss
BatchLoss = Callable[[Tensor, ImageBatch], Tensor]


class TrainingError(EvoPruneError, RuntimeError):
    """Gradient steps led to a loss that is not finite."""


class OnProgress(Protocol):
    """Hears of every gradient step."""

    def __call__(self, epoch: int, n_epochs: int, step: int, n_steps: int, loss: float) -> None:
        """Take the 0-based ``epoch``, the 1-based ``step`` of all ``n_steps``, and the step's ``loss``."""


@dataclass(frozen=True)
class GradientRecipe:
    """Stochastic gradient descent with Nesterov momentum; the learning rate warms up linearly, then falls as a cosine.

    Attributes:
        epochs: Passes over the training images, at least 1.
        batch_size: Images per step, at least 2; an epoch is cut into steps of nearly equal size.
        learning_rate: At its highest, positive.
        momentum: In [0, 1).
        weight_decay: Of convolutions and linears; biases and batch norms have none.
        warm_up_share: Part of all steps in which the learning rate grows, in [0, 1).
        max_gradient_norm: Longer gradients are shortened to this, positive.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up_share: float = 0.1
    max_gradient_norm: float = 5.0

    def __post_init__(self) -> None:
        """Check every rule once.

        Raises:
            OptionError: A value breaks its rule.
        """
        check_rules(
            [
                ("epochs >= 1", self.epochs >= 1, self.epochs),
                ("batch_size >= 2", self.batch_size >= 2, self.batch_size),
                ("0 < learning_rate < inf", 0 < self.learning_rate < math.inf, self.learning_rate),
                ("0 <= momentum < 1", 0 <= self.momentum < 1, self.momentum),
                ("0 <= weight_decay < inf", 0 <= self.weight_decay < math.inf, self.weight_decay),
                ("0 <= warm_up_share < 1", 0 <= self.warm_up_share < 1, self.warm_up_share),
                ("0 < max_gradient_norm", self.max_gradient_norm > 0, self.max_gradient_norm),
            ]
        )


@dataclass(frozen=True)
class History:
    """What happened, one entry per epoch that was begun.

    Attributes:
        train_loss: Mean loss of the epoch's steps.
        val_accuracy: On the validation images after the epoch, as a fraction.
        n_steps: Gradient steps taken.
        seconds: Wall time; not part of equality.
        timed_out: Whether ``max_time_s`` ended it before the last epoch's end.
    """

    train_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    n_steps: int
    seconds: float = field(compare=False)
    timed_out: bool = False


def fit(
    model: nn.Module,
    data: ImageData,
    recipe: GradientRecipe,
    batch_loss: BatchLoss,
    *,
    rng: np.random.Generator,
    device: torch.device,
    augment: bool = True,
    max_time_s: float | None = None,
    on_progress: OnProgress | None = None,
) -> History:
    """Train ``model`` in place on ``data.train`` and leave it on ``device`` in eval mode, contiguous.

    The last epoch's weights stay; validation accuracy is reported and chooses nothing. Equal arguments give equal
    weights on one kind of device, unless ``max_time_s`` is given: then the schedule follows the clock where that runs
    ahead of the steps, so that the learning rate has fallen to 0 when the time is over.

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    started = time.perf_counter()
    model.to(device).to(memory_format=torch.channels_last)
    descent = Descent(
        model,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        warm_up_share=recipe.warm_up_share,
        max_gradient_norm=recipe.max_gradient_norm,
    )
    n_batches = max(1, math.ceil(len(data.train) / recipe.batch_size))
    n_steps = n_batches * recipe.epochs
    train_loss: list[float] = []
    val_accuracy: list[float] = []
    step, timed_out = 0, False
    with reproducible(device, seed=int(rng.integers(2**63))):
        for epoch in range(recipe.epochs):
            model.train()
            losses: list[float] = []
            for indices in np.array_split(rng.permutation(len(data.train)), n_batches):
                time_share = (time.perf_counter() - started) / max_time_s if max_time_s else 0.0
                timed_out = time_share >= 1 and step > 0
                if timed_out:
                    break
                progress = min(max((step + 0.5) / n_steps, time_share), 1.0)
                batch = data.train.take(indices)
                if augment:
                    images = crop_and_flip(batch.images, rng=rng, flip=data.may_flip)
                    batch = ImageBatch(images, batch.labels)
                batch = batch.to(device)
                loss = batch_loss(normalise(batch.images, data.mean, data.std), batch)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise TrainingError(
                        f"the loss must be finite, but it is {losses[-1]} in step {step + 1} of {n_steps}; lower the "
                        f"learning rate (now {recipe.learning_rate}) or check the weights that training starts from"
                    )
                descent.step(loss, progress)
                step += 1
                if on_progress is not None:
                    on_progress(epoch, recipe.epochs, step, n_steps, losses[-1])
            if losses:
                train_loss.append(float(np.mean(losses)))
                val_accuracy.append(accuracy(model, data.val, data, device=device))
            if timed_out:
                break
    descent.finish()
    model.eval().to(memory_format=torch.contiguous_format)  # the last bits of its answers depend on it
    return History(tuple(train_loss), tuple(val_accuracy), step, time.perf_counter() - started, timed_out)


def accuracy(
    model: nn.Module,
    split: ImageSplit,
    data: ImageData,
    *,
    device: torch.device,
    raise_if_stopped: Callable[[], None] | None = None,
) -> float:
    """Return the share of images of ``split`` that ``model``, put in eval mode, gets right.

    ``raise_if_stopped`` is called before every batch; an error that it raises ends the test.
    """
    model.eval()
    n_right = 0
    with torch.inference_mode():
        for batch in split.batches(256):
            if raise_if_stopped is not None:
                raise_if_stopped()
            inputs = normalise(batch.images.to(device), data.mean, data.std)
            with autocast(device):
                logits = first_logits(model(inputs))
            n_right += int((logits.argmax(dim=1).cpu() == batch.labels).sum())
    return n_right / len(split)


@contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators (dropout) and take deterministic kernels; everything is as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), deterministic_kernels():
        torch.manual_seed(seed)
        yield
