"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.command_line import write_images, write_weights


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``images.npz`` and ``weights.safetensors``."""
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "images.npz")
    write_weights(folder / "weights.safetensors")
    return folder


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path / ".cache"))
