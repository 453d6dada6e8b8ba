"""Dense statistics on disk: gathered once per network, images and options, then read.

An entry is found by the content of all that decides it and carries a digest of itself. One that is damaged, truncated
or of another format is gathered anew; a cache that cannot be written costs the next run the time, and this one nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitness.cache import cache_root
from fitness.disk_cache import cached_entry, feed_tensor
from fitness.elimination import Elimination
from fitness.program import Program
from fitness.statistics import ConsumerStatistics, DenseStatistics, StatisticsOptions, collect_statistics
from fitness.two_step import TwoStep

#: To be raised when statistics or eliminations change for equal input.
FORMAT = 2
_ARRAYS = ("column_genes", "genes", "gram")
_TENSORS = ("mean", "covariance", "channel_covariance")


def statistics_key(program: Program, inputs: Tensor, options: StatisticsOptions) -> str:
    """Return the identity of the statistics: BLAKE2b-128 over weights, structure, images and options."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([FORMAT, dataclasses.asdict(options), program.space.fingerprint]).encode())
    feed_program(digest, program)
    feed_tensor(digest, "images", inputs)
    return digest.hexdigest()


def feed_program(digest: hashlib.blake2b, program: Program) -> None:
    """Add weights and structure of ``program`` to ``digest``."""
    for name, layer in program.layers.items():
        place = (name, layer.stride, layer.padding, layer.dilation, layer.record.groups)
        feed_tensor(digest, repr(place), layer.weight)
        feed_tensor(digest, "bias", layer.bias)
    ones = program.space.all_ones()[0]
    for name, tensor in sorted(program.slice(ones).others.items()):
        feed_tensor(digest, name, tensor)
    for step in program.steps:
        digest.update(f"{step.operation.op}({step.operation.args}, {dict(step.operation.kwargs)});".encode())


def cached_statistics(
    program: Program,
    inputs: Tensor,
    options: StatisticsOptions | None = None,
    *,
    folder: Path | None = None,
) -> DenseStatistics:
    """Return :func:`fitness.statistics.collect_statistics` of the arguments, from the cache where it is there.

    Args:
        program: The folded network.
        inputs: ``(n, ...)`` calibration images.
        options: How to gather.
        folder: Where entries lie; below the user's cache folder by default. One of VGG-16 takes about 500 MB.
    """
    options = options or StatisticsOptions()
    path = _folder(folder) / f"{statistics_key(program, inputs, options)}.safetensors"
    return cached_entry(
        path, lambda: collect_statistics(program, inputs, options), _pack_statistics, _unpack_statistics
    )


def cached_two_step(
    program: Program,
    inputs: Tensor,
    options: StatisticsOptions | None = None,
    *,
    damping: float = 1e-2,
    folder: Path | None = None,
) -> TwoStep:
    """Return the two-step approximation with statistics and eliminations from the cache, or computed and kept there.

    Args:
        program: The folded network.
        inputs: ``(n, ...)`` calibration images.
        options: How to gather.
        damping: Of the second step.
        folder: As for :func:`cached_statistics`.

    Raises:
        OptionError: ``damping`` is not positive.
    """
    options = options or StatisticsOptions()
    two_step = TwoStep(program, cached_statistics(program, inputs, options, folder=folder), damping=damping)
    name = f"{statistics_key(program, inputs, options)}-{float(damping).hex()}.safetensors"
    known = cached_entry(
        _folder(folder) / name, lambda: dict(two_step.eliminations), _pack_eliminations, _unpack_eliminations
    )
    return TwoStep(program, two_step.statistics, damping=damping, eliminations=known)


def _folder(folder: Path | None) -> Path:
    return cache_root() / "statistics" if folder is None else folder


def _pack_statistics(statistics: DenseStatistics) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    entries = []
    for index, consumer in enumerate(statistics.consumers):
        for name in _ARRAYS:
            tensors[f"{index}/{name}"] = torch.from_numpy(getattr(consumer, name))
        for name in _TENSORS:
            tensors[f"{index}/{name}"] = getattr(consumer, name)
        entries.append({"layer": consumer.layer, "energy": consumer.energy.hex(), "n_rows": consumer.n_rows})
    facts = {
        "consumers": entries,
        "n_images": statistics.n_images,
        "unmeasured": dict(statistics.unmeasured),
        "silent": statistics.silent,
        "n_rows_dropped": statistics.n_rows_dropped,
    }
    return tensors, facts


def _unpack_statistics(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> DenseStatistics:
    consumers = [
        ConsumerStatistics(
            layer=entry["layer"],
            energy=float.fromhex(entry["energy"]),
            n_rows=entry["n_rows"],
            column_genes=tensors[f"{index}/column_genes"].numpy(),
            genes=tensors[f"{index}/genes"].numpy(),
            gram=tensors[f"{index}/gram"].numpy(),
            mean=tensors[f"{index}/mean"],
            covariance=tensors[f"{index}/covariance"],
            channel_covariance=tensors[f"{index}/channel_covariance"],
        )
        for index, entry in enumerate(facts["consumers"])
    ]
    return DenseStatistics(
        consumers=tuple(consumers),
        n_images=facts["n_images"],
        unmeasured=facts["unmeasured"],
        silent=tuple(facts["silent"]),
        n_rows_dropped=facts["n_rows_dropped"],
    )


def _pack_eliminations(eliminations: Mapping[str, Elimination]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {}
    for index, elimination in enumerate(eliminations.values()):
        tensors[f"{index}/order"] = torch.from_numpy(elimination.order)
        tensors[f"{index}/error"] = torch.from_numpy(elimination.error)
    return tensors, {"groups": list(eliminations)}


def _unpack_eliminations(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Elimination]:
    return {
        name: Elimination(tensors[f"{index}/order"].numpy(), tensors[f"{index}/error"].numpy())
        for index, name in enumerate(facts["groups"])
    }
