"""Genomes: boolean masks over the genes of a space, their packed form and their identity."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from search_spaces.errors import GenomeShapeError

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]


def pack_genome(genome: BoolArray) -> bytes:
    """Return ``genome`` ``(n_genes,)`` as ``ceil(n_genes / 8)`` bytes, first gene in the highest bit.

    Raises:
        GenomeShapeError: ``genome`` is not one-dimensional or not boolean.
    """
    if genome.ndim != 1 or genome.dtype != np.bool_:
        raise GenomeShapeError(
            f"a genome must be a one-dimensional boolean array, but got shape {genome.shape} of {genome.dtype}; "
            "pass one row of a population, True = keep"
        )
    return np.packbits(genome).tobytes()


def unpack_genome(packed: bytes, n_genes: int) -> BoolArray:
    """Return the ``(n_genes,)`` genome that :func:`pack_genome` turned into ``packed``.

    Raises:
        GenomeShapeError: ``packed`` does not hold exactly ``n_genes`` genes.
    """
    if len(packed) != -(-n_genes // 8):
        raise GenomeShapeError(
            f"{n_genes} genes pack into {-(-n_genes // 8)} bytes, but got {len(packed)}; "
            "the genome belongs to another search space"
        )
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=n_genes).astype(np.bool_)


def genome_digest(genome: BoolArray) -> str:
    """Return the identity of ``genome``: 32 hexadecimal digits over its length and bits (BLAKE2b-128).

    Cache key, seed key and file name all use this string. Equal genomes of different lengths differ.
    """
    header = str(genome.shape[0]).encode()
    return hashlib.blake2b(header + b":" + pack_genome(genome), digest_size=16).hexdigest()
