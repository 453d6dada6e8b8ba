"""Static compensation: the optimal update of every layer that lost inputs, from the dense network's statistics alone.

No image is passed forward, so that it can be done for every candidate. It takes the layers' inputs as the dense network
has them; :mod:`fitness.compensation` is the dearer form that does not.

A search keeps 64 MiB of covariances (:data:`fitness.statistics.SEARCH_STATISTICS`). Layers beyond it, the widest first,
get a channel-wise regression: on VGG-16 one of 2,304 inputs and all of 4,608.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from fitness.compensation import Prefix, solved_before
from fitness.folding import keep_mask
from fitness.layer_error import optimal_update
from fitness.planar import PlanarLayer, planar
from fitness.program import Program, SlicedTensors
from fitness.regression import from_rows
from fitness.statistics import ConsumerStatistics, DenseStatistics, channel_columns
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, IntArray

_LOGGER = logging.getLogger(__name__)


class StaticCompensation:
    """Re-solves the layers of sliced networks from the dense network's second moments.

    A layer without covariance (see ``StatisticsOptions.max_bytes``) gets a channel-wise regression: every dropped
    channel is replaced by one combination of kept channels at all kernel positions. A bias takes up the mean of what
    went. Transposed layers and layers that the network calls more than once stay as they are.
    """

    def __init__(self, program: Program, statistics: DenseStatistics, *, damping: float = 1e-2) -> None:
        """Prepare the weights.

        Args:
            program: The folded network.
            statistics: Its dense statistics.
            damping: Ridge on the change of the weights, relative to the mean squared regressor; positive.

        Raises:
            OptionError: ``damping`` is not positive.
        """
        if not damping > 0:
            raise OptionError(f"`damping > 0` must hold, but got {damping}; the default is 1e-2")
        self.program = program
        self.damping = damping
        self.consumers: list[tuple[ConsumerStatistics, PlanarLayer]] = []
        for consumer in statistics.consumers:
            layer = program.layers[consumer.layer]
            view = planar(layer)
            if view is not None and not layer.is_shared and not layer.record.is_transposed and consumer.n_rows:
                self.consumers.append((consumer, view))

    def __call__(self, genome: BoolArray, prefix: Prefix | None = None) -> SlicedTensors:
        """Return the sliced tensors of ``genome`` ``(n_genes,)`` in float32, compensated.

        Every layer is solved on its own, on the processor, and no image runs. A layer whose system is ill-conditioned
        keeps its weights, and is named in ``uncompensated``. Layers that a ``prefix`` holds are taken from it.
        """
        tensors = self.program.slice(genome)
        if prefix is not None:
            tensors.weights.update(prefix.solved.weights)
            tensors.biases.update(prefix.solved.biases)
            tensors.uncompensated = prefix.solved.uncompensated
        with torch.no_grad():
            for consumer, view in self.consumers:
                keep = keep_mask(consumer.column_genes, genome)
                is_done = prefix is not None and consumer.layer in prefix.solved.weights
                if not is_done and not keep.all():
                    self._update(consumer, view, keep, genome, tensors)
        return tensors

    def prefix(self, genome: BoolArray, open_genes: IntArray) -> Prefix:
        """Return what all genomes share that differ from ``genome`` in ``open_genes`` only: tensors, no activation."""
        step = self.program.first_step_of(open_genes)
        return Prefix(step, {}, solved_before(self.program, self(genome), step))

    def _update(
        self,
        consumer: ConsumerStatistics,
        view: PlanarLayer,
        keep: BoolArray,
        genome: BoolArray,
        tensors: SlicedTensors,
    ) -> None:
        layer = view.source
        kept, dropped = torch.from_numpy(np.flatnonzero(keep)), torch.from_numpy(np.flatnonzero(~keep))
        keep_out = keep_mask(layer.out_genes, genome).reshape(view.groups, -1)
        new_rows, shifts = [], []
        for index, whole in enumerate(view.rows):
            rows = whole[torch.from_numpy(keep_out[index])].cpu()
            change = self._change(consumer, index, view, rows, kept, dropped)
            if change is None:
                _LOGGER.info("compensation of %s skipped: the regression is ill-conditioned", layer.name)
                tensors.uncompensated += (layer.name,)
                return
            mean = consumer.mean[index]
            new_rows.append(rows[:, kept] + change)
            shifts.append(rows[:, dropped] @ mean[dropped] - change @ mean[kept])
        sliced = tensors.weights[layer.name]
        shape = view.layer.weight.shape
        n_inputs = len(kept) // int(np.prod(shape[2:]))
        like = sliced.reshape(len(sliced), n_inputs, *shape[2:])
        tensors.weights[layer.name] = from_rows(torch.cat(new_rows).to(like.device), like).reshape(sliced.shape)
        if layer.has_bias:
            tensors.biases[layer.name] = tensors.biases[layer.name] + torch.cat(shifts).to(like.device)

    def _change(
        self,
        consumer: ConsumerStatistics,
        index: int,
        view: PlanarLayer,
        rows: Tensor,
        kept: Tensor,
        dropped: Tensor,
    ) -> Tensor | None:
        if consumer.has_covariance:
            found = optimal_update(consumer.covariance[index], rows, kept, dropped, self.damping)
            return None if found is None else found[0].float()
        if not consumer.channel_covariance.numel():
            return torch.zeros(len(rows), len(kept))
        width = view.layer.weight.shape[1] if view.layer.kernel else None
        columns = channel_columns(consumer.column_genes, width)
        assert columns is not None
        return self._channel_wise_change(consumer.channel_covariance, torch.from_numpy(columns), rows, kept)

    def _channel_wise_change(self, covariance: Tensor, columns: Tensor, rows: Tensor, kept: Tensor) -> Tensor | None:
        is_kept = torch.zeros(rows.shape[1], dtype=torch.bool)
        is_kept[kept] = True
        channel_kept = is_kept[columns[:, 0]]
        gone, stay = (~channel_kept).nonzero().squeeze(1), channel_kept.nonzero().squeeze(1)
        change = torch.zeros_like(rows)
        if len(stay):
            parts = rows[:, columns[gone]].transpose(1, 2).flatten(0, 1)  # (out * m, dropped channels)
            whole = parts.new_zeros(len(parts), len(columns))
            whole[:, gone] = parts
            found = optimal_update(covariance, whole, stay, gone, self.damping)
            if found is None:
                return None
            per_column = found[0].float().reshape(len(rows), columns.shape[1], len(stay)).transpose(1, 2)
            change[:, columns[stay]] = per_column
        return change[:, kept]
