"""Networks with a planted truth: channels permuted, duplicated or dead, whatever their wiring."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from fitness.criteria import CriterionInput
from fitness.criteria.inputs import MapKind
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.genome import IntArray
from search_spaces.surgery import named_tensors
from tests.fitness.networks import program_of


@cache
def data_of(name: str, n_images: int = 24) -> CriterionInput:
    model, program, inputs = program_of(name)
    return CriterionInput(program, inputs[:n_images], torch.arange(n_images) % 3, model)


def maps_of(data: CriterionInput, index: int, kind: MapKind = "read") -> list[Tensor]:
    """Return the feature maps of group ``index`` of all images, ``(n, g, m, height, width)`` per view."""
    batches = [batch[index] for batch in data.batches(kind)]
    return [torch.cat(views) for views in zip(*batches, strict=True)]


def with_model(data: CriterionInput, model: nn.Module) -> CriterionInput:
    return CriterionInput(Program(data.space, named_tensors(model)), data.inputs, data.labels, model)


def _permute(tensor: Tensor, axis: int, order: IntArray) -> None:
    tensor.copy_(tensor.index_select(axis, torch.from_numpy(order)))


def permuted(data: CriterionInput, new_from_old: IntArray) -> CriterionInput:
    """Return the same function with gene ``i`` where gene ``new_from_old[i]`` was."""
    assert data.model is not None
    model = copy.deepcopy(data.model)
    tensors = named_tensors(model)
    with torch.no_grad():
        for (name, axis), genes in data.space.slot_genes.items():
            order = np.arange(len(genes))
            for gene, old in enumerate(new_from_old):
                order[genes == gene] = np.flatnonzero(genes == old)
            _permute(tensors[name], axis, order)
    return with_model(data, model)


def _made_by(data: CriterionInput, model: nn.Module) -> list[tuple[Tensor, int, IntArray]]:
    tensors = named_tensors(model)
    consumers = set(data.space.consumer_slots)
    return [(tensors[n], a, g) for (n, a), g in data.space.slot_genes.items() if (n, a) not in consumers]


def duplicated(data: CriterionInput, source: int, target: int) -> CriterionInput:
    """Return the network whose gene ``target`` is made exactly as ``source`` is."""
    assert data.model is not None
    model = copy.deepcopy(data.model)
    with torch.no_grad():
        for tensor, axis, genes in _made_by(data, model):
            for to, origin in zip(np.flatnonzero(genes == target), np.flatnonzero(genes == source), strict=True):
                tensor.select(axis, int(to)).copy_(tensor.select(axis, int(origin)))
    return with_model(data, model)


def killed(data: CriterionInput, gene: int) -> CriterionInput:
    """Return the network in which nothing comes out of ``gene``: weights, biases, scales and shifts are zero."""
    assert data.model is not None
    model = copy.deepcopy(data.model)
    with torch.no_grad():
        for tensor, axis, genes in _made_by(data, model):
            if tensor.is_floating_point():
                for place in np.flatnonzero(genes == gene):
                    tensor.select(axis, int(place)).zero_()
    return with_model(data, model)


def within_groups(space: SearchSpace, rng: np.random.Generator) -> IntArray:
    """Return a permutation of the genes that leaves every gene in its group."""
    order = np.arange(space.n_genes)
    for group in space.groups:
        order[group.start : group.stop] = rng.permutation(order[group.start : group.stop])
    return order
