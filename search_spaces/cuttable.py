"""What masking, surgery and verification ask of a search space; they know no other part of one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from search_spaces.blocks import ResidualBlock
from search_spaces.genome import BoolArray, IntArray
from search_spaces.groups import ChannelGroup, Genes


class CuttableSpace(Protocol):
    """The part of :class:`search_spaces.SearchSpace` that says what a genome cuts."""

    @property
    def n_genes(self) -> int:
        """Length of a genome."""

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Channel groups, in order of their genes."""

    @property
    def blocks(self) -> tuple[ResidualBlock, ...]:
        """Residual blocks that the last genes remove."""

    @property
    def genes(self) -> Genes:
        """The gene of every slice of every tensor."""

    @property
    def consumer_slots(self) -> tuple[tuple[str, int], ...]:
        """``(tensor, axis)`` pairs whose slices read channels."""

    def all_ones(self, n: int = 1) -> BoolArray:
        """Return ``n`` genomes that keep everything, ``(n, n_genes)``."""

    def check_genomes(self, genomes: BoolArray) -> None:
        """Raise :class:`GenomeShapeError` unless ``genomes`` is a boolean ``(n, n_genes)`` array."""

    def is_valid(self, genomes: BoolArray) -> BoolArray:
        """Return, per genome, whether every group keeps as many genes as it must; ``(n,)``."""

    def empty_groups(self, genome: BoolArray) -> list[str]:
        """Return the names of the groups in which ``genome`` keeps too few genes."""

    def macs(self, genomes: BoolArray) -> IntArray:
        """Return multiply-adds ``(n,)``."""

    def n_params(self, genomes: BoolArray) -> IntArray:
        """Return parameters ``(n,)``."""

    def remove_blocks(self, small: nn.Module, genome: BoolArray) -> None:
        """Remove the residual branches that ``genome`` switches off from the sliced network ``small``."""

    def silenced_blocks(self, model: nn.Module, genome: BoolArray) -> AbstractContextManager[None]:
        """Make the residual branches that ``genome`` switches off return zero while the context lasts."""
