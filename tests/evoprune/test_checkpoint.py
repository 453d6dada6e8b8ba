"""Checkpoints: exact round trip, the last few kept, damage passed over, and no pickle read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evoprune.checkpoint import CheckpointFolder


def save(folder: CheckpointFolder, generation: int) -> Path:
    rng = np.random.default_rng(generation)
    arrays = {"population": rng.integers(0, 256, (8, 5), np.uint8), "objective_values": np.array([0.5, np.inf])}
    return folder.save(generation, arrays, {"logbook": [{"generation": generation}], "seed": 2**70})


def test_arrays_and_data_come_back_exactly(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoint")
    assert folder.load_latest() == (None, ())
    save(folder, 4)
    checkpoint, skipped = folder.load_latest()
    assert checkpoint is not None
    assert checkpoint.generation == 4
    assert skipped == ()
    assert checkpoint.data == {"logbook": [{"generation": 4}], "seed": 2**70}
    expected = np.random.default_rng(4).integers(0, 256, (8, 5), np.uint8)
    np.testing.assert_array_equal(checkpoint.arrays["population"], expected)
    np.testing.assert_array_equal(checkpoint.arrays["objective_values"], [0.5, np.inf])


def test_the_last_three_are_kept_and_nothing_else(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for generation in range(12):
        save(folder, generation)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"generation-{g:06d}.npz" for g in (9, 10, 11)]


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "rubbish"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    path = save(folder, 2)
    content = path.read_bytes()
    middle = len(content) // 3
    path.write_bytes(
        {
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "flipped": content[:middle]
            + bytes(255 - b for b in content[middle : middle + 40])
            + content[middle + 40 :],
            "rubbish": b"rubbish",
        }[damage]
    )
    checkpoint, skipped = folder.load_latest()
    assert checkpoint is not None
    assert checkpoint.generation == 1
    assert len(skipped) == 1
    assert skipped[0].startswith("generation-000002.npz cannot be read")


def test_without_a_readable_checkpoint_the_reasons_come_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 1).write_bytes(b"")
    checkpoint, skipped = folder.load_latest()
    assert checkpoint is None
    assert len(skipped) == 1


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        folder.save(1, {"population": np.array([object()])}, {})
    np.savez(tmp_path / "generation-000003.npz", json=np.array([{"code": 1}], dtype=object))
    save(folder, 2)
    checkpoint, skipped = folder.load_latest()
    assert checkpoint is not None
    assert checkpoint.generation == 2
    assert len(skipped) == 1
    assert "allow_pickle=False" in skipped[0]


def test_no_flipped_bit_is_more_than_a_checkpoint_passed_over(tmp_path: Path) -> None:
    """Some make the archive look encrypted, or packed in a way that nobody knows."""
    folder = CheckpointFolder(tmp_path)
    save(folder, 1)
    path = save(folder, 2)
    content = path.read_bytes()
    for place in [*range(200), *range(len(content) - 300, len(content))]:
        for bit in (0, 3):
            path.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            checkpoint, skipped = folder.load_latest()
            assert checkpoint is not None
            assert (checkpoint.generation == 2) == (not skipped)
