"""Which number format a device computes fastest in, at the accuracy that judging and training need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def gains_by_bfloat16(device: torch.device | str) -> bool:
    """Return whether ``device`` multiplies bfloat16 in hardware; where it does not, bfloat16 is slower than float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capabilities: Callable[[], dict[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        known = capabilities()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe is not None)
