"""Results on disk, each with a digest of itself: the damaged is computed anew."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_LOGGER = logging.getLogger(__name__)


def cached_entry(path: Path, compute: Callable[[], Any], pack: Callable[[Any], Any], unpack: Callable[..., Any]) -> Any:
    """Return the entry at ``path``, or what ``compute`` gives, kept there.

    An entry that is damaged, cannot be read or does not fit is computed anew and told in a warning; so is a folder that
    cannot be written.

    Args:
        path: Named by the content of everything that decides the result.
        compute: Gives the result.
        pack: Turns it into tensors by name, and facts that JSON holds.
        unpack: Turns both back; whatever it refuses with a ``KeyError``, ``TypeError`` or ``ValueError`` is computed
            anew.
    """
    entry = _read(path)
    if entry is not None:
        try:
            return unpack(*entry)
        except (KeyError, TypeError, ValueError) as error:
            _LOGGER.warning("cache entry %s does not fit and is computed anew: %s", path.name, error)
    result = compute()
    _write(path, *pack(result))
    return result


def feed_tensor(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    """Add name, shape, type and content of ``tensor`` to ``digest``."""
    digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _content(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        feed_tensor(digest, name, tensor)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Return tensors and facts of an entry, or ``None`` where there is none that can be trusted."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            written = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if written.get("content") != _content(tensors, written.get("facts", "")):
            raise ValueError("its content is not what was written")
        return tensors, json.loads(written["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _LOGGER.warning("cache entry %s cannot be read and is computed anew: %s", path.name, error)
        return None


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    text = json.dumps(facts, sort_keys=True)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            unfinished = Path(folder) / path.name
            save_file(whole, unfinished, {"facts": text, "content": _content(whole, text)})
            unfinished.replace(path)  # atomic within one file system
    except (OSError, SafetensorError) as error:
        _LOGGER.warning("a result is not kept in %s: %s", path.parent, error)
