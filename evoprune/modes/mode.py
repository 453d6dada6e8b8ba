"""What a mode is: a description, and how its strategy is made from what a run has prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from evoprune.options import SearchOptions
from evoprune.search import LadderPlan, LocalError, Prior, SearchConfig, Strategy
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, FloatArray


@dataclass(frozen=True)
class SearchTask:
    """What a strategy is made of: arrays, a space and a configuration; neither images nor networks.

    Attributes:
        space: What may be removed and what it costs.
        config: Sizes, budgets and ladder.
        options: Resolved options of the run, seed included; modes take their own ones from here.
        channel_scores: ``(n_genes,)`` larger = more wanted, comparable within a group.
        seeds: ``(m, n_genes)`` genomes to begin with, or None.
        priors: What criteria say about the genes, for mutation and repair.
        baseline: ``(n_genes,)`` the uniform-L1 genome at the budget, or None where the mode does not ask for it.
        scores_are_errors: Whether ``channel_scores`` compare over the whole network, as errors that a removal adds.
        local_error: What a local search lowers, where one is wanted.
    """

    space: SearchSpace
    config: SearchConfig
    options: SearchOptions
    channel_scores: FloatArray | None = None
    seeds: BoolArray | None = None
    priors: tuple[Prior, ...] = ()
    baseline: BoolArray | None = None
    scores_are_errors: bool = False
    local_error: LocalError | None = None

    def whole_config(self) -> SearchConfig:
        """Return the configuration of a search over all genes, with every mutation that the space has a use for."""
        further = ["block"] * bool(self.space.blocks) + ["local"] * (self.local_error is not None)
        return replace(
            self.config,
            mutations={**self.config.mutations, **dict.fromkeys(further, 1.0)},
            restart=self.options.restart,
            width_generations=self.options.width_phase,
        )


@dataclass(frozen=True)
class SensitivityCurve:
    """What cutting one part alone does to the network.

    Attributes:
        name: The part.
        cost_share: ``(n,)`` cost of the whole network as a share of the dense one, falling, 1 first.
        error: ``(n,)`` objective; rises as a rule.
        rung: Where the objective comes from.
    """

    name: str
    cost_share: FloatArray
    error: FloatArray
    rung: str


@runtime_checkable
class MeasuresSensitivity(Protocol):
    """A strategy that measures what cutting each part of the network alone does."""

    @property
    def curves(self) -> Sequence[SensitivityCurve]:
        """One per part; empty before it is measured."""


@dataclass(frozen=True)
class Mode:
    """One way to search.

    Attributes:
        description: One line for people.
        build: Makes the strategy.
        is_informed: Whether it starts from channel scores and seeds; they cost some seconds.
        needs_baseline: Whether it starts from the uniform-L1 genome.
        has_course: Whether there are generations; else given genomes are judged, and sizes and stop rules are not read.
        uses_screens: Whether cheap rungs may leave offspring out before they are judged.
        uses_elites: Whether a dear rung may judge the best once more.
        default_budget: The budget where none is given; ``1`` is none.
        own_ladder: Turns the ladder that was asked for into that of the mode; None takes it as it is.
        options: Options that are read in this mode and in no other.
        has_front: Whether it searches a whole front of costs, and not networks at the budget.
        is_sequential: Whether parts of the network are searched one after the other, each for its own generations.
        check: Raises an OptionError where a network, or other options, do not suit the mode; before any work is done.
    """

    description: str
    build: Callable[[SearchTask], Strategy]
    is_informed: bool = True
    needs_baseline: bool = False
    has_course: bool = True
    uses_screens: bool = True
    uses_elites: bool = True
    default_budget: str = "0.3"
    own_ladder: Callable[[LadderPlan], LadderPlan] | None = None
    options: tuple[str, ...] = ()
    has_front: bool = False
    is_sequential: bool = False
    check: Callable[[SearchSpace, SearchOptions], None] | None = None

    def plan(self, ladder: LadderPlan) -> LadderPlan:
        """Return what the mode uses of ``ladder``."""
        if self.own_ladder is not None:
            ladder = self.own_ladder(ladder)
        if not self.uses_screens:
            ladder = replace(ladder, screen=None, halving=())
        return ladder if self.uses_elites else replace(ladder, elite=None)
