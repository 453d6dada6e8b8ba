"""How many threads torch computes with, and how many there may be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Let torch compute with ``n_threads`` threads; everything is as before afterwards."""
    n_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Let torch compute with one thread, as every evaluation does: equal bits whatever the number of cores."""
    return torch_threads(1)


def n_usable_cores() -> int:
    """Return the number of cores that this process may use, which a container can make smaller than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
