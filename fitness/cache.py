"""Where results that can be computed again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return ``$EVOPRUNE_CACHE``, else ``$XDG_CACHE_HOME/evoprune``, else ``~/.cache/evoprune``; not created here."""
    own = os.environ.get("EVOPRUNE_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "evoprune"
