"""Weights from files, without ever running code that a file holds, and their content hash."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from search_spaces.errors import WeightsError

_N_LISTED = 4
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill ``model`` in place from a weight file; every parameter and buffer must be there and fit.

    A safetensors file, or a torch checkpoint that is read with ``weights_only=True`` alone, so that code in a pickle is
    refused and not run. A state dict may lie under ``state_dict``, ``model_state_dict`` or ``model``, and its keys may
    start with ``module.``. Values are cast to the dtype and moved to the device of the model. Keys of a part that the
    model has as ``None`` (auxiliary heads) and an absent ``num_batches_tracked`` are passed over. On an error the model
    is unchanged.

    Raises:
        WeightsError: The file is missing, truncated, no weight file or holds code; keys are missing, unexpected or of
            another shape; a value is not finite.
    """
    path = Path(path)
    loaded = _unwrapped(_read(path), path)
    expected = model.state_dict()
    loaded = {key: value for key, value in loaded.items() if key in expected or not _is_switched_off(model, key)}
    missing = [key for key in expected if key not in loaded and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in loaded if key not in expected]
    misshapen = [
        f"{key} {tuple(loaded[key].shape)} in the file, {tuple(value.shape)} in the network"
        for key, value in expected.items()
        if key in loaded and loaded[key].shape != value.shape
    ]
    problems = [
        f"{len(keys)} {kind} ({_listed(keys)})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"the keys of {path} must be those of the network, but found {'; '.join(problems)}; "
            "name the network and the number of classes that these weights were trained with"
        )
    infinite = [key for key, value in loaded.items() if value.is_floating_point() and not value.isfinite().all()]
    if infinite:
        raise WeightsError(f"weights must be finite, but {path} holds NaN or infinity in {_listed(infinite)}")
    with torch.no_grad():
        for key, value in expected.items():
            if key in loaded:
                value.copy_(loaded[key])


def hash_weights(model: nn.Module) -> str:
    """Return the BLAKE2b-128 digest over names, shapes, dtypes and bytes of the state dict of ``model``."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}:{tuple(value.shape)}:{value.dtype};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist or is not a file; check --weights")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":  # eight bytes of length, then the JSON header
            return load_file(path)
        return _read_checkpoint(path, is_zip=start.startswith(b"PK\x03\x04"))
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is no complete safetensors file ({error}); it may be truncated or of another kind, fetch it again"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} could not be read: {error}") from error


def _read_checkpoint(path: Path, *, is_zip: bool) -> Any:
    if is_zip and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is no complete torch checkpoint: the end of the file is missing, fetch it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats announce their retirement; the file is the user's
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a torch checkpoint of plain tensors: it holds code or other objects, or is no weight file; "
            "such a pickle could run anything and is not opened; save `model.state_dict()` alone, or as safetensors"
        ) from error
    except OSError:
        raise
    except Exception as error:  # arbitrary bytes make the restricted unpickler fail in arbitrary ways
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path} is no complete weight file ({first_line}); it may be truncated or of another kind, fetch it again"
        ) from error


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    is_named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not is_named or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{path} must hold a mapping of names to tensors, itself or under {' / '.join(_WRAPPERS)}, "
            "but it does not; save `model.state_dict()`"
        )
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _is_switched_off(model: nn.Module, key: str) -> bool:
    return getattr(model, key.partition(".")[0], model) is None


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    rest = f", and {len(keys) - _N_LISTED} more" if len(keys) > _N_LISTED else ""
    return ", ".join(keys[:_N_LISTED]) + rest
