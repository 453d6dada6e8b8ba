"""What ``evoprune inspect`` shows, as data: the summary and the drawing of a search space."""

from __future__ import annotations

from search_spaces.drawing import draw_space
from search_spaces.summary import FrozenSummary, GroupSummary, SpaceSummary, summarise_space

__all__ = ["FrozenSummary", "GroupSummary", "SpaceSummary", "draw_space", "summarise_space"]
