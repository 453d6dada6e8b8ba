"""The distillation rung: a candidate after a short finetuning by distillation, the dearest and truest of the rungs.

References:
    Hinton 2015, Distilling the knowledge in a neural network, Sec. 2. As a fitness: after the GA two-step paper, arXiv
    1805.11394, whose temperature, weights and lengths are unknown; the defaults are ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fitness.evaluation import Evaluation
from fitness.gradients import Descent, autocast, distillation_loss, first_logits
from fitness.memory import with_smaller_batches
from fitness.options import OBJECTIVES
from fitness.program import Program, SlicedTensors
from fitness.quality import JudgedImages, Verdict, judge
from fitness.writeback import compensated_model
from search_spaces.errors import OptionError, UnknownNameError, check_rules
from search_spaces.genome import BoolArray, genome_digest

DISTILLATION_RUNG = "distill"


@dataclass(frozen=True)
class DistillationOptions:
    """How a candidate is finetuned before it is judged.

    Attributes:
        n_steps: Gradient steps.
        batch_size: Images per step, at least 2.
        learning_rate: At its highest; it warms up, then falls as a cosine.
        temperature: T of the distillation loss.
        alpha: Weight of the teacher against the labels, in [0, 1].
        momentum: In [0, 1).
        weight_decay: Of convolutions and linears.
        warm_up_share: Part of the steps in which the learning rate grows, in [0, 1).
        max_gradient_norm: Longer gradients are shortened to this.
        objective: A name of :data:`fitness.options.OBJECTIVES`; minimised.
        objective_temperature: At which ``kl`` compares the predictions.
        seed: Together with the genome it decides the order of the images.
    """

    n_steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.01
    temperature: float = 4.0
    alpha: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up_share: float = 0.1
    max_gradient_norm: float = 5.0
    objective: Literal["kl", "cross_entropy", "error"] = "kl"
    objective_temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every rule once.

        Raises:
            OptionError: A value breaks its rule.
            UnknownNameError: There is no such objective.
        """
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", self.objective, OBJECTIVES)
        check_rules(
            [
                ("n_steps >= 0", self.n_steps >= 0, self.n_steps),
                ("batch_size >= 2", self.batch_size >= 2, self.batch_size),
                ("0 < learning_rate < inf", 0 < self.learning_rate < math.inf, self.learning_rate),
                ("0 < temperature < inf", 0 < self.temperature < math.inf, self.temperature),
                (
                    "0 < objective_temperature < inf",
                    0 < self.objective_temperature < math.inf,
                    self.objective_temperature,
                ),
                ("0 <= alpha <= 1", 0 <= self.alpha <= 1, self.alpha),
                ("0 <= momentum < 1", 0 <= self.momentum < 1, self.momentum),
                ("0 <= weight_decay < inf", 0 <= self.weight_decay < math.inf, self.weight_decay),
                ("0 <= warm_up_share < 1", 0 <= self.warm_up_share < 1, self.warm_up_share),
                ("max_gradient_norm > 0", self.max_gradient_norm > 0, self.max_gradient_norm),
                ("seed >= 0", self.seed >= 0, self.seed),
            ],
            purpose="distillation",
        )


class DivergedError(OptionError):
    """The distillation loss of a candidate became NaN or infinite."""


@dataclass(frozen=True)
class Lessons:
    """What candidates are finetuned on.

    Attributes:
        inputs: ``(n, ...)`` normalised training images, augmented beforehand if at all.
        labels: ``(n,)`` int64, or ``(n, n_classes)`` shares.
    """

    inputs: Tensor
    labels: Tensor


