"""The ladder of fidelities: one evaluator that offers several rungs, from formulas to a short training.

Rungs are named. ``network@128`` is the network rung on 128 fitness images and as large a share of the calibration
images; static compensation takes the statistics of all of them. Every rung is a pure function of the genome: how a
candidate fares at one never depends on another candidate.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fitness.compensation import CompensationOptions
from fitness.distillation import DISTILLATION_RUNG, DistillationEvaluator, DistillationOptions, Lessons
from fitness.evaluation import Evaluation, Evaluator, StoppingEvaluator
from fitness.network import NETWORK_RUNG, NetworkEvaluator
from fitness.options import FitnessOptions
from fitness.program import Program
from fitness.statistics import SEARCH_STATISTICS, DenseStatistics, collect_statistics
from fitness.statistics_cache import cached_statistics
from fitness.two_step import E1_RUNG, E2_RUNG, TwoStep, TwoStepEvaluator
from fitness.wavelet import WAVELET_RUNG, WaveletAggregation, WaveletEvaluator
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors

if TYPE_CHECKING:
    from fitness.recipe import EvaluatorRecipe

SHIPPED_RUNG = "shipped"
RUNGS: Mapping[str, str] = {
    E1_RUNG: "two-step approximation, step one: layer errors without any update, from Gram matrices",
    E2_RUNG: "two-step approximation, step two: layer errors after the optimal update of the remaining weights",
    WAVELET_RUNG: "wavelet aggregation (GWCS): no forward pass; minus the fitness, since objectives are minimised",
    NETWORK_RUNG: "the sliced network, adapted on calibration images and judged on fitness images",
    f"{NETWORK_RUNG}@N": "the same on N fitness images, and as large a share of the calibration images",
    SHIPPED_RUNG: "the sliced network, adapted like the one that is handed back, on fitness images of its own",
    DISTILLATION_RUNG: "the sliced, adapted network after a short finetuning by distillation",
}


@dataclass(frozen=True)
class ModelSource:
    """How a worker builds the dense network's modules anew; their weights travel as arrays.

    Attributes:
        name: As ``search_spaces.models.build_model`` takes it.
        n_classes: Length of the logits.
        args: Keywords of the factory.
        input_shape: Channels, height, width.
    """

    name: str
    n_classes: int
    args: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, int, int] | None = None


class LadderEvaluator:
    """Several evaluators as one: each answers for its rungs."""

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        """Hand every rung to its evaluator; ``evaluators`` is in the order from cheap to dear."""
        self.evaluators = dict(evaluators)

    @property
    def rungs(self) -> Sequence[str]:
        """Names of the rungs, cheapest first."""
        return tuple(self.evaluators)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes`` ``(n, n_genes)``, in order.

        Raises:
            UnknownNameError: There is no such rung.
        """
        return self._evaluator_of(rung).evaluate(genomes, rung)

    def evaluate_up_to(self, genomes: BoolArray, rung: str, limit: float) -> list[Evaluation]:
        """Return what :meth:`evaluate` returns; a rung that can stops genomes that are sure to exceed ``limit``.

        Raises:
            UnknownNameError: There is no such rung.
        """
        evaluator = self._evaluator_of(rung)
        if isinstance(evaluator, StoppingEvaluator):
            return evaluator.evaluate_up_to(genomes, rung, limit)
        return evaluator.evaluate(genomes, rung)

    def _evaluator_of(self, rung: str) -> Evaluator:
        if rung not in self.evaluators:
            raise UnknownNameError("rung", rung, self.rungs)
        return self.evaluators[rung]


def fewer_images_rung(n_images: int) -> str:
    """Return the name of the network rung on ``n_images`` fitness images."""
    return f"{NETWORK_RUNG}@{n_images}"


def check_rung(rung: str) -> None:
    """Check the name of a rung.

    Raises:
        UnknownNameError: There is no such rung.
    """
    if rung not in RUNGS and _n_images_of(rung) is None:
        raise UnknownNameError("rung", rung, RUNGS)


def final_solve(options: FitnessOptions) -> CompensationOptions:
    """Return how the layers of the network that is handed back are solved."""
    return replace(
        options.solve,
        n_positions=options.final_positions,
        max_multiplications=options.final_multiplications,
        every_layer=True,
        n_rectified_passes=options.final_rectified_passes,
        n_pair_steps=options.final_pair_steps,
    )


def build_ladder(recipe: EvaluatorRecipe, model: nn.Module | None = None) -> Evaluator:
    """Return the evaluator of the rungs of ``recipe``, with all computed that depends on the dense network alone.

    Args:
        recipe: Images, weights and options.
        model: The dense network, where it is at hand; distillation builds it from ``recipe.source`` otherwise.

    Raises:
        OptionError: Distillation is asked for, and the network can neither be had nor built.
    """
    program = recipe.program()
    evaluators: dict[str, Evaluator] = {}
    for rung in recipe.rungs:
        if rung in (E1_RUNG, E2_RUNG):
            known = next((evaluators[other] for other in (E1_RUNG, E2_RUNG) if other in evaluators), None)
            evaluators[rung] = known or _two_step(recipe)
        elif rung == WAVELET_RUNG:
            evaluators[rung] = _wavelet(recipe, program)
        elif rung == SHIPPED_RUNG:
            evaluators[rung] = _shipped(recipe, program)
        elif rung == DISTILLATION_RUNG:
            evaluators[rung] = _distillation(recipe, program, model)
        else:
            evaluators[rung] = _network(recipe, program, rung)
    return evaluators[recipe.rungs[0]] if len(evaluators) == 1 else LadderEvaluator(evaluators)


