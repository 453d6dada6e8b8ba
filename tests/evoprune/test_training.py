from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evoprune.optimisation import TrainingError
from evoprune.training import TrainedNetwork, TrainingRecipe, train_dense
from search_spaces.models import hash_weights
from tests.evoprune.tiny_data import bars

RECIPE = TrainingRecipe(epochs=1, batch_size=48)
NAME = "tests.evoprune.tiny_data:small_network"


def trained(folder: Path, seed: int = 0, recipe: TrainingRecipe = RECIPE, n_train: int = 96) -> TrainedNetwork:
    return train_dense(NAME, bars(n_train), seed=seed, recipe=recipe, cache_folder=folder)


def test_second_time_comes_from_the_cache_bit_for_bit(tmp_path: Path) -> None:
    first, second = trained(tmp_path), trained(tmp_path)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert hash_weights(first.model) == hash_weights(second.model)
    assert not first.model.training
    assert not second.model.training
    assert [path.name for path in tmp_path.iterdir()] == [first.cache_path.name if first.cache_path else ""]


def test_entry_depends_on_everything_that_decides_the_weights(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path),
        trained(tmp_path, seed=1),
        trained(tmp_path, recipe=TrainingRecipe(epochs=2, batch_size=48)),
        trained(tmp_path, n_train=80),
        train_dense(NAME, bars(), seed=0, model_args={"n_channels": 4}, recipe=RECIPE, cache_folder=tmp_path),
    ]
    assert not any(run.from_cache for run in runs)
    assert len({run.cache_path for run in runs}) == len(runs)


@pytest.mark.parametrize("damage", [b"", b"no weights at all", None])
def test_damaged_entry_is_trained_anew(tmp_path: Path, damage: bytes | None) -> None:
    first = trained(tmp_path)
    assert first.cache_path is not None
    content = first.cache_path.read_bytes()
    first.cache_path.write_bytes(content[:-10] if damage is None else damage)
    second = trained(tmp_path)
    assert not second.from_cache
    assert hash_weights(second.model) == hash_weights(first.model)
    assert first.cache_path.read_bytes() == content


def test_cache_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = trained(tmp_path / "file")
    assert result.cache_path is None
    assert not result.from_cache


def test_default_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    result = train_dense(NAME, bars(), seed=0, recipe=RECIPE)
    assert result.cache_path is not None
    assert result.cache_path.parent == tmp_path / "dense"


def test_training_learns(tmp_path: Path) -> None:
    heard: list[float] = []
    train_dense(
        NAME,
        bars(),
        seed=0,
        recipe=TrainingRecipe(epochs=12, batch_size=16, learning_rate=0.1),
        cache_folder=tmp_path,
        on_progress=lambda *args: heard.append(args[4]),
    )
    assert sum(heard[-6:]) < 0.7 * sum(heard[:6])


def test_failed_training_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_networks.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Linear):\n"
        "    def forward(self, x): return super().forward(x.flatten(1)) * float('nan')\n"
        "def broken(n_classes): return Broken(192, n_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match="must be finite"):
        train_dense("broken_networks:broken", bars(), seed=0, recipe=RECIPE, cache_folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.delitem(sys.modules, "broken_networks")