class DistillationEvaluator:
    """Judges genomes by what the small network predicts after a few hundred steps of distillation.

    The order of the images follows from genome and seed, and dropout modules stay off: an evaluation depends on nothing
    that happened before, nor on the global generators.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        compensate: Callable[[BoolArray], SlicedTensors],
        lessons: Lessons,
        images: JudgedImages,
        options: DistillationOptions = DistillationOptions(),
        teacher: Program | None = None,
    ) -> None:
        """Ask the dense network once about all lessons.

        Args:
            model: The dense network; not changed.
            program: Its folded program.
            compensate: Gives the tensors that a candidate starts from; ``program.slice`` for none.
            lessons: What to finetune on.
            images: What to judge on.
            options: How to finetune.
            teacher: Whose predictions are taught; those of ``program`` by default.
        """
        self.model = model
        self.program = program
        self.compensate = compensate
        self.lessons = lessons
        self.images = images
        self.options = options
        self.device = lessons.inputs.device
        teacher = teacher or program
        dense = teacher.slice(program.space.all_ones()[0]).cast(lessons.inputs.dtype)
        with torch.no_grad():
            parts = [teacher.run(dense, [part])[teacher.outputs[0]].float() for part in lessons.inputs.split(256)]
        self.teacher_logits = torch.cat(parts)

    @property
    def rungs(self) -> Sequence[str]:
        """The one rung of this evaluator."""
        return (DISTILLATION_RUNG,)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per genome, ``(n, n_genes)``; one that diverges or lacks memory is a failed evaluation.

        Raises:
            UnknownNameError: There is no such rung.
        """
        if rung not in self.rungs:
            raise UnknownNameError("rung", rung, self.rungs)
        return list(self._judge_each(genomes))

    def _judge_each(self, genomes: BoolArray) -> Iterator[Evaluation]:
        for genome in genomes:
            started = time.perf_counter()

            def logits(genome: BoolArray = genome) -> Tensor:
                return self._logits(self.finetuned(genome))

            try:
                verdict = judge(logits, self.images, self.options.objective, self.options.objective_temperature)
            except DivergedError as error:
                verdict = Verdict({}, math.inf, f"distillation diverged: {error}", len(self.images.inputs))
            yield Evaluation(
                genome_digest(genome),
                DISTILLATION_RUNG,
                verdict.n_images,
                verdict.objective,
                verdict.metrics,
                time.perf_counter() - started,
                verdict.failure,
            )

    def finetuned(self, genome: BoolArray) -> nn.Module:
        """Return the small network of ``genome`` ``(n_genes,)`` after distillation, in evaluation mode.

        Raises:
            DivergedError: The loss became NaN or infinite.
        """
        options = self.options
        student = compensated_model(self.model, self.program, self.compensate(genome))
        student = student.to(self.device).to(memory_format=torch.channels_last).requires_grad_(True)
        rng = np.random.default_rng([options.seed, int(genome_digest(genome), 16)])
        student.train()
        for module in student.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        descent = Descent(
            student,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            warm_up_share=options.warm_up_share,
            max_gradient_norm=options.max_gradient_norm,
        )
        batches = self._batches(rng)
        for step in range(options.n_steps):
            chosen = next(batches)
            with autocast(self.device):
                logits = first_logits(student(self.lessons.inputs[chosen].float()))
            loss = distillation_loss(
                logits,
                self.teacher_logits[chosen],
                self.lessons.labels[chosen],
                temperature=options.temperature,
                alpha=options.alpha,
            )
            if not math.isfinite(loss.item()):
                raise DivergedError(f"the distillation loss is {loss.item()} in step {step + 1} of {options.n_steps}")
            descent.step(loss, (step + 0.5) / options.n_steps)
        descent.finish()
        return student.requires_grad_(False).eval()

    def _batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield image indices for ever, each pass in a new order, in batches of nearly equal size."""
        n = len(self.lessons.inputs)
        n_batches = max(1, n // self.options.batch_size)
        while True:
            for indices in np.array_split(rng.permutation(n), n_batches):
                yield torch.from_numpy(indices).to(self.device)

    def _logits(self, student: nn.Module) -> Tensor:
        def run(size: int) -> Tensor:
            with torch.inference_mode(), autocast(self.device):
                return torch.cat([first_logits(student(part.float())) for part in self.images.inputs.split(size)])

        return with_smaller_batches(run, 256)
