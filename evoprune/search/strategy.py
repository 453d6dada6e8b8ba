"""What the runner asks of a search, whatever it searches in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evoprune.search.feasibility import Space
from evoprune.search.messages import BestGenome, EvaluationRequest
from evoprune.search.state import SearchState
from fitness.evaluation import Evaluation


class Strategy(Protocol):
    """A search in ask/tell form. :class:`evoprune.search.Search` is one; others are composed of several of them.

    Whatever it asks for are genomes of the whole ``space``. It is deterministic: equal evaluations lead to equal
    requests, and a strategy that was restored goes on as the one whose state it was.
    """

    @property
    def space(self) -> Space:
        """The whole search space."""

    @property
    def seed(self) -> int:
        """Master seed."""

    @property
    def n_generations(self) -> int:
        """The last generation, where no stop rule ends the search before."""

    @property
    def population_size(self) -> int:
        """Survivors per generation."""

    @property
    def generation(self) -> int:
        """The last finished generation; -1 before the first one is judged."""

    @property
    def is_finished(self) -> bool:
        """Whether all that was planned is done."""

    @property
    def is_complete(self) -> bool:
        """Whether :attr:`best` is a network to hand back, so that the search may be stopped now."""

    @property
    def best(self) -> BestGenome | None:
        """The best genome so far; None before the first generation ends."""

    @property
    def logbook(self) -> Sequence[Mapping[str, Any]]:
        """One row per finished generation. Objectives compare among rows of equal ``stage``, if any."""

    def ask(self) -> EvaluationRequest:
        """Return what is to be evaluated next; the same until it is told."""

    def tell(self, evaluations: Sequence[Evaluation]) -> bool:
        """Take the ``evaluations`` of the last request, in its order, and return whether they ended a generation."""

    def hurry(self) -> None:
        """Leave out what is not needed to be complete; called between two generations when a stop rule says so."""

    def state(self) -> SearchState:
        """Return the search after its last finished generation."""

    def restore(self, state: SearchState) -> None:
        """Go back (or on) to ``state``, which a search with the same space, configuration and seed has returned."""


def comparable_rows(logbook: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the rows at the end of ``logbook`` whose objectives can be compared: those of the present stage."""
    first = len(logbook)
    while first and logbook[first - 1].get("stage") == logbook[-1].get("stage"):
        first -= 1
    return logbook[first:]
