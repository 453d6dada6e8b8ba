"""Gram statistics of the dense network: second moments of what every layer reads, from calibration images.

Everything that the two-step fitness, greedy elimination and static compensation need is in here, so that none of them
looks at an image again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitness.compensation import shortcut_partners
from fitness.folding import FoldedLayer
from fitness.planar import PlanarLayer, planar
from fitness.program import Program
from fitness.regression import channels_second
from search_spaces.errors import check_rules
from search_spaces.genome import FloatArray, IntArray
from search_spaces.groups import KEPT

_LOGGER = logging.getLogger(__name__)
_FLOAT_BYTES = 4
_ROUNDING = 1e-6


@dataclass(frozen=True)
class StatisticsOptions:
    """How statistics are gathered.

    Attributes:
        n_positions: Output positions sampled per image and layer; all of them where a map has fewer.
        batch_size: Images per forward pass.
        max_bytes: Memory of all covariances together. The layers with most columns go without when it does not suffice:
            their channel Grams are estimated from random output directions, and they know the first step (E1) only.
        n_sketches: Random output directions per layer without covariance.
        seed: Of positions and directions.
    """

    n_positions: int = 32
    batch_size: int = 128
    max_bytes: int = 1 << 30
    n_sketches: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every rule once.

        Raises:
            OptionError: A count is not positive.
        """
        check_rules(
            [
                ("n_positions >= 1", self.n_positions >= 1, self.n_positions),
                ("batch_size >= 1", self.batch_size >= 1, self.batch_size),
                ("n_sketches >= 1", self.n_sketches >= 1, self.n_sketches),
                ("max_bytes >= 0", self.max_bytes >= 0, self.max_bytes),
            ]
        )


#: Of a search. Larger covariances are not kept: the widest layers are then ordered by E1, which takes seconds and not a
#: minute.
SEARCH_STATISTICS = StatisticsOptions(max_bytes=1 << 26)


@dataclass(frozen=True)
class ConsumerStatistics:
    """What one layer that reads removable channels says about them.

    ``k`` counts the input weights of one output, in the order of :func:`fitness.regression.to_rows`; moments are
    central where the layer holds a bias, since a bias takes up the mean of any error, and raw where it does not.

    Attributes:
        layer: Name of the layer in the program.
        column_genes: ``(k,)`` gene of each column, -1 = always kept.
        mean: ``(groups, k)`` float32 mean of each column; raw in any case.
        covariance: ``(groups, k, k)`` float32, or empty where memory did not suffice.
        channel_covariance: ``(c, c)`` float32, pooled over the columns of a channel; only where ``covariance`` is
            empty.
        genes: ``(g,)`` sorted genes that the layer reads.
        gram: ``(g, g)``: ``1/P <Y_i, Y_j>`` of the genes' contributions ``Y_i = W_i X_i`` to the output.
        energy: Power of the layer's output, summed over its channels; of the sum, where the output is added to a
            shortcut: an error there matters against what the shortcut carries.
        n_rows: Sampled positions that the figures rest on.
    """

    layer: str
    column_genes: IntArray
    mean: Tensor
    covariance: Tensor
    channel_covariance: Tensor
    genes: IntArray
    gram: FloatArray
    energy: float
    n_rows: int

    @property
    def has_covariance(self) -> bool:
        """Whether the second step (E2) is known for the layer."""
        return self.covariance.numel() > 0


@dataclass(frozen=True)
class DenseStatistics:
    """Statistics of all layers that read removable channels.

    Attributes:
        consumers: In order of execution; a layer that is called twice appears once per call.
        n_images: Calibration images.
        unmeasured: Layers without statistics, with the reason.
        silent: Layers whose output is constant: removing their inputs costs nothing that can be measured.
        n_rows_dropped: Sampled positions left out because an activation was not finite.
    """

    consumers: tuple[ConsumerStatistics, ...]
    n_images: int
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    n_rows_dropped: int = 0


def channel_columns(column_genes: IntArray, n_channels: int | None) -> IntArray | None:
    """Return which columns belong to the same channel, ``(c, m)``, or ``None`` where channels differ in size.

    Args:
        column_genes: ``(k,)``.
        n_channels: Input channels per group of a convolution, the fastest dimension of the columns; ``None`` for a
            linear layer, whose channels are told by their genes.
    """
    if n_channels is not None:
        return np.arange(len(column_genes), dtype=np.int64).reshape(-1, n_channels).T
    genes, counts = np.unique(column_genes, return_counts=True)
    if genes[0] == KEPT or counts.min() != counts.max():
        return None
    return np.argsort(column_genes, kind="stable").reshape(len(genes), -1)


