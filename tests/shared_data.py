"""Where the real networks and images for development lie, and the mark that skips a test where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("EVOPRUNE_SHARED", _REPOSITORY.parent / "shared")) / "data"

needs_shared_data = pytest.mark.skipif(
    not (SHARED_DATA / "weights").is_dir(),
    reason=f"no real networks in {SHARED_DATA}; set EVOPRUNE_SHARED to the folder that holds data/weights",
)
