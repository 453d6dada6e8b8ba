"""What every training of this project shares: the distillation loss, the schedule and the descent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.precision import gains_by_bfloat16


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """Return ``alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) CE(labels, z_s)``, mean over the batch.

    Args:
        student_logits: ``(n, n_classes)``.
        teacher_logits: ``(n, n_classes)``.
        labels: ``(n,)`` int64, or ``(n, n_classes)`` shares.
        temperature: T.
        alpha: Weight of the teacher.

    References:
        Hinton 2015, Distilling the knowledge in a neural network, Sec. 2.
    """
    soft_student = functional.log_softmax(student_logits / temperature, dim=1)
    soft_teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    divergence = functional.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * divergence + (1 - alpha) * functional.cross_entropy(student_logits, labels)


def first_logits(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the logits in float32; auxiliary heads, which speak in training mode only, stand behind them."""
    return (output if isinstance(output, Tensor) else output[0]).float()


def learning_rate_factor(progress: float, warm_up_share: float) -> float:
    """Return the share of the highest learning rate at ``progress`` in [0, 1]: linear to 1, then half a cosine to 0."""
    if progress < warm_up_share:
        return progress / warm_up_share
    return (1 + math.cos(math.pi * (progress - warm_up_share) / (1 - warm_up_share))) / 2


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which convolutions and linears run in bfloat16 where ``device`` gains by it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=gains_by_bfloat16(device))


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Let cuDNN, where it is used, take kernels that give equal bits each time; as before afterwards."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,  # the flags' own default switches it off
        benchmark=False,
        deterministic=True,
        allow_tf32=cudnn.allow_tf32,
    ):
        yield


class Descent:
    """Stochastic gradient descent with Nesterov momentum, warm-up, cosine schedule and bounded gradients."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        warm_up_share: float,
        max_gradient_norm: float,
    ) -> None:
        """Descend on those parameters of ``model`` that require a gradient.

        Args:
            model: Changed by every step.
            learning_rate: At its highest.
            momentum: In [0, 1).
            weight_decay: Of convolutions and linears; biases and batch norms have none.
            warm_up_share: Part of all steps in which the learning rate grows, in [0, 1).
            max_gradient_norm: Longer gradients are shortened to this.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.learning_rate = learning_rate
        self.warm_up_share = warm_up_share
        self.max_gradient_norm = max_gradient_norm
        self.optimiser = torch.optim.SGD(
            [
                {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=learning_rate,
            momentum=momentum,
            nesterov=momentum > 0,
        )

    def step(self, loss: Tensor, progress: float) -> None:
        """Take one step down ``loss``, a finite scalar, at ``progress`` in [0, 1] of the schedule."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * learning_rate_factor(progress, self.warm_up_share)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.max_gradient_norm)
        self.optimiser.step()

    def finish(self) -> None:
        """Release the gradients."""
        self.optimiser.zero_grad(set_to_none=True)
