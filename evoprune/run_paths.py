"""Where a run goes whose user names no place."""

from __future__ import annotations

from pathlib import Path

from evoprune.options import SearchOptions
from evoprune.preparation import OBJECT


def default_run_path(options: SearchOptions) -> Path:
    """Return the first free one of ``runs/<model>-<data>-<seed>``, ``...-2``, ``...-3`` and so on."""
    model = options.model.removeprefix(OBJECT).replace(":", "-")
    data = options.data.removeprefix(OBJECT).partition(":")[0]
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{model}-{data}-{options.seed}")
    return free_path(Path("runs") / name)


def free_path(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3`` and so on that does not exist."""
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate
