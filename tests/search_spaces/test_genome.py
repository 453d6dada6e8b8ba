from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import genome_digest, pack_genome, unpack_genome
from search_spaces.errors import GenomeShapeError

bits = st.lists(st.booleans(), max_size=70).map(lambda values: np.array(values, np.bool_))


@given(bits)
def test_unpacking_inverts_packing(genome: np.ndarray) -> None:
    assert np.array_equal(unpack_genome(pack_genome(genome), len(genome)), genome)


@given(bits, bits)
def test_digests_differ_exactly_where_genomes_differ(left: np.ndarray, right: np.ndarray) -> None:
    assert (genome_digest(left) == genome_digest(right)) == np.array_equal(left, right)


def test_first_gene_is_the_highest_bit() -> None:
    assert pack_genome(np.array([True, False, False, False, False, False, False, False, True])) == b"\x80\x80"


def test_digest_is_stable_across_versions() -> None:
    genome = np.array([True, False, True])
    expected = hashlib.blake2b(b"3:\xa0", digest_size=16).hexdigest()
    assert genome_digest(genome) == expected


def test_length_is_part_of_the_identity() -> None:
    assert genome_digest(np.zeros(3, np.bool_)) != genome_digest(np.zeros(4, np.bool_))


@pytest.mark.parametrize("genome", [np.ones((2, 3), np.bool_), np.ones(3, np.int64)])
def test_refuses_what_is_no_genome(genome: np.ndarray) -> None:
    with pytest.raises(GenomeShapeError, match="one-dimensional boolean"):
        pack_genome(genome)


def test_refuses_bytes_of_another_space() -> None:
    with pytest.raises(GenomeShapeError, match="9 genes pack into 2 bytes, but got 1"):
        unpack_genome(b"\x00", 9)
