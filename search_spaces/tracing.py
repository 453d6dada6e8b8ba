"""How a search space is made: the network is traced, its channels grouped, costed and verified, its blocks found.

A space is trusted only after random genomes were cut by it; what fails there is frozen, and the rest tried again.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.blocks import ResidualBlock, block_groups, find_blocks, inner_groups
from search_spaces.cost import Costs, build_costs
from search_spaces.cuttable import CuttableSpace
from search_spaces.errors import TraceError
from search_spaces.export import export_graph
from search_spaces.graph import NetworkGraph
from search_spaces.groups import FrozenChannels, Genes, GroupRules, build_genes
from search_spaces.provenance import WEIGHTED, Provenance, trace_provenance
from search_spaces.repair import Lattice
from search_spaces.surgery import named_tensors
from search_spaces.verification import count_macs, failing_blocks, failing_groups


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in evaluation mode, without gradients.

    Raises:
        TraceError: It is compiled by TorchScript, or cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            f"a network must be written in Python, but {type(model).__name__} is compiled by TorchScript; pass the "
            "network that it was made from"
        )
    try:
        twin = copy.deepcopy(model).eval()
    except Exception as error:  # copying runs the user's code
        raise TraceError(
            f"{type(model).__name__} must be copyable, but copy.deepcopy raised {type(error).__name__}: {error}; "
            "remove what cannot be copied (open files, locks, generators) from the network"
        ) from error
    return twin.requires_grad_(False)


def _of_batch(inputs: Sequence[Tensor], graph: NetworkGraph) -> tuple[Tensor, ...]:
    """Return ``inputs`` with the batch size that ``graph`` was traced with, which is twice theirs where it is 1."""
    pairs = zip(inputs, graph.input_shapes, strict=True)
    return tuple(value if value.shape == shape else torch.cat([value, value]) for value, shape in pairs)


@dataclass(frozen=True)
class TracedNetwork:
    """A network and what its trace says.

    Attributes:
        model: A private copy, in evaluation mode; verification changes its weights.
        inputs: Example inputs, with the batch size of ``graph``.
        graph: Its operations.
        provenance: Which channel every element comes from; what fails verification is frozen in it.
        parameter_shapes: By qualified name.
        macs: Of the whole network, per sample, by PyTorch's own counter.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    graph: NetworkGraph
    provenance: Provenance
    parameter_shapes: Mapping[str, tuple[int, ...]]
    macs: int

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Tensor, ...]) -> TracedNetwork:
        """Trace ``model``.

        Raises:
            TraceError: It cannot be traced.
        """
        graph = export_graph(model, inputs)
        inputs = _of_batch(inputs, graph)
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
        return cls(
            model=model,
            inputs=inputs,
            graph=graph,
            provenance=trace_provenance(graph, shapes),
            macs=count_macs(model, inputs),
            parameter_shapes={name: tuple(p.shape) for name, p in model.named_parameters()},
        )

    def costs(self, genes: Genes, block_of_tensor: Mapping[str, int]) -> Costs:
        """Return what every count of kept ``genes`` costs; parameters may vanish with a residual block's group."""
        n_samples = self.graph.input_shapes[0][0]
        sizes = {operation.name: math.prod(operation.shape) // n_samples for operation in self.graph.operations}
        layers = tuple(self.provenance.layers)
        known = {layer.operation for layer in layers}
        n_fixed = sum(sizes[o.name] for o in self.graph.operations if o.op in WEIGHTED and o.name not in known)
        return build_costs(genes, layers, self.parameter_shapes, sizes, n_fixed, self.macs, block_of_tensor)


@dataclass(frozen=True)
class SpaceParts:
    """What a search space consists of, besides the trace.

    Attributes:
        genes: Groups, frozen channels and the gene of every slice of every tensor.
        counted: The costs that need no measurement.
        lattice: Allowed kept counts per group.
        blocks: Residual blocks that the last genes remove.
    """

    genes: Genes
    counted: Costs
    lattice: Lattice
    blocks: tuple[ResidualBlock, ...] = ()


def build_parts(
    make: Callable[[SpaceParts], CuttableSpace],
    network: TracedNetwork,
    rules: GroupRules,
    *,
    verify: bool,
    block_genes: bool,
) -> SpaceParts:
    """Return the parts of the search space of ``network``.

    Args:
        make: Makes a space of parts, to verify it.
        network: Its trace; groups that fail verification are frozen in it.
        rules: Which channels may go, and how many.
        verify: Whether random genomes are cut and compared first.
        block_genes: Whether there are genes for residual blocks.

    Raises:
        OptionError: A rule matches nothing.
    """
    parts = _of_channels(network, rules)
    if verify:
        parts = _with_verified_channels(make, parts, network, rules)
    if block_genes:
        taken = [group.name for group in parts.genes.groups]
        layers, names = network.provenance.layers, list(network.parameter_shapes)
        parts = _with_blocks(parts, network, find_blocks(network.graph, layers, rules, names, taken))
        if verify:
            parts = _with_verified_blocks(make, parts, network)
    return parts


def _of_channels(network: TracedNetwork, rules: GroupRules) -> SpaceParts:
    """Return the parts of a space of all channels that are not frozen."""
    genes = build_genes(network.provenance, rules)
    return SpaceParts(genes, network.costs(genes, {}), Lattice.of(genes.groups))


def _with_verified_channels(
    make: Callable[[SpaceParts], CuttableSpace], parts: SpaceParts, network: TracedNetwork, rules: GroupRules
) -> SpaceParts:
    """Freeze failing groups until random genomes pass; every round freezes at least one group, so it ends."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while parts.genes.groups:
            failed = dict(failing_groups(network.model, make(parts), network.inputs, rng))
            if not failed:
                break
            for index, reason in failed.items():
                group = parts.genes.groups[index]
                for ids in parts.genes.gene_ids[group.start : group.stop]:
                    for channel in ids:
                        network.provenance.frozen.setdefault(int(channel), reason)
            parts = _of_channels(network, rules)
    return parts


def _with_blocks(parts: SpaceParts, network: TracedNetwork, blocks: tuple[ResidualBlock, ...]) -> SpaceParts:
    """Return the same parts with genes for exactly these ``blocks``."""
    channels = tuple(group for group in parts.genes.groups if group.kind == "channel")
    groups = channels + block_groups(blocks, channels[-1].stop if channels else 0)
    genes = replace(parts.genes, groups=groups)
    owner = np.full(len(groups), -1, np.int64)
    for index, inside in enumerate(inner_groups(blocks, channels, genes.slot_genes)):
        owner[list(inside)] = len(channels) + index
    block_of_tensor = {name: len(channels) + i for i, block in enumerate(blocks) for name in block.parameters}
    return SpaceParts(genes, network.costs(genes, block_of_tensor), Lattice.of(groups, owner), blocks)


def _with_verified_blocks(
    make: Callable[[SpaceParts], CuttableSpace], parts: SpaceParts, network: TracedNetwork
) -> SpaceParts:
    """Drop the genes of blocks that cannot be removed; every round drops at least one, so it ends."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while parts.blocks:
            failed = dict(failing_blocks(network.model, make(parts), network.inputs, rng))
            if not failed:
                break
            told = [FrozenChannels(parts.blocks[i].name, 0, f"block stays: {why}") for i, why in failed.items()]
            kept = tuple(block for index, block in enumerate(parts.blocks) if index not in failed)
            genes = replace(parts.genes, frozen=(*parts.genes.frozen, *told))
            parts = _with_blocks(replace(parts, genes=genes), network, kept)
    return parts
