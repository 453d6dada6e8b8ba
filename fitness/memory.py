"""What to do where memory runs short: take fewer images at once, and give up on one candidate only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
#: Parts of the messages by which torch's allocator for the CPU, which raises a plain RuntimeError, says so.
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _CPU_MESSAGES)


def with_smaller_batches(call: Callable[[int], T], batch_size: int) -> T:
    """Return ``call(batch_size)``; where memory runs out, half as many images are tried, down to one.

    Args:
        call: Computes the same for any batch size.
        batch_size: The first one, at least 1.

    Raises:
        RuntimeError, MemoryError: One image at a time does not fit either; any other error of ``call`` passes too.
    """
    while True:
        try:
            return call(batch_size)
        except (RuntimeError, MemoryError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            on_accelerator = isinstance(error, torch.OutOfMemoryError)
        # Only out here are the tensors free that the traceback held.
        if on_accelerator:
            torch.cuda.empty_cache()
        batch_size = batch_size // 2


def count_bytes(value: Any) -> int:
    """Return the bytes of the tensors in ``value``, a tensor or any nesting of mappings and sequences; sizes count 0.

    Tensors that share memory count as often as they occur.
    """
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return count_bytes(value.values())
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return sum(count_bytes(part) for part in value)
    return 0
