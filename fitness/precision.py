"""Which number format a device computes fastest in, at the accuracy that judging and training need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.surgery import named_tensors


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


def candidate_dtype(model: nn.Module, space: SearchSpace, device: torch.device | str) -> torch.dtype:
    """Return what candidates run in on ``device``: bfloat16 where that gains and all operators of the network know it.

    Args:
        model: The dense network, float32, on any device; not changed.
        space: Its search space.
        device: Where candidates run.
    """
    if not gains_by_bfloat16(device):
        return torch.float32
    program = Program(space, {name: tensor.to(device) for name, tensor in named_tensors(model).items()})
    zeros = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in space.graph.input_shapes]
    try:
        with torch.inference_mode():
            program.run(program.slice(space.all_ones()[0]).cast(torch.bfloat16), zeros)
    except RuntimeError:  # some pooling layers have no such kernel
        return torch.float32
    return torch.bfloat16
