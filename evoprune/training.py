"""Dense networks trained from scratch, for who brings no weights; each is trained once and then read from a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from evoprune.optimisation import GradientRecipe, OnProgress, fit
from fitness.cache import cache_root
from fitness.data import ImageBatch, ImageData
from fitness.gradients import autocast, first_logits
from search_spaces.errors import WeightsError
from search_spaces.models import build_model, hash_weights, load_weights

_FORMAT = 1


@dataclass(frozen=True)
class TrainingRecipe(GradientRecipe):
    """How a dense network is trained; the defaults suit the networks of ``MODELS`` on small images.

    Attributes:
        label_smoothing: In [0, 1).
    """

    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 0.05
    warm_up_share: float = 0.25
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class TrainedNetwork:
    """A dense network and where it came from.

    Attributes:
        model: In eval mode, float32.
        from_cache: Whether the weights were read and not trained now.
        cache_path: The cache entry; None where the cache could not be written.
        seconds: Wall time.
    """

    model: nn.Module
    from_cache: bool
    cache_path: Path | None
    seconds: float = field(compare=False)


def train_dense(
    name: str,
    data: ImageData,
    *,
    seed: int,
    model_args: Mapping[str, Any] | None = None,
    recipe: TrainingRecipe | None = None,
    device: torch.device | str = "cpu",
    cache_folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> TrainedNetwork:
    """Return the network ``name`` (see ``build_model``) trained on ``data.train``, from the cache where it is there.

    An entry is found by the content of everything that decides it: name, arguments, the initial weights (hence the
    structure, a user's own included), data, recipe and seed. A damaged entry is trained anew. A cache that cannot be
    written costs the next run the training, and this one nothing.

    Args:
        name: A name that ``build_model`` knows.
        data: Images; only ``train`` and, for the progress figures, ``val`` are read.
        seed: Of initial weights, order and augmentation.
        model_args: Keywords for the factory.
        recipe: How to train; the default reaches about 99.5 % on digits with ``vgg16``.
        device: Where to train; the network comes back there.
        cache_folder: Where entries lie; below the user's cache folder by default.
        on_progress: Hears of every step; is not called where the cache answers.

    Raises:
        OptionError: The model cannot be built.
        TrainingError: The loss became NaN or infinite.
    """
    started = time.perf_counter()
    recipe = recipe or TrainingRecipe()
    device = torch.device(device)
    model = build_model(name, data.n_classes, model_args, data.input_shape, seed)
    folder = cache_root() / "dense" if cache_folder is None else cache_folder
    path = folder / f"{_entry_key(name, model_args, model, data, recipe, seed)}.safetensors"
    if _was_read(model, path):
        return TrainedNetwork(model.to(device), True, path, time.perf_counter() - started)

    def batch_loss(inputs: Tensor, batch: ImageBatch) -> Tensor:
        with autocast(device):
            logits = first_logits(model(inputs))
        return functional.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)

    fit(model, data, recipe, batch_loss, rng=np.random.default_rng(seed), device=device, on_progress=on_progress)
    written = _was_written(model, path)
    return TrainedNetwork(model, False, path if written else None, time.perf_counter() - started)


def _entry_key(
    name: str,
    model_args: Mapping[str, Any] | None,
    model: nn.Module,
    data: ImageData,
    recipe: TrainingRecipe,
    seed: int,
) -> str:
    content = {
        "format": _FORMAT,
        "model": name,
        "model_args": dict(model_args or {}),
        "initial_weights": hash_weights(model),
        "n_classes": data.n_classes,
        "data": data.content_hash,
        "may_flip": data.may_flip,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _was_read(model: nn.Module, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        load_weights(model, path)
    except WeightsError:
        return False
    return True


def _was_written(model: nn.Module, path: Path) -> bool:
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            unfinished = Path(folder) / path.name
            save_file(weights, unfinished)
            unfinished.replace(path)  # atomic within one file system
    except OSError:
        return False
    return True
