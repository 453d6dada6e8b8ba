"""What a criterion may look at: weights, feature maps and gradients of the dense network, gene by gene.

A gene may stand for several channels (coupled layers, grouped convolutions), so everything is handed out per gene: the
first axis of every array of weights and the second of every feature map runs over the genes of one group. A criterion
judges the group from all its *producers* (the layers that make it) or all its *views* (the distinct values that layers
read it from) and says how it brings them together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fitness.criteria.gating import checked_logits, run_gated
from fitness.folding import FoldedLayer
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.errors import DataError, check_rules
from search_spaces.genome import FloatArray, IntArray
from search_spaces.graph import Ref
from search_spaces.groups import ChannelGroup

#: ``read``: as consumers see them, behind batch norm and non-linearity. ``made``: behind the (folded) batch norm alone.
MapKind = Literal["read", "made"]
_POOLING = ("adaptive_avg_pool2d", "adaptive_avg_pool3d", "dropout", "flatten", "mean", "reshape", "view")


@dataclass(frozen=True)
class _View:
    """Where the channels of a group stand in a value.

    Attributes:
        group: Index of the group.
        value: Name of the value.
        places: ``(g, m)``.
        is_spatial: Channels are the second dimension; else features are the last.
        is_flattened: The ``m`` features of a gene are the pixels of one map.
    """

    group: int
    value: str
    places: IntArray
    is_spatial: bool
    is_flattened: bool


@dataclass(frozen=True, eq=False)
class CriterionInput:
    """The dense network and calibration images, with all that criteria derive from them, computed when first asked for.

    Attributes:
        program: The folded network; its tensors' device is where everything is computed, but for small matrices in
            float64, which are the processor's.
        inputs: ``(n, channels, height, width)`` normalised calibration images on that device, n >= 1.
        labels: ``(n,)`` int64 classes; the dense network's own predictions take their place where they are ``None``.
        model: The dense network in evaluation mode, never changed; ``None`` where its code is not at hand.
        seed: Of everything random; equal seeds, equal results.
        batch_size: Images per forward pass.
    """

    program: Program
    inputs: Tensor
    labels: Tensor | None = None
    model: nn.Module | None = None
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check images, labels and counts.

        Raises:
            DataError: There is no image, one is not finite, or labels do not belong to the images.
            OptionError: A count is not positive.
        """
        if len(self.inputs) == 0 or not bool(torch.isfinite(self.inputs).all()):
            raise DataError(
                f"criteria need one finite calibration image at least, but got {tuple(self.inputs.shape)}"
                + ("" if len(self.inputs) == 0 else " with values that are not finite")
            )
        if self.labels is not None and (
            self.labels.shape != (len(self.inputs),) or self.labels.is_floating_point() or self.labels.min() < 0
        ):
            raise DataError(
                f"labels must be {len(self.inputs)} classes counted from 0, one per image, but got shape "
                f"{tuple(self.labels.shape)} of {self.labels.dtype}; leave them out to use the network's predictions"
            )
        check_rules([("batch_size >= 1", self.batch_size >= 1, self.batch_size)])

    # ------------------------------------------------------------------ the space

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.program.space

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.inputs.device

    def on_processor(self) -> CriterionInput:
        """Return this network and these images on the CPU; itself where they are there."""
        if self.device.type == "cpu":
            return self
        tensors = {name: tensor.cpu() for name, tensor in self.program.raw_tensors.items()}
        labels = None if self.labels is None else self.labels.cpu()
        return replace(self, program=Program(self.space, tensors), inputs=self.inputs.cpu(), labels=labels)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Genes per group, as :class:`fitness.criteria.contract.ChannelKnowledge` wants them."""
        return tuple(group.size for group in self.space.groups)

    @property
    def groups(self) -> Iterator[tuple[int, ChannelGroup]]:
        """The groups of channels with their index; groups that stand for residual blocks are left out."""
        return ((index, group) for index, group in enumerate(self.space.groups) if group.kind == "channel")

    def gather_scores(self, of_group: Mapping[int, Tensor | FloatArray]) -> FloatArray:
        """Return ``(n_genes,)`` float64 scores from ``(g,)`` per group.

        Groups that are not given are worth 0; genes of residual blocks get the largest score of all.
        """
        scores = np.zeros(self.space.n_genes)
        for index, values in of_group.items():
            group = self.space.groups[index]
            array = values.double().cpu().numpy() if isinstance(values, Tensor) else values
            scores[group.start : group.stop] = array
        n_channels = self.space.n_genes - len(self.space.blocks)
        scores[n_channels:] = scores[:n_channels].max(initial=0.0)
        return scores

    # ------------------------------------------------------------------ randomness

    def rng(self, stream: str) -> np.random.Generator:
        """Return the generator of ``stream``, the name of the criterion, for :attr:`seed`."""
        return np.random.default_rng([self.seed, zlib.crc32(stream.encode())])

    def torch_generator(self, stream: str) -> torch.Generator:
        """Return the same for torch, on the CPU."""
        return torch.Generator().manual_seed(int(self.rng(stream).integers(2**62)))

    # ------------------------------------------------------------------ weights

    @cached_property
    def _producers(self) -> dict[int, list[tuple[FoldedLayer, IntArray]]]:
        found: dict[int, list[tuple[FoldedLayer, IntArray]]] = {index: [] for index, _ in self.groups}
        seen: set[str | None] = set()
        for layer in self.program.layers.values():
            if layer.record.is_depthwise or layer.record.weight in seen:
                continue
            seen.add(layer.record.weight)
            for index, group in self.groups:
                if group.start in layer.out_genes:
                    found[index].append((layer, _places(layer.out_genes, group)))
        return found

    def producers(self, index: int) -> list[str]:
        """Return the names (in the program) of the layers that make the channels of group ``index``.

        A weight that is used twice counts once; depthwise convolutions pass channels on and make none.
        """
        return [layer.name for layer, _ in self._producers[index]]

    def filters(self, index: int, *, folded: bool = False) -> list[Tensor]:
        """Return the filters of every producer of group ``index``, ``(g, m, n_inputs, n_taps)`` float64 each.

        Args:
            index: Of the group.
            folded: With the batch norm folded in; as the network holds them by default.
        """
        return [
            self._filter_rows(layer, folded=folded)[torch.from_numpy(places).to(self.device)]
            for layer, places in self._producers[index]
        ]

    def layer_filters(self, name: str, *, folded: bool = False) -> Tensor:
        """Return all filters of one layer of the program, ``(n_outputs, n_inputs, n_taps)`` float64."""
        return self._filter_rows(self.program.layers[name], folded=folded)

    def _filter_rows(self, layer: FoldedLayer, *, folded: bool) -> Tensor:
        assert layer.record.weight is not None
        weight = layer.weight if folded else self.program.raw_tensors[layer.record.weight]
        weight = weight.double().flatten(2) if weight.ndim > 2 else weight.double().unsqueeze(2)
        if not layer.record.is_transposed:
            return weight
        groups = layer.record.groups
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

    def consumers(self, index: int) -> list[Tensor]:
        """Return the folded weights with which every consumer reads group ``index``, ``(g, m, n_outputs, n_taps)``.

        float64; ``n_outputs`` are those of one group of a grouped convolution. A layer that is called twice counts
        twice.
        """
        found = []
        group = self.space.groups[index]
        for layer in self.program.layer_order():
            if layer.in_genes is None or group.start not in layer.in_genes:
                continue
            weight = layer.weight.double().flatten(2) if layer.weight.ndim > 2 else layer.weight.double().unsqueeze(2)
            by_input = weight if layer.record.is_transposed else weight.transpose(0, 1)
            found.append(by_input[torch.from_numpy(_places(layer.in_genes, group)).to(self.device)])
        return found

    def gammas(self, index: int) -> list[Tensor]:
        """Return the raw scale of every batch norm that group ``index`` passes, ``(g, m)`` float64; often one."""
        group = self.space.groups[index]
        tensors = self.program.raw_tensors
        return [
            tensors[f"{path}.weight"].double()[torch.from_numpy(_places(genes, group)).to(self.device)]
            for path, genes in self.space.genes.norm_genes.items()
            if group.start in genes and f"{path}.weight" in tensors
        ]

    # ------------------------------------------------------------------ feature maps

    @cached_property
    def _views(self) -> dict[MapKind, list[_View]]:
        read: dict[tuple[int, str], _View] = {}
        made: list[_View] = []
        for step in self.program.steps:
            layer = step.layer
            if layer is None:
                continue
            source, is_spatial = self._map_behind(step.operation.args[0].name, bool(layer.kernel))
            for index, group in self.groups:
                if layer.in_genes is not None and group.start in layer.in_genes:
                    places = _places(layer.in_genes, group)
                    if layer.record.groups > 1 and not layer.record.is_transposed:
                        width = len(layer.in_genes)
                        shifts = np.arange(layer.record.groups) * width
                        places = (places[:, None, :] + shifts[:, None]).reshape(len(places), -1)
                    read.setdefault((index, source), _View(index, source, places, is_spatial, not is_spatial))
                if not layer.record.is_depthwise and group.start in layer.out_genes:
                    places = _places(layer.out_genes, group)
                    made.append(_View(index, layer.name, places, bool(layer.kernel), is_flattened=False))
        return {"read": list(read.values()), "made": made}

    def _map_behind(self, name: str, is_spatial: bool) -> tuple[str, bool]:
        """Return the map that a global average was taken of, where ``name`` is one, and whether it has places.

        One number per image tells too little of a channel, and the average is only how the classifier reads the map.
        """
        operations = {step.operation.name: step.operation for step in self.program.steps}
        operation = operations.get(name)
        n_channels = operation.shape[1] if operation is not None and len(operation.shape) > 1 else 0
        while operation is not None and operation.op in _POOLING:
            argument = operation.args[0]
            operation = operations.get(argument.name) if isinstance(argument, Ref) else None
            if operation is None or len(operation.shape) < 2 or operation.shape[1] != n_channels:
                break
            if len(operation.shape) > 3 and max(operation.shape[2:]) > 1:
                return operation.name, True
        return name, is_spatial

    def batches(self, kind: MapKind = "read", n_images: int | None = None) -> Iterator[dict[int, list[Tensor]]]:
        """Yield, batch by batch, the feature maps of every group that has any, in float32.

        Per group there is one tensor ``(batch, g, m, height, width)`` per view, always in the same order; ``m`` > 1
        where a gene stands for several channels. Features of a linear layer that stem from one channel are its map.

        Args:
            kind: As consumers see them, or as producers make them.
            n_images: Images to use, the first ones; all by default.
        """
        by_value: dict[str, list[_View]] = {}
        for view in self._views[kind]:
            by_value.setdefault(view.value, []).append(view)
        dense = self.program.slice(self.space.all_ones()[0]).cast(torch.float32)
        for part in self.inputs[:n_images].float().split(self.batch_size):
            maps: dict[int, list[Tensor]] = {}

            def record(name: str, value: Any, maps: dict[int, list[Tensor]] = maps) -> None:
                for view in by_value.get(name, ()):
                    maps.setdefault(view.group, []).append(_maps_of(value, view))

            with torch.no_grad():
                self.program.run(dense, [part], on_value=record)
            yield maps

    # ------------------------------------------------------------------ logits and gradients

    @cached_property
    def target_labels(self) -> Tensor:
        """``(n,)`` the labels, or the dense network's predictions where there are none."""
        if self.labels is not None:
            return self.labels.to(self.device)
        dense = self.program.slice(self.space.all_ones()[0]).cast(torch.float32)
        with torch.no_grad():
            parts = [
                checked_logits(self.program, self.program.run(dense, [part]))
                for part in self.inputs.float().split(self.batch_size)
            ]
        return torch.cat(parts).argmax(dim=1)

    @cached_property
    def gate_gradients(self) -> FloatArray:
        """``(n, n_genes)`` derivative of each image's cross-entropy by a gate on each gene, all gates at 1.

        The gate multiplies the gene's channels where layers read them, so the derivative is ``sum a dL/da`` over
        places, channels and all consumers of the gene: coupled layers are added before anything is squared. Zero for
        genes of residual blocks, and for those that the first output does not depend on.

        Raises:
            DataError: The network's first output is not a matrix of logits, or a label lies outside of it.
        """
        result = np.zeros((len(self.inputs), self.space.n_genes))
        start = 0
        for part, labels in zip(
            self.inputs.float().split(self.batch_size), self.target_labels.split(self.batch_size), strict=True
        ):
            for layer, gradient in self._gate_gradients_of(part, labels):
                assert layer.in_genes is not None
                genes = np.tile(layer.in_genes, gradient.shape[1] // len(layer.in_genes))
                is_gene = genes >= 0
                columns = gradient.double().cpu().numpy()[:, is_gene]
                np.add.at(result[start : start + len(part)].T, genes[is_gene], columns.T)
            start += len(part)
        return result

    def _gate_gradients_of(self, images: Tensor, labels: Tensor) -> list[tuple[FoldedLayer, Tensor]]:
        """Return the derivative ``(n, channels)`` of each image's cross-entropy by gates on what each layer reads."""
        gates: list[tuple[FoldedLayer, Tensor]] = []

        def gate_of(layer: FoldedLayer, value: Tensor, axis: int) -> Tensor:
            gate = torch.ones(len(value), value.shape[axis], device=value.device, requires_grad=True)
            gates.append((layer, gate))
            shape = [1] * value.ndim
            shape[0], shape[axis] = gate.shape
            return gate.view(shape)

        logits = checked_logits(self.program, run_gated(self.program, images, gate_of))
        if int(labels.max()) >= logits.shape[1]:
            raise DataError(f"labels must lie below {logits.shape[1]}, the classes, but got {int(labels.max())}")
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        if not loss.requires_grad:
            return []
        # Zeros for a layer that only another output depends on.
        gradients = torch.autograd.grad(loss, [gate for _, gate in gates], materialize_grads=True)
        return [(layer, gradient) for (layer, _), gradient in zip(gates, gradients, strict=True)]


def _places(genes: IntArray, group: ChannelGroup) -> IntArray:
    """Return where each gene of ``group`` stands in ``genes``, ``(g, m)``; all genes stand equally often."""
    order = np.flatnonzero((genes >= group.start) & (genes < group.stop))
    return order[np.argsort(genes[order], kind="stable")].reshape(group.size, -1)


def _maps_of(value: Tensor, view: _View) -> Tensor:
    """Return ``(batch, g, m, height, width)``, a copy."""
    places = torch.from_numpy(view.places).to(value.device)
    size, m = places.shape
    if view.is_spatial:
        maps = value[:, places.flatten()].unflatten(1, (size, m))
        return maps.unsqueeze(3) if maps.ndim == 4 else maps.flatten(3, -2)
    if value.ndim > 2:  # features last: the dimensions between are places
        maps = value[..., places.flatten()].movedim(-1, 1).flatten(2)
        return maps.unflatten(1, (size, m)).unsqueeze(3)
    maps = value[:, places.flatten()].unflatten(1, (size, m))
    if not view.is_flattened:
        return maps[..., None, None]
    side = int(m**0.5)
    shape = (side, side) if side * side == m else (1, m)
    return maps.unflatten(2, shape).unsqueeze(2)
