"""The command line inside this process, and small inputs for it: no download, no training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from typer.testing import CliRunner

from evoprune.cli import app
from search_spaces.models import build_model

#: A network that is traced and evaluated in a moment.
MODEL = ["--model", "vgg16", "--model-args", '{"width": 0.0625}']
QUICK = [
    *("--seed", "3", "--population", "4", "--generations", "1"),
    *("--n-fitness-images", "16", "--n-calibration-images", "16"),
]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def message(self) -> str:
        """The one error message; there is no other, and no traceback."""
        assert self.stderr.count("error:") == 1, self.stderr
        assert "Traceback" not in self.stderr + self.stdout
        return self.stderr[self.stderr.index("error:") :].strip()


def run(*arguments: str | Path) -> Outcome:
    """Run ``evoprune`` with ``arguments``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def small_search(folder: Path, **options: Any) -> dict[str, Any]:
    """Return options of :func:`evoprune.search` for the network in ``MODEL``, whose files are written to ``folder``."""
    return {
        "model": "vgg16",
        "model_args": {"width": 0.0625},
        "weights": str(write_weights(folder / "weights.safetensors")),
        "data": f"npz:{write_images(folder / 'images.npz')}",
        "seed": 5,
        "n_fitness_images": 16,
        "n_calibration_images": 16,
    } | options


def write_images(path: Path, *, seed: int = 0, **replaced: Any) -> Path:
    """Write a data set of the MedMNIST layout: 16 x 16 images of ten classes; ``replaced`` arrays may be None."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for split, n in (("train", 48), ("val", 24), ("test", 40)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 10
    arrays.update(replaced)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_weights(path: Path, *, seed: int = 0, name: str = "vgg16", n_classes: int = 10, **args: Any) -> Path:
    """Write random weights of a network, by default of the one in ``MODEL``."""
    model = build_model(name, n_classes, args or {"width": 0.0625}, (3, 16, 16), seed=seed)
    save_file(model.state_dict(), path)
    return path