class _Accumulator:
    """Sums over batches for one layer."""

    def __init__(self, view: PlanarLayer, *, with_covariance: bool, options: StatisticsOptions) -> None:
        self.view = view
        self.rows = view.rows
        groups, _, k = self.rows.shape
        self.genes, self.gene_of_column = np.unique(view.column_genes, return_inverse=True)
        self.n_rows = 0
        self.n_dropped = 0
        self.sum = torch.zeros(groups, k, dtype=torch.float64)
        self.second = torch.zeros((groups, k, k) if with_covariance else 0)
        self.shift: Tensor | None = None  # near the mean: second moments about it cancel nothing in float32
        if with_covariance:
            return
        generator = torch.Generator().manual_seed(options.seed)
        n_out = self.rows.shape[1]
        signs = torch.randint(0, 2, (groups, options.n_sketches, n_out), generator=generator).float() * 2 - 1
        self.sketch = torch.bmm(signs, self.rows) / options.n_sketches**0.5
        n_genes = len(self.genes)
        members = [np.flatnonzero(self.gene_of_column == index) for index in range(n_genes)]
        width = max(len(member) for member in members)
        self.members = torch.full((n_genes, width), k, dtype=torch.int64)  # column k is zero
        for index, member in enumerate(members):
            self.members[index, : len(member)] = torch.from_numpy(member)
        self.contributions = torch.zeros(groups, n_genes, options.n_sketches, dtype=torch.float64)
        self.gram = torch.zeros(n_genes, n_genes, dtype=torch.float64)
        self.power = 0.0
        self.output_sum = torch.zeros(groups, n_out, dtype=torch.float64)
        linear = not view.layer.kernel
        self.channels = channel_columns(view.column_genes, None if linear else view.layer.weight.shape[1])
        self.channel_second = torch.zeros((len(self.channels),) * 2 if self.channels is not None else 0)

    def add(self, patches: Tensor) -> None:
        """Add ``(groups, n, k)`` patches."""
        finite = torch.isfinite(patches.sum(dim=(0, 2)))
        if not bool(finite.all()):
            self.n_dropped += int((~finite).sum())
            patches = patches[:, finite]
        self.n_rows += patches.shape[1]
        self.sum += patches.sum(dim=1)
        if self.second.numel():
            if self.view.source.has_bias:
                if self.shift is None and patches.shape[1]:
                    self.shift = patches.mean(dim=1, keepdim=True)
                patches = patches if self.shift is None else patches - self.shift
            self.second.baddbmm_(patches.transpose(1, 2), patches)
        else:
            self._add_sketched(patches)

    def _add_sketched(self, patches: Tensor) -> None:
        groups, n, _ = patches.shape
        outputs = torch.bmm(patches, self.rows.transpose(1, 2))
        self.power += float(outputs.square().sum(dtype=torch.float64))
        self.output_sum += outputs.sum(dim=1)
        if self.channels is not None:
            for group in range(groups):
                pooled = patches[group][:, torch.from_numpy(self.channels)].transpose(1, 2).flatten(0, 1)
                self.channel_second.addmm_(pooled.T, pooled)
        n_sketches, width = self.sketch.shape[1], self.members.shape[1]
        step = max(1, (1 << 25) // (len(self.genes) * max(n_sketches, width)))
        sketch = torch.nn.functional.pad(self.sketch, (0, 1))[:, :, self.members]  # (groups, s, g, m)
        for start in range(0, n, step):
            chunk = torch.nn.functional.pad(patches[:, start : start + step], (0, 1))[:, :, self.members]
            parts = torch.einsum("gnim,gsim->gins", chunk, sketch)
            flat = parts.flatten(2)
            self.gram += torch.bmm(flat, flat.transpose(1, 2)).sum(dim=0)
            self.contributions += parts.sum(dim=2)

    def finish(self) -> ConsumerStatistics:
        """Return the statistics; zero where no finite row was seen."""
        n = max(self.n_rows, 1)
        layer = self.view.source
        mean = (self.sum / n).float()
        centre = layer.has_bias
        if self.second.numel():
            covariance = self.second.div_(n)
            if self.shift is not None:
                offset_mean = (self.sum / n - self.shift.squeeze(1)).float()
                covariance.baddbmm_(offset_mean.unsqueeze(2), offset_mean.unsqueeze(1), alpha=-1)
            gram, energy = self._gram_of(covariance)
            channel_covariance = torch.zeros(0)
        else:
            covariance = torch.zeros(0)
            whole = self.gram / n
            energy = self.power / n
            if centre:
                average = self.contributions / n
                whole -= torch.einsum("gis,gjs->ij", average, average)
                energy -= float((self.output_sum / n).square().sum())
            gram = whole.numpy()
            channel_covariance = self._channel_covariance(mean, n, centre=centre)
        if centre:  # what is left of a constant output is rounding
            offset = float(torch.einsum("gok,gk->go", self.rows, mean).square().sum())
            energy = energy if energy > _ROUNDING * offset else 0.0
        removable = self.genes != KEPT
        return ConsumerStatistics(
            layer=layer.name,
            column_genes=self.view.column_genes,
            mean=mean,
            covariance=covariance,
            channel_covariance=channel_covariance,
            genes=self.genes[removable],
            gram=gram[removable][:, removable],
            energy=max(energy, 0.0),
            n_rows=self.n_rows,
        )

    def _gram_of(self, covariance: Tensor) -> tuple[FloatArray, float]:
        """Return ``sum over column pairs of (W^T W) * H`` per pair of genes, and its total."""
        order = np.argsort(self.gene_of_column, kind="stable")
        starts = np.searchsorted(self.gene_of_column[order], np.arange(len(self.genes)))
        gram = np.zeros((len(self.genes),) * 2)
        sorted_columns = torch.from_numpy(order)
        for rows, moments in zip(self.rows, covariance, strict=True):
            product = (rows.T @ rows).mul_(moments)
            along = np.add.reduceat(product[:, sorted_columns].numpy(), starts, axis=1, dtype=np.float64)
            gram += np.add.reduceat(along[order], starts, axis=0)
        return gram, float(gram.sum())

    def _channel_covariance(self, mean: Tensor, n: int, *, centre: bool) -> Tensor:
        if self.channels is None:
            return torch.zeros(0)
        covariance = self.channel_second / n
        if centre:
            pooled = mean[:, torch.from_numpy(self.channels)]  # (groups, c, m)
            covariance = covariance - torch.einsum("gcm,gdm->cd", pooled, pooled)
        return covariance


class _Power:
    """Variance of a value over images and positions, summed over channels: those of the layer that is added to it."""

    def __init__(self, layer: FoldedLayer) -> None:
        self.layer = layer
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        maps = channels_second(self.layer, value).double()
        rows = maps.movedim(1, -1).reshape(-1, maps.shape[1])
        rows = rows[torch.isfinite(rows).all(dim=1)]
        self.count += len(rows)
        self.total = self.total + rows.sum(dim=0)
        self.squares = self.squares + rows.square().sum(dim=0)

    def value(self) -> float:
        mean = torch.as_tensor(self.total) / max(self.count, 1)
        return float((torch.as_tensor(self.squares) / max(self.count, 1) - mean.square()).clamp(min=0).sum())


def collect_statistics(
    program: Program, inputs: Tensor, options: StatisticsOptions = StatisticsOptions()
) -> DenseStatistics:
    """Return the statistics of the dense network on ``inputs``; one forward pass, no gradient.

    Positions with an activation that is not finite are left out and counted.

    Args:
        program: The folded network.
        inputs: ``(n, ...)`` calibration images, normalised, in the dtype that the network is run in.
        options: How to gather.
    """
    views: dict[str, PlanarLayer] = {}
    unmeasured: dict[str, str] = {}
    for layer in program.layer_order():
        if layer.in_genes is None or not (layer.in_genes != KEPT).any():
            continue
        view = planar(layer)
        if view is None:
            unmeasured[layer.name] = "the layer has no planar form"
        else:
            views[layer.name] = view
    exact = _with_covariance(views, options.max_bytes)
    sums = {name: _Accumulator(v, with_covariance=name in exact, options=options) for name, v in views.items()}
    generator = torch.Generator().manual_seed(options.seed)

    def record(layer: FoldedLayer, values: Mapping[str, Any]) -> None:
        if layer.name in sums:
            value = values[program.input_of[layer.name]]
            sums[layer.name].add(views[layer.name].regressors(value, options.n_positions, generator))

    powers = {total: _Power(program.layers[name]) for name, (total, _) in shortcut_partners(program).items()}

    def measure(name: str, value: Any) -> None:
        if name in powers:
            powers[name].add(value)

    dense = program.slice(program.space.all_ones()[0]).cast(inputs.dtype)
    with torch.no_grad():
        for part in inputs.split(options.batch_size):
            program.run(dense, [part], on_layer=record, on_value=measure)
        consumers = tuple(accumulator.finish() for accumulator in sums.values())
    totals = {layer: powers[total].value() for layer, (total, _) in shortcut_partners(program).items()}
    consumers = tuple(replace(c, energy=totals.get(c.layer, c.energy)) if c.energy > 0 else c for c in consumers)
    silent = tuple(c.layer for c in consumers if not c.energy > 0)
    n_dropped = sum(accumulator.n_dropped for accumulator in sums.values())
    if silent:
        _LOGGER.warning("layers with constant output, which no error can be told from: %s", ", ".join(silent))
    if n_dropped:
        _LOGGER.warning("%d sampled positions left out: an activation of the dense network is not finite", n_dropped)
    if len(exact) < len(views):
        _LOGGER.info("%d of %d layers are estimated, by max_bytes", len(views) - len(exact), len(views))
    return DenseStatistics(consumers, len(inputs), unmeasured, silent, n_dropped)


def _with_covariance(views: Mapping[str, PlanarLayer], max_bytes: int) -> set[str]:
    """Return the layers whose covariances fit into ``max_bytes``, small ones first."""
    sizes = {name: view.groups * len(view.column_genes) ** 2 * _FLOAT_BYTES for name, view in views.items()}
    chosen: set[str] = set()
    total = 0
    for name in sorted(sizes, key=sizes.__getitem__):
        total += sizes[name]
        if total <= max_bytes:
            chosen.add(name)
    return chosen
