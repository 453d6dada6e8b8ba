"""The last few states of a search, one file each, without pickle.

A checkpoint is one ``.npz``: plain arrays, and one array that holds JSON. It is written whole or not at all; one that a
disk damaged later is passed over for the one before it. Since a run repeats exactly and its evaluations are stored
apart, an older checkpoint, or none, costs seconds and no results.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evoprune.run_directory import write_atomically
from search_spaces.errors import RunDirectoryError

SCHEMA_VERSION = 1
_JSON_ARRAY = "json"
_PATTERN = "generation-*.npz"


@dataclass(frozen=True)
class Checkpoint:
    """One saved state.

    Attributes:
        generation: The last finished generation.
        arrays: Plain arrays by name.
        data: JSON values.
    """

    generation: int
    arrays: Mapping[str, npt.NDArray[Any]]
    data: Mapping[str, Any]


class CheckpointFolder:
    """Writes and reads the checkpoints in one folder.

    Args:
        path: The folder; made on the first write.
        n_kept: How many of the newest are kept.
    """

    def __init__(self, path: Path, n_kept: int = 3) -> None:
        self.path = path
        self.n_kept = n_kept

    def save(self, generation: int, arrays: Mapping[str, npt.NDArray[Any]], data: Mapping[str, Any]) -> Path:
        """Write the state after ``generation``, drop the oldest beyond ``n_kept``, and return the file.

        Raises:
            RunDirectoryError: The file cannot be written.
            ValueError: ``data`` holds NaN or infinity, or an array holds objects.
        """
        if _JSON_ARRAY in arrays:
            raise ValueError(f"the array name {_JSON_ARRAY!r} is reserved; rename the array")
        payload = {"schema_version": SCHEMA_VERSION, "generation": generation, "data": dict(data)}
        text = np.frombuffer(json.dumps(payload, allow_nan=False).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{_JSON_ARRAY: text}, **dict(arrays))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{str(self.path)!r} must be writable, but {error.strerror}") from error
        path = self.path / f"generation-{generation:06d}.npz"
        write_atomically(path, buffer.getvalue())
        for old in sorted(self.path.glob(_PATTERN))[: -self.n_kept]:
            old.unlink(missing_ok=True)
        return path

    def load_latest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Return the newest readable checkpoint, and why newer ones were passed over, one text each.

        Where none is readable the first is None, and the search begins at generation 0 again with every evaluation that
        was stored.
        """
        skipped: list[str] = []
        for path in sorted(self.path.glob(_PATTERN), reverse=True):
            outcome = _read(path)
            if isinstance(outcome, Checkpoint):
                return outcome, tuple(skipped)
            skipped.append(outcome)
        return None, tuple(skipped)


def _read(path: Path) -> Checkpoint | str:
    """Return the checkpoint in ``path``, or why it cannot be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        payload = json.loads(arrays.pop(_JSON_ARRAY).tobytes().decode())
        if payload["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"version {payload['schema_version']}, this evoprune reads {SCHEMA_VERSION}")
        return Checkpoint(int(payload["generation"]), arrays, dict(payload["data"]))
    except Exception as error:  # arbitrary bytes make zipfile and NumPy fail in arbitrary ways
        return f"{path.name} cannot be read ({type(error).__name__}: {error})"