def _two_step(recipe: EvaluatorRecipe) -> TwoStepEvaluator:
    recipe = replace(recipe, device="cpu")  # small matrices in float64 are the processor's
    return TwoStepEvaluator(TwoStep(recipe.program(), _statistics(recipe)))


def _statistics(recipe: EvaluatorRecipe) -> DenseStatistics:
    """Return the dense statistics of the network of ``recipe`` over all its calibration images, on the processor.

    Wherever candidates run, images and number type are those of :func:`fitness.seeding.two_step_of`, so that one entry
    of the cache serves all.
    """
    recipe = replace(recipe, device="cpu")
    # Those of a network that changes during a run would fill the disk, and nobody would ask for them again.
    gather = collect_statistics if recipe.has_teacher else cached_statistics
    return gather(recipe.program(), recipe.calibration_inputs(), SEARCH_STATISTICS)


def _wavelet(recipe: EvaluatorRecipe, program: Program) -> WaveletEvaluator:
    labels = recipe.tensor("calibration/labels")
    return WaveletEvaluator(WaveletAggregation(program, recipe.calibration_inputs(), labels))


def _network(recipe: EvaluatorRecipe, program: Program, rung: str) -> NetworkEvaluator:
    inputs, soft_labels = recipe.inputs("fitness/images"), recipe.tensor("fitness/soft_labels")
    calibration, part_sizes = recipe.calibration_inputs(), recipe.part_sizes or (len(inputs),)
    n_images = _n_images_of(rung)
    if n_images is not None and n_images < len(inputs):
        share = n_images / len(inputs)
        chosen, first, part_sizes_left = [], 0, []
        for size in part_sizes:
            spread = _spread(size, share)
            chosen.append(first + spread)
            part_sizes_left.append(len(spread))
            first += size
        rows = torch.cat(chosen).to(inputs.device)
        inputs, soft_labels, part_sizes = inputs[rows], soft_labels[rows], tuple(part_sizes_left)
        calibration = calibration[_spread(len(calibration), share).to(inputs.device)]
    options = recipe.options
    # All images whatever the rung: a static solve costs the same, and rungs differ in what they judge by alone.
    known = _statistics(recipe) if options.compensation == "static" else None
    return NetworkEvaluator(
        program, inputs, soft_labels, calibration, options, part_sizes, rung, recipe.teacher(), known
    )


def _shipped(recipe: EvaluatorRecipe, program: Program) -> NetworkEvaluator:
    options = replace(recipe.options, compensation=recipe.options.final_compensation)
    multiplications = min(options.elite_multiplications, options.final_multiplications)
    solve = replace(final_solve(options), max_multiplications=multiplications, n_pair_steps=0)
    return NetworkEvaluator(
        program,
        recipe.inputs("elite/images"),
        recipe.tensor("elite/soft_labels"),
        recipe.inputs("elite/calibration"),
        replace(options, solve=solve),
        recipe.elite_part_sizes,
        SHIPPED_RUNG,
        recipe.teacher(),
    )


def _distillation(recipe: EvaluatorRecipe, program: Program, model: nn.Module | None) -> DistillationEvaluator:
    judged = _network(recipe, program, NETWORK_RUNG)
    options = DistillationOptions(
        n_steps=recipe.options.n_distillation_steps,
        objective=recipe.options.objective,
        objective_temperature=recipe.options.temperature,
        seed=recipe.seed,
    )
    compensate = program.slice if judged.compensate is None else judged.compensate
    lessons = Lessons(recipe.inputs("lessons/images"), recipe.tensor("lessons/labels"))
    network = _dense(recipe, model)
    return DistillationEvaluator(network, program, compensate, lessons, judged.images, options, recipe.teacher())


def _dense(recipe: EvaluatorRecipe, model: nn.Module | None) -> nn.Module:
    """Return the dense network's modules, in evaluation mode, on the device of ``recipe``."""
    if model is not None:
        return copy.deepcopy(model).eval().to(recipe.device)
    source = recipe.source
    if source is None:
        raise OptionError(
            "distillation finetunes the network's own modules, which a worker must be able to build from a name, but "
            "this network was given as a Python object; leave the workers out, or name its factory as "
            "package.module:factory"
        )
    built = build_model(source.name, source.n_classes, dict(source.args), source.input_shape)
    with torch.no_grad():
        for name, tensor in named_tensors(built).items():
            tensor.copy_(recipe.tensor(f"tensor/{name}"))
    return built.eval().to(recipe.device)


def needs_modules(rungs: Collection[str]) -> bool:
    """Return whether one of ``rungs`` finetunes the network's own modules, which weights alone do not make up."""
    return DISTILLATION_RUNG in rungs


def _n_images_of(rung: str) -> int | None:
    kind, _, number = rung.partition("@")
    return int(number) if kind == NETWORK_RUNG and number.isdecimal() and int(number) > 0 else None


def _spread(n: int, share: float) -> torch.Tensor:
    """Return ``share`` of the indices below ``n``, at least one, evenly spread: images may be sorted by class."""
    n_chosen = max(1, round(n * share))
    return torch.arange(n_chosen) * n // n_chosen
