"""Short memory costs time, then one candidate, never a search."""

from __future__ import annotations

import pytest
import torch

from fitness.memory import count_bytes, is_out_of_memory, with_smaller_batches

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError(CPU_MESSAGE)])
def test_half_as_many_are_tried_until_they_fit(error: Exception) -> None:
    tried: list[int] = []

    def call(size: int) -> int:
        tried.append(size)
        if size > 3:
            raise error
        return size

    assert is_out_of_memory(error)
    assert with_smaller_batches(call, 25) == 3
    assert tried == [25, 12, 6, 3]


def test_one_that_does_not_fit_is_an_error() -> None:
    tried: list[int] = []

    def call(size: int) -> int:
        tried.append(size)
        raise MemoryError

    with pytest.raises(MemoryError):
        with_smaller_batches(call, 2)
    assert tried == [2, 1]


def test_other_errors_pass_at_once() -> None:
    tried: list[int] = []

    def call(size: int) -> int:
        tried.append(size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        with_smaller_batches(call, 8)
    assert tried == [8]


def test_bytes_are_those_of_tensors_wherever_they_are() -> None:
    values = {"map": torch.zeros(2, 3), "parts": [torch.zeros(4), torch.zeros(5, dtype=torch.bfloat16)], "size": 7}
    assert count_bytes(values) == 4 * (6 + 4) + 2 * 5
    assert count_bytes([values, {}]) == count_bytes(values)
