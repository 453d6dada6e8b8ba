"""When a search ends: small rules that are combined, and that depend on the run alone, so that a resumed run agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from search_spaces.errors import OptionError


@dataclass(frozen=True)
class Progress:
    """Where a search stands, sessions before a resume included.

    Attributes:
        generation: The last finished generation; -1 before the initial population is judged.
        n_evaluations: Evaluations made, at any rung.
        elapsed_s: Seconds of work.
        logbook: One row per finished generation, with ``best``: the best objective of the judge rung so far; and with
            ``hypervolume`` where the search has a front, ``best_plain`` where ``best`` has costs added.
        is_complete: Whether the best genome is one of the whole network: not while parts of it are still dense.
    """

    generation: int
    n_evaluations: int
    elapsed_s: float
    logbook: Sequence[Mapping[str, Any]]
    is_complete: bool = True


class StopRule(Protocol):
    """Says when a search ends. Asked after every generation, and by rules that are ``urgent`` after every chunk too."""

    @property
    def urgent(self) -> bool:
        """Whether the rule may end a search in the middle of a generation (never before generation 0 is judged)."""

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""


@dataclass(frozen=True)
class MaxGenerations:
    """Ends after generation ``n_generations``; the initial population is generation 0."""

    n_generations: int
    urgent: bool = False

    def __post_init__(self) -> None:
        """Check the value."""
        _require(self.n_generations >= 0, "n_generations >= 0", self.n_generations)

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        return f"{self.n_generations} generations" if progress.generation >= self.n_generations else None


@dataclass(frozen=True)
class MaxEvaluations:
    """Ends after the generation in which ``n_evaluations`` evaluations are reached."""

    n_evaluations: int
    urgent: bool = False

    def __post_init__(self) -> None:
        """Check the value."""
        _require(self.n_evaluations >= 1, "n_evaluations >= 1", self.n_evaluations)

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        return f"{self.n_evaluations} evaluations" if progress.n_evaluations >= self.n_evaluations else None


@dataclass(frozen=True)
class MaxSeconds:
    """Ends after ``seconds`` of work, within a chunk of evaluations. The only rule by which equal runs can differ."""

    seconds: float
    urgent: bool = True

    def __post_init__(self) -> None:
        """Check the value."""
        _require(self.seconds > 0, "seconds > 0", self.seconds)

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        return f"{self.seconds:g} s" if progress.elapsed_s >= self.seconds else None


@dataclass(frozen=True)
class Patience:
    """Ends after ``n_generations`` in a row whose best objective improved by no more than ``min_gain`` in all.

    Of a search that has a front it is the hypervolume that has to grow.
    """

    n_generations: int
    min_gain: float = 0.0
    urgent: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        _require(self.n_generations >= 1, "n_generations >= 1", self.n_generations)
        _require(self.min_gain >= 0, "min_gain >= 0", self.min_gain)

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        rows = progress.logbook
        if len(rows) <= self.n_generations:
            return None
        first, last = rows[-1 - self.n_generations], rows[-1]
        if "hypervolume" in last:
            gain = float(last["hypervolume"]) - float(first["hypervolume"])
        else:
            gain = float(first["best"]) - float(last["best"])
        return f"no gain in {self.n_generations} generations" if gain <= self.min_gain else None


@dataclass(frozen=True)
class HypervolumeGain:
    """Ends after ``n_generations`` in a row in which the hypervolume grew by the share ``min_gain`` of itself at most.

    Never ends a search without a front, which has none.
    """

    min_gain: float
    n_generations: int = 5
    urgent: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        _require(self.n_generations >= 1, "n_generations >= 1", self.n_generations)
        _require(0 <= self.min_gain < float("inf"), "0 <= min_gain < inf", self.min_gain)

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        rows = progress.logbook
        if len(rows) <= self.n_generations or "hypervolume" not in rows[-1]:
            return None
        before, now = (float(row["hypervolume"]) for row in (rows[-1 - self.n_generations], rows[-1]))
        if now - before > self.min_gain * before:
            return None
        return f"hypervolume grew by at most {self.min_gain:g} of itself in {self.n_generations} generations"


@dataclass(frozen=True)
class Target:
    """Ends when the best objective of the judge rung is at most ``objective``, costs that are added to it left out.

    A network of which parts are still dense has not reached it.
    """

    objective: float
    urgent: bool = False

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        if not progress.logbook or not progress.is_complete:
            return None
        row = progress.logbook[-1]
        is_reached = float(row.get("best_plain", row["best"])) <= self.objective
        return f"objective {self.objective:g} reached" if is_reached else None


@dataclass(frozen=True)
class AnyOf:
    """Ends when the first of ``rules`` does."""

    rules: tuple[StopRule, ...]

    @property
    def urgent(self) -> bool:
        """Whether any of the rules is."""
        return any(rule.urgent for rule in self.rules)

    def reason(self, progress: Progress) -> str | None:
        """Return why the search ends now; None to go on."""
        return next((reason for rule in self.rules if (reason := rule.reason(progress)) is not None), None)

    def urgent_part(self) -> AnyOf:
        """Return the urgent rules among these."""
        return AnyOf(tuple(rule for rule in self.rules if rule.urgent))


def _require(holds: bool, rule: str, value: float) -> None:
    if not holds:
        raise OptionError(f"`{rule}` must hold for a stop rule, but got {value}; leave the rule out instead")
