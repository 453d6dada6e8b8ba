"""A search between two generations as plain arrays and JSON values, and how its parts are packed into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from evoprune.search.individual import BestIndividuals
from search_spaces.errors import RunDirectoryError
from search_spaces.genome import BoolArray

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SearchState:
    """A search after a finished generation: plain arrays and JSON values."""

    arrays: Arrays
    data: Mapping[str, Any]


def check_identity(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that a state is one of the search that is to be restored from it.

    Args:
        saved: The state's ``data``.
        expected: What the search says of itself.

    Raises:
        RunDirectoryError: Some of what is expected differs.
    """
    differing = [name for name, value in expected.items() if saved.get(name) != value]
    if differing:
        raise RunDirectoryError(
            "a search can only be restored from a state of its own, but these differ: "
            f"{', '.join(f'{name} (saved {saved.get(name)}, now {expected[name]})' for name in differing)}; "
            "restore them, or start a new run"
        )


def pack_genomes(genomes: BoolArray) -> npt.NDArray[np.uint8]:
    """Return ``genomes`` ``(n, n_genes)`` with eight genes per byte."""
    return np.packbits(genomes, axis=1)


def unpack_genomes(packed: npt.NDArray[Any], n_genes: int) -> BoolArray:
    """Undo :func:`pack_genomes`."""
    return np.unpackbits(packed, axis=1, count=n_genes).astype(np.bool_)


def pack_digests(digests: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Return ``digests`` as ``(n, 16)`` bytes."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 16)


def unpack_digests(packed: npt.NDArray[Any]) -> list[str]:
    """Undo :func:`pack_digests`."""
    return [row.tobytes().hex() for row in packed]


def pack_hall(hall: BestIndividuals, name: str, n_genes: int) -> dict[str, npt.NDArray[Any]]:
    """Return the genomes and objectives of a hall of fame under ``<name>_genomes`` and ``<name>_objectives``."""
    genomes = np.array([individual.genome for individual in hall], np.bool_).reshape(-1, n_genes)
    objectives = np.array([individual.objective for individual in hall], np.float64)
    return {f"{name}_genomes": pack_genomes(genomes), f"{name}_objectives": objectives}


def restore_hall(hall: BestIndividuals, name: str, arrays: Arrays, n_genes: int) -> None:
    """Let ``hall`` hold what :func:`pack_hall` found in another."""
    hall.clear()
    hall.show(unpack_genomes(arrays[f"{name}_genomes"], n_genes), arrays[f"{name}_objectives"])


def as_json(value: Any) -> Any:
    """Return ``value`` as it comes back from JSON: mappings as dicts, sequences as lists."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
