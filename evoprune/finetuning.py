"""Finetuning of a small network by distillation from the dense one that it was cut from."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evoprune.optimisation import GradientRecipe, History, OnProgress, fit
from fitness.data import ImageBatch, ImageData
from fitness.gradients import autocast, distillation_loss, first_logits
from search_spaces.errors import OptionError, check_rules

_LEARNING_RATE = 0.02
_LEARNING_RATE_PER_EPOCH = 0.005


def peak_learning_rate(epochs: float) -> float:
    """Return the peak of the schedule that suits so many ``epochs``, positive; short finetunings take small steps.

    A compensated network is near an optimum already. What a high rate disturbs there, one epoch does not mend: on
    ResNet-56 the divergence from the dense network rose from 0.020 to 0.049 at 0.02 and fell to 0.015 at 0.005.
    """
    return min(_LEARNING_RATE, _LEARNING_RATE_PER_EPOCH * epochs)


@dataclass(frozen=True)
class FinetuningRecipe(GradientRecipe):
    """How a small network is finetuned.

    Attributes:
        temperature: T of the distillation loss, positive.
        alpha: Weight of the teacher against the labels, in [0, 1].
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = _LEARNING_RATE
    warm_up_share: float = 0.05
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        """Check every rule once.

        Raises:
            OptionError: A value breaks its rule.
        """
        super().__post_init__()
        check_rules(
            [
                ("0 < temperature < inf", 0 < self.temperature < math.inf, self.temperature),
                ("0 <= alpha <= 1", 0 <= self.alpha <= 1, self.alpha),
            ]
        )


@dataclass(frozen=True)
class FinetunedNetwork:
    """A finetuned network, in eval mode, and how its training went."""

    model: nn.Module
    history: History


def finetune(
    model: nn.Module,
    teacher: nn.Module,
    data: ImageData,
    *,
    seed: int,
    recipe: FinetuningRecipe | None = None,
    device: torch.device | str = "cpu",
    augment: bool = True,
    max_time_s: float | None = None,
    on_progress: OnProgress | None = None,
) -> FinetunedNetwork:
    """Return a copy of ``model`` after distillation from ``teacher`` on ``data.train``; both stay as they were.

    The last epoch's weights are returned. Validation accuracy is recorded after each epoch and chooses nothing; test
    images are not read.

    Args:
        model: The small network.
        teacher: The dense network; its logits have the same shape.
        data: Images; ``train`` and ``val`` are read.
        seed: Of order and augmentation. Equal seeds give equal weights on one kind of device without a time limit.
        recipe: How to train.
        device: Where to train; the network comes back there.
        augment: Whether images are randomly cropped, and mirrored where ``data.may_flip``.
        max_time_s: The schedule is shortened so that it ends at about this time; positive.
        on_progress: Hears of every step.

    Raises:
        OptionError: ``max_time_s`` is not positive, or the logits of the two networks differ in shape.
        TrainingError: The loss became NaN or infinite; ``model`` is unchanged.
    """
    recipe = recipe or FinetuningRecipe()
    if max_time_s is not None and not max_time_s > 0:
        raise OptionError(f"`max_time_s > 0` must hold, but got {max_time_s}")
    device = torch.device(device)
    student = copy.deepcopy(model).requires_grad_(True)
    guide = copy.deepcopy(teacher).requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)

    def batch_loss(inputs: Tensor, batch: ImageBatch) -> Tensor:
        with autocast(device):
            with torch.no_grad():
                teacher_logits = first_logits(guide(inputs))
            student_logits = first_logits(student(inputs))
        if student_logits.shape != teacher_logits.shape:
            raise OptionError(
                "the logits of network and teacher must have one shape, but got "
                f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}; take the network it was cut from"
            )
        return distillation_loss(
            student_logits, teacher_logits, batch.labels, temperature=recipe.temperature, alpha=recipe.alpha
        )

    history = fit(
        student,
        data,
        recipe,
        batch_loss,
        rng=np.random.default_rng(seed),
        device=device,
        augment=augment,
        max_time_s=max_time_s,
        on_progress=on_progress,
    )
    return FinetunedNetwork(student, history)
