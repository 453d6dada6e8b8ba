"""What predictions are worth beside those of the dense network, and when enough of them are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fitness.evaluation import LOWER_BOUND
from fitness.memory import is_out_of_memory

_ROUNDING = 1e-6  # by which sums in another order and precision may differ, as a share


@dataclass(frozen=True)
class JudgedImages:
    """What a candidate is judged on.

    Attributes:
        inputs: ``(n, ...)`` normalised images, in the dtype that networks are run in.
        soft_labels: ``(n, n_classes)`` label shares.
        teacher: ``(n, n_classes)`` log-probabilities of the dense network, float32.
        part_sizes: The images come in parts of so many, each of one kind.
    """

    inputs: Tensor
    soft_labels: Tensor
    teacher: Tensor
    part_sizes: tuple[int, ...]

    def first(self, n: int) -> JudgedImages:
        """Return the first ``n`` images, at least one."""
        if n == len(self.inputs):
            return self
        ends = [min(sum(self.part_sizes[: index + 1]), n) for index in range(len(self.part_sizes))]
        sizes = (end - start for start, end in zip([0, *ends], ends, strict=False))
        parts = tuple(size for size in sizes if size)
        return JudgedImages(self.inputs[:n], self.soft_labels[:n], self.teacher[:n], parts)


@dataclass(frozen=True)
class _ImageFigures:
    """What each image adds, float64 ``(n,)``; nowhere negative but for rounding."""

    kl: Tensor
    kl_plain: Tensor
    cross_entropy: Tensor
    error: Tensor


def _image_figures(logits: Tensor, images: JudgedImages, temperature: float) -> _ImageFigures:
    logits, teacher = logits.double(), images.teacher.double()  # at high temperature the terms nearly cancel
    log_probability = functional.log_softmax(logits, dim=1)
    kl_plain = functional.kl_div(log_probability, teacher, log_target=True, reduction="none").sum(dim=1)
    kl = kl_plain
    if temperature != 1:
        soft = functional.log_softmax(logits / temperature, dim=1)
        taught = functional.log_softmax(teacher / temperature, dim=1)
        kl = functional.kl_div(soft, taught, log_target=True, reduction="none").sum(dim=1) * temperature**2
    cross_entropy = -(images.soft_labels * log_probability).sum(dim=1)
    is_wrong = logits.argmax(dim=1) != images.soft_labels.argmax(dim=1)
    return _ImageFigures(kl, kl_plain, cross_entropy, is_wrong.double())


def quality(logits: Tensor, images: JudgedImages, temperature: float = 1.0) -> dict[str, float]:
    """Return ``kl``, ``kl_plain``, ``cross_entropy``, ``error`` and ``accuracy`` of ``logits`` ``(n, n_classes)``.

    ``kl`` is ``T^2 KL(dense || candidate)`` at ``temperature`` T, ``kl_plain`` the same at 1; error and accuracy are
    fractions of all images. Divergences are the geometric mean over the parts, so that no part drowns the others.

    At temperature 1 nearly all of the KL comes from the few images that the dense network is unsure of: between two
    sets of 256 images it ranks genomes alike with a correlation of 0.16 only. At high temperature it tends to the
    squared error of the centred logits (times ``1 / (2 n_classes)``), to which every image contributes: 0.92
    (``docs/fitness.md``).

    References:
        Hinton 2015, Distilling the knowledge in a neural network, Sec. 2.1, for the limit.
    """
    figures = _image_figures(logits, images, temperature)
    accuracy = float((1.0 - figures.error).float().mean())

    def over_parts(values: Tensor) -> float:
        return _geometric_mean([float(part.mean()) for part in values.split(images.part_sizes)])

    return {
        "kl": over_parts(figures.kl),
        "kl_plain": over_parts(figures.kl_plain),
        "cross_entropy": over_parts(figures.cross_entropy),
        "error": 1.0 - accuracy,
        "accuracy": accuracy,
    }


class EarlyStop:
    """Tells when a candidate is sure to exceed a limit, whatever it predicts for the images to come.

    No image adds less than nothing to an objective. What the images so far add up to, divided by the number of all, is
    therefore a lower bound: of each part's mean, hence of their geometric mean. Until all parts but the last have
    been seen whole that is zero for a divergence; an error is bounded from the first image on.

    Args:
        images: All of them.
        objective: What is minimised, a name of :data:`fitness.options.OBJECTIVES`.
        temperature: Of the KL.
        limit: Objectives above it are of no use.
    """

    def __init__(
        self, images: JudgedImages, objective: Literal["kl", "cross_entropy", "error"], temperature: float, limit: float
    ) -> None:
        self._images, self._objective, self._temperature, self._limit = images, objective, temperature, limit

    def is_hopeless(self, logits: Sequence[Tensor]) -> bool:
        """Return whether ``logits``, those of all images so far by batch, leave no hope; never where they are all."""
        n_seen = sum(len(part) for part in logits)
        return n_seen < len(self._images.inputs) and self.bound(torch.cat(list(logits))) > self._limit

    def bound(self, logits: Tensor) -> float:
        """Return what the objective over all images is at least, given the ``logits`` of the first ones; or NaN."""
        figures = _image_figures(logits, self._images.first(len(logits)), self._temperature)
        values: Tensor = getattr(figures, self._objective)
        padded = torch.cat([values, values.new_zeros(len(self._images.inputs) - len(values))])
        parts = [padded] if self._objective == "error" else padded.split(self._images.part_sizes)
        # Without a temperature the teacher is as it was rounded to float32, and an image may add less than nothing.
        least = _ROUNDING if self._objective == "kl" and self._temperature == 1 else 0.0
        return _geometric_mean([float(part.mean()) for part in parts]) * (1 - _ROUNDING) - least


class Verdict(NamedTuple):
    """What a candidate's predictions are worth.

    Attributes:
        metrics: Figures by name; empty for a failure.
        objective: What is minimised; ``inf`` for a failure.
        failure: Why there are no figures, as ``reason: particulars``; empty where there are.
        n_images: Images that were predicted.
    """

    metrics: dict[str, float]
    objective: float
    failure: str
    n_images: int


def judge(
    logits: Callable[[], Tensor],
    images: JudgedImages,
    objective: Literal["kl", "cross_entropy", "error"],
    temperature: float,
    stop: EarlyStop | None = None,
) -> Verdict:
    """Return what the predictions that ``logits()`` returns are worth.

    A candidate for which memory does not suffice, or whose predictions are not finite, fails alone. Any other error
    passes. Where ``stop`` ended the predictions early, the figures are
    those of the images seen, and the metrics hold what the objective over all of them is at least.
    """
    try:
        predictions = logits()
        metrics = quality(predictions, images.first(len(predictions)), temperature)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = f"out of memory: {(str(error).splitlines() or [type(error).__name__])[0]}"
        return Verdict({}, math.inf, failure, len(images.inputs))
    n_seen = len(predictions)
    if not all(math.isfinite(value) for value in metrics.values()):
        return Verdict({}, math.inf, "the predictions are not finite", n_seen)
    if stop is not None and n_seen < len(images.inputs):
        metrics[LOWER_BOUND] = stop.bound(predictions)
    return Verdict(metrics, metrics[objective], "", n_seen)


def _geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean; values of rounding size count as zero."""
    if any(math.isnan(value) for value in values):
        return math.nan
    return math.prod(max(value, 0.0) for value in values) ** (1 / len(values))
