"""Knowledge on disk: computed once per criterion, network, images and seed, then read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitness.cache import cache_root
from fitness.criteria.contract import ChannelKnowledge, Criterion, MaskFamily
from fitness.criteria.inputs import CriterionInput
from fitness.disk_cache import cached_entry, feed_tensor
from fitness.statistics_cache import FORMAT as STATISTICS_FORMAT
from fitness.statistics_cache import feed_program

#: To be raised when any criterion changes what it returns for equal input; those that rest on dense statistics also
#: follow the format of these.
_FORMAT = 1
_VECTORS = ("scores", "strength", "classes", "widths", "merge")


def knowledge_key(criterion: Criterion, data: CriterionInput) -> str:
    """Return the identity of the knowledge: BLAKE2b-128 over the criterion, its options and all it looks at."""
    digest = hashlib.blake2b(digest_size=16)
    facts = [_FORMAT, STATISTICS_FORMAT, criterion.name, repr(criterion), data.space.fingerprint]
    facts += [data.seed, data.batch_size, data.device.type]
    digest.update(json.dumps(facts).encode())
    feed_program(digest, data.program)
    for name, tensor in sorted(data.program.raw_tensors.items()):
        feed_tensor(digest, name, tensor)
    feed_tensor(digest, "images", data.inputs)
    if data.labels is not None:
        feed_tensor(digest, "labels", data.labels)
    return digest.hexdigest()


def cached_knowledge(criterion: Criterion, data: CriterionInput, *, folder: Path | None = None) -> ChannelKnowledge:
    """Return ``criterion.compute(data)``, from the cache where it is there; a damaged entry is computed anew.

    Args:
        criterion: Its ``repr`` tells its options.
        data: Network, images and seed.
        folder: Where entries lie; below the user's cache folder by default.
    """
    folder = cache_root() / "knowledge" if folder is None else folder
    path = folder / f"{criterion.name}-{knowledge_key(criterion, data)}.safetensors"
    knowledge: ChannelKnowledge = cached_entry(path, lambda: criterion.compute(data), _pack, _unpack)
    return knowledge


def _pack(knowledge: ChannelKnowledge) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arrays = {name: getattr(knowledge, name) for name in _VECTORS if getattr(knowledge, name) is not None}
    arrays |= {f"similarity/{index}": matrix for index, matrix in knowledge.similarity.items()}
    if knowledge.family is not None:
        arrays |= {"family/dials": knowledge.family.dials, "family/masks": knowledge.family.masks}
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return tensors, {"sizes": list(knowledge.sizes), "is_global": knowledge.is_global}


def _unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ChannelKnowledge:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    prefix = "similarity/"
    return ChannelKnowledge(
        sizes=tuple(facts["sizes"]),
        is_global=facts["is_global"],
        similarity={int(n.removeprefix(prefix)): array for n, array in arrays.items() if n.startswith(prefix)},
        family=MaskFamily(arrays["family/dials"], arrays["family/masks"]) if "family/dials" in arrays else None,
        **{name: arrays[name] for name in _VECTORS if name in arrays},
    )
