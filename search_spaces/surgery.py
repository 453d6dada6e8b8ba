"""Surgery: build the small, dense, ordinary network that a genome describes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.cuttable import CuttableSpace
from search_spaces.errors import GenomeShapeError
from search_spaces.genome import BoolArray
from search_spaces.groups import kept_slices

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def prune_model(model: nn.Module, space: CuttableSpace, genome: BoolArray) -> nn.Module:
    """Return a new network of the same class that holds only the kept slices of every parameter and buffer.

    The new network has its own storage, the mode, device and dtype of ``model``, and attributes such as
    ``out_channels`` that fit its weights. ``model`` is not changed. Gradients are not copied.

    Args:
        model: The network that ``space`` was traced from, or one with the same parameters.
        space: Its search space.
        genome: ``(n_genes,)``, True = keep.

    Raises:
        GenomeShapeError: The genome does not belong to the space.
    """
    space.check_genomes(genome[None])
    if not space.is_valid(genome[None])[0]:
        raise GenomeShapeError(
            "a genome must keep at least min_keep genes of every group, but got fewer in "
            f"{', '.join(space.empty_groups(genome))}; pass it through space.repair first"
        )
    with torch.no_grad():
        memo: dict[int, Any] = {}
        for name, tensor in named_tensors(model).items():
            memo[id(tensor)] = _sliced(name, tensor, space, genome)
        small = copy.deepcopy(model, memo)
    _fit_attributes(model, small)
    for path, genes in space.genes.pad_genes.items():
        pad: Any = small.get_submodule(path)
        kept = kept_slices(genes, genome)
        before, after = int(pad.before), int(pad.after)
        pad.before = int(kept[:before].sum())
        pad.after = int(kept[len(kept) - after :].sum())
    for path, genes in space.genes.norm_genes.items():
        norm: Any = small.get_submodule(path)
        if hasattr(norm, "num_features"):
            norm.num_features = int(kept_slices(genes, genome).sum())
    space.remove_blocks(small, genome)
    return small


def embed_model(small: nn.Module, model: nn.Module, space: CuttableSpace, genome: BoolArray) -> nn.Module:
    """Return a network of the shapes of ``model`` that computes what ``small`` does: :func:`prune_model` undone.

    Kept slices are those of ``small``, all others zero, in what makes a removed channel and in what reads it. Pruned by
    ``genome``, or by one that keeps less, it gives the slices of ``small`` bit for bit; as a whole it agrees with
    ``small`` up to rounding. ``model`` gives structure, mode and device, and is not changed.

    Args:
        small: What ``genome`` left of ``model``, with any weights.
        model: The network that ``space`` was traced from.
        space: Its search space.
        genome: ``(n_genes,)``, True = keep; all blocks are kept.

    Raises:
        GenomeShapeError: ``small`` is not what ``genome`` leaves of ``model``.
    """
    space.check_genomes(genome[None])
    kept = named_tensors(small)
    whole = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in named_tensors(whole).items():
            expected = slice_tensor(name, tensor.detach(), space, genome).shape
            if name not in kept or kept[name].shape != expected:
                found = tuple(kept[name].shape) if name in kept else "nothing"
                raise GenomeShapeError(
                    f"a network can be embedded where its genome cut it out, but for {name!r} the genome leaves "
                    f"{tuple(expected)} and the network has {found}; give the genome that it was pruned by"
                )
            tensor.detach().copy_(_widened(name, kept[name].detach(), tensor.shape, space, genome))
    return whole


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every distinct parameter and buffer under its first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def slice_tensor(name: str, tensor: Tensor, space: CuttableSpace, genome: BoolArray) -> Tensor:
    """Return the kept slices of one tensor of the network; the tensor itself where nothing is cut."""
    for axis in range(tensor.ndim):
        genes = space.genes.slot_genes.get((name, axis))
        if genes is None:
            continue
        keep = kept_slices(genes, genome)
        if not keep.all():
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(keep)).to(tensor.device))
    return tensor


def _widened(name: str, tensor: Tensor, shape: Sequence[int], space: CuttableSpace, genome: BoolArray) -> Tensor:
    """Return the kept slices ``tensor`` at their places in zeros of ``shape``."""
    for axis in range(tensor.ndim):
        if tensor.shape[axis] != shape[axis]:
            places = np.flatnonzero(kept_slices(space.genes.slot_genes[name, axis], genome))
            wide = tensor.new_zeros((*tensor.shape[:axis], shape[axis], *tensor.shape[axis + 1 :]))
            tensor = wide.index_copy_(axis, torch.from_numpy(places).to(tensor.device), tensor)
    return tensor


def _sliced(name: str, tensor: Tensor, space: CuttableSpace, genome: BoolArray) -> Tensor:
    sliced = slice_tensor(name, tensor.detach(), space, genome)
    sliced = sliced.clone() if sliced.data_ptr() == tensor.data_ptr() else sliced
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        sliced = sliced.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(sliced, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced


def _fit_attributes(dense: nn.Module, small: nn.Module) -> None:
    """Rewrite the sizes that modules hold beside their weights."""
    originals: dict[str, Any] = dict(dense.named_modules())
    module: Any
    for path, module in small.named_modules():
        original = originals[path]
        if isinstance(module, _CONVOLUTIONS):
            made, read = (1, 0) if isinstance(module, _TRANSPOSED) else (0, 1)
            if original.groups > 1 and original.groups == original.in_channels:  # depthwise: groups follow the channels
                module.groups = module.weight.shape[0] * original.groups // original.weight.shape[0]
                module.in_channels = module.groups
                module.out_channels = module.groups * (original.out_channels // original.groups)
            else:
                module.out_channels = module.weight.shape[made] * (module.groups if made == 1 else 1)
                module.in_channels = module.weight.shape[read] * (module.groups if read == 1 else 1)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.shape[0]
