"""The network rung: the sliced, compensated network on images it has not memorised."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fitness.compensation import Prefix, SequentialCompensation, alive_at, run_prefix, solved_before
from fitness.evaluation import Evaluation
from fitness.memory import count_bytes, is_out_of_memory, with_smaller_batches
from fitness.merging import MergeCompensation
from fitness.options import FitnessOptions
from fitness.prefix import Pause, PauseStack
from fitness.program import Program, SlicedTensors
from fitness.quality import EarlyStop, JudgedImages, judge
from fitness.recalibration import Recalibration
from fitness.static_compensation import StaticCompensation
from fitness.statistics import SEARCH_STATISTICS, DenseStatistics, collect_statistics
from search_spaces.errors import GenomeShapeError, UnknownNameError
from search_spaces.genome import BoolArray, IntArray, genome_digest

NETWORK_RUNG = "network"
Compensation = SequentialCompensation | StaticCompensation | MergeCompensation | Recalibration


def logits_of(
    program: Program, tensors: SlicedTensors, inputs: Tensor, batch_size: int, stop: EarlyStop | None = None
) -> Tensor:
    """Return float32 logits ``(n, n_classes)``; the network runs in the dtype of ``inputs``.

    Where memory does not suffice for ``batch_size`` images, half as many are tried, down to one. ``stop`` may leave out
    the last batches.
    """
    running = tensors.cast(inputs.dtype)

    def run(size: int) -> Tensor:
        with torch.inference_mode():
            return _gathered((program.run(running, [p])[program.outputs[0]] for p in inputs.split(size)), stop)

    return with_smaller_batches(run, batch_size)


def _gathered(batches: Iterable[Tensor], stop: EarlyStop | None) -> Tensor:
    """Return the logits of ``batches`` as one float32 tensor; no more are asked for once ``stop`` says so."""
    logits = []
    for batch in batches:
        logits.append(batch.float())
        if stop is not None and stop.is_hopeless(logits):
            break
    return torch.cat(logits)


class NetworkEvaluator:
    """Judges genomes by what the compensated small network predicts.

    What a genome shares with the one that the same thread judged before it is not computed again; evaluations do not
    depend on that, bit for bit.
    """

    def __init__(
        self,
        program: Program,
        fitness_inputs: Tensor,
        soft_labels: Tensor,
        calibration_inputs: Tensor,
        options: FitnessOptions,
        part_sizes: Sequence[int] = (),
        rung: str = NETWORK_RUNG,
        teacher: Program | None = None,
        statistics: DenseStatistics | None = None,
    ) -> None:
        """Compute the dense network's predictions and targets once.

        Args:
            program: The folded network.
            fitness_inputs: ``(n, ...)`` normalised, in the dtype that candidates run in.
            soft_labels: ``(n, n_classes)``.
            calibration_inputs: Likewise, from training data.
            options: How to judge.
            part_sizes: Sizes of the parts of the fitness images; one part by default.
            rung: Name of the rung.
            teacher: Whose predictions candidates are compared with; those of ``program`` by default.
            statistics: Of the dense network, which compensation ``static`` solves from; gathered from the calibration
                images by default, for which ``program`` must be on the processor.
        """
        self.rung = rung
        self.program = program
        self.options = options
        teacher = teacher or program
        dense = teacher.slice(program.space.all_ones()[0])
        parts = tuple(part_sizes) or (len(fitness_inputs),)
        logits = logits_of(teacher, dense, fitness_inputs, options.batch_size)
        self.images = JudgedImages(fitness_inputs, soft_labels, functional.log_softmax(logits, dim=1), parts)
        self.compensate: Compensation | None = None
        if options.compensation == "sequential":
            self.compensate = SequentialCompensation(program, calibration_inputs, options.solve)
        elif options.compensation == "static":
            known = statistics or collect_statistics(program, calibration_inputs, SEARCH_STATISTICS)
            self.compensate = StaticCompensation(program, known)
        elif options.compensation == "merge":
            self.compensate = MergeCompensation(program, calibration_inputs)
        elif options.compensation == "recalibrate":
            self.compensate = Recalibration(program, calibration_inputs)
        is_shared = options.max_prefix_bytes and not self._solves_pairs
        self._paths: threading.local | None = threading.local() if is_shared else None

    @property
    def rungs(self) -> Sequence[str]:
        """The one rung of this evaluator."""
        return (self.rung,)

    @property
    def _solves_pairs(self) -> bool:
        """Whether a layer depends on what comes behind it, so that genomes share nothing but their slices."""
        return isinstance(self.compensate, SequentialCompensation) and self.compensate.options.n_pair_steps > 0

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per genome, ``(n, n_genes)``; each is independent of the others.

        Besides the metrics of :func:`fitness.quality.quality` there is ``n_uncompensated``: layers that lost inputs but
        keep their weights, since their regression is ill-conditioned. A candidate that fails, fails alone
        (:func:`fitness.quality.judge`).

        Raises:
            UnknownNameError: There is no such rung.
        """
        return self.evaluate_up_to(genomes, rung, math.inf)

    def evaluate_up_to(self, genomes: BoolArray, rung: str, limit: float) -> list[Evaluation]:
        """Return what :meth:`evaluate` returns, but stop after a batch that leaves a genome no way below ``limit``.

        Raises:
            UnknownNameError: There is no such rung.
        """
        if rung not in self.rungs:
            raise UnknownNameError("rung", rung, self.rungs)
        return list(self._judge_each(genomes, limit))

    def _judge_each(self, genomes: BoolArray, limit: float) -> Iterator[Evaluation]:
        objective, temperature = self.options.objective, self.options.temperature
        stop = EarlyStop(self.images, objective, temperature, limit) if limit < math.inf else None
        for genome in genomes:
            started = time.perf_counter()
            n_uncompensated = 0

            def logits(genome: BoolArray = genome) -> Tensor:
                nonlocal n_uncompensated
                tensors, prediction = self._run(genome, stop)
                n_uncompensated = len(tensors.uncompensated)
                return prediction

            verdict = judge(logits, self.images, objective, temperature, stop)
            if not verdict.failure:
                verdict.metrics["n_uncompensated"] = float(n_uncompensated)
            yield Evaluation(
                genome_digest(genome),
                self.rung,
                verdict.n_images,
                verdict.objective,
                verdict.metrics,
                time.perf_counter() - started,
                verdict.failure,
            )

    def _run(self, genome: BoolArray, stop: EarlyStop | None) -> tuple[SlicedTensors, Tensor]:
        """Return the tensors and the logits of the network that ``genome`` describes."""
        if self._paths is not None:
            stack: PauseStack = self._paths.__dict__.setdefault(
                "stack", PauseStack(self.program, self.options.max_prefix_bytes)
            )
            try:
                return self._run_on_path(genome, stack, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            del stack, self._paths.stack  # frees what it holds
        tensors = self._tensors(genome)
        return tensors, self._predict(tensors, stop)

    def _run_on_path(
        self, genome: BoolArray, stack: PauseStack, stop: EarlyStop | None
    ) -> tuple[SlicedTensors, Tensor]:
        begun, pause_at = stack.begin(genome)
        tensors, compensated = self._compensated(genome, begun, pause_at)
        running, output = tensors.cast(self.images.inputs.dtype), self.program.outputs[0]
        parts = self.images.inputs.split(self.options.batch_size)
        starts: list[Mapping[str, Any]] = []

        def predictions() -> Iterator[Tensor]:
            for index, part in enumerate(parts):
                inputs, env, start = ([part], None, 0) if begun is None else ([], begun.starts[index], begun.step)
                if pause_at is not None:
                    values = self.program.run(running, inputs, env=env, start=start, stop=pause_at)
                    inputs, env, start = [], alive_at(self.program, values, pause_at), pause_at
                    starts.append(env)
                yield self.program.run(running, inputs, env=env, start=start)[output]

        with torch.inference_mode():
            logits = _gathered(predictions(), stop)
        if pause_at is not None and len(starts) == len(parts):  # not where it was stopped
            stack.keep(Pause(pause_at, compensated, tuple(starts)))
        return tensors, logits

    def _compensated(
        self, genome: BoolArray, begun: Pause | None, pause_at: int | None
    ) -> tuple[SlicedTensors, Prefix | None]:
        prefix = None if begun is None else begun.compensated
        if self.compensate is None:
            return self.program.slice(genome), None
        if isinstance(self.compensate, SequentialCompensation):
            return self.compensate.paused(genome, prefix, pause_at)
        tensors = self.compensate(genome, prefix)
        if pause_at is None:
            return tensors, None
        return tensors, Prefix(pause_at, {}, solved_before(self.program, tensors, pause_at))

    def _tensors(self, genome: BoolArray) -> SlicedTensors:
        return self.compensate(genome) if self.compensate is not None else self.program.slice(genome)

    def _predict(self, tensors: SlicedTensors, stop: EarlyStop | None) -> Tensor:
        return logits_of(self.program, tensors, self.images.inputs, self.options.batch_size, stop)


class StageEvaluator(NetworkEvaluator):
    """Judges genomes that differ in some genes only: what lies before those genes is computed once.

    Its evaluations equal those of the evaluator it came from, bit for bit.
    """

    def __init__(
        self, whole: NetworkEvaluator, genome: BoolArray, open_genes: IntArray, *, max_bytes: int = 1 << 31
    ) -> None:
        """Run the shared part once over calibration and fitness images.

        Args:
            whole: Judges any genome.
            genome: ``(n_genes,)``; the genomes to come agree with it outside ``open_genes``.
            open_genes: Indices of the genes that may differ.
            max_bytes: Bound on the activations kept; where they need more, nothing is shared. Neither is it where a
                compensation solves pairs of layers: the first of a pair depends on genes behind it.
        """
        self.program, self.options, self.images, self.rung = whole.program, whole.options, whole.images, whole.rung
        self.compensate = whole.compensate
        self._paths = None
        self.reference = genome.copy()
        self.is_open = np.zeros(len(genome), np.bool_)
        self.is_open[open_genes] = True
        self._shared: Prefix | None = None
        self._step, self.prefix_bytes = 0, 0
        self._starts: list[dict[str, Any]] = []
        if self._solves_pairs:
            return
        step = self.program.first_step_of(open_genes)
        tensors = self.program.slice(genome)
        if self.compensate is not None:
            self._shared = self.compensate.prefix(genome, open_genes)
            tensors.weights.update(self._shared.solved.weights)
            tensors.biases.update(self._shared.solved.biases)
            tensors.others.update(self._shared.solved.others)
        parts = self.images.inputs.split(self.options.batch_size)
        starts = [run_prefix(self.program, tensors, part, step) for part in parts]
        self.prefix_bytes = count_bytes([*starts, *([self._shared.values] if self._shared is not None else [])])
        if self.prefix_bytes > max_bytes:
            self._shared = None
        else:
            self._step, self._starts = step, starts

    def _tensors(self, genome: BoolArray) -> SlicedTensors:
        if not np.array_equal(genome[~self.is_open], self.reference[~self.is_open]):
            raise GenomeShapeError(
                "a stage judges genomes that agree outside its open genes, but got one that differs in "
                f"{int((genome != self.reference)[~self.is_open].sum())} other genes; evaluate it with the whole space"
            )
        return self.program.slice(genome) if self.compensate is None else self.compensate(genome, self._shared)

    def _predict(self, tensors: SlicedTensors, stop: EarlyStop | None) -> Tensor:
        if not self._starts:
            return super()._predict(tensors, stop)
        running = tensors.cast(self.images.inputs.dtype)
        output = self.program.outputs[0]
        try:
            with torch.inference_mode():
                ends = (self.program.run(running, [], env=env, start=self._step)[output] for env in self._starts)
                return _gathered(ends, stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return super()._predict(tensors, stop)  # from the images on, in batches of any size
