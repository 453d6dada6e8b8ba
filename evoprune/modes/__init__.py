"""The ways to search a space, by name: which genes are open when, and how survivors are chosen."""

from __future__ import annotations

from collections.abc import Mapping

from evoprune.modes.mode import Mode, SearchTask
from evoprune.modes.whole import search_whole

MODES: Mapping[str, Mode] = {
    "global": Mode("the whole genome evolves under the budget", search_whole),
}

__all__ = ["MODES", "Mode", "SearchTask"]
