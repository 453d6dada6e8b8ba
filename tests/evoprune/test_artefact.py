from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evoprune.artefact import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    ArtefactError,
    Description,
    ModelRecord,
    SpaceRecord,
    added_biases,
    load,
    read_description,
    record_cost,
    record_genome,
    save_artefact,
)
from evoprune.run_directory import RunDirectory
from search_spaces import prune_model
from search_spaces.models import build_model, hash_weights

SHAPE = (3, 16, 16)


def _write(folder: Path, model: nn.Module, name: str | None, args: dict[str, Any]) -> tuple[nn.Module, Description]:
    record = ModelRecord(name=name, args=args, n_classes=10, input_shape=SHAPE, weights_hash=hash_weights(model))
    space_record = SpaceRecord(protect=("layer3*",), fingerprint="")
    space = space_record.trace(model, SHAPE)
    genome = space.sample(rng=np.random.default_rng(3), n=1, macs_budget=0.6)[0]
    small = prune_model(model, space, genome)
    description = Description(
        model=record,
        space=space_record.model_copy(update={"fingerprint": space.fingerprint}),
        genome=record_genome(space, genome),
        cost=record_cost(space, genome),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        seed=7,
    )
    save_artefact(folder, small, description)
    return small, description


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Description]:
    folder = tmp_path_factory.mktemp("artefact") / "best"
    return folder, *_write(folder, build_model("resnet20", seed=5), "resnet20", {})


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_loading_gives_the_saved_network(artefact: tuple[Path, nn.Module, Description]) -> None:
    folder, small, description = artefact
    loaded = load(folder)
    images = torch.randn(4, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(loaded(images), small(images))
        counter = FlopCounterMode(display=False)
        with counter:
            loaded(images[:1])
    assert counter.get_total_flops() == 2 * description.cost.macs
    assert sum(p.numel() for p in loaded.parameters()) == description.cost.n_params
    assert not loaded.training
    assert read_description(folder) == description


def test_a_bias_that_compensation_added_comes_back(
    artefact: tuple[Path, nn.Module, Description], tmp_path: Path
) -> None:
    _, small, description = artefact
    dense = build_model("resnet20")
    assert added_biases(small, dense) == ()
    changed = copy.deepcopy(small)
    changed.conv1.bias = nn.Parameter(torch.randn(changed.conv1.out_channels))
    assert added_biases(changed, dense) == ("conv1",)
    save_artefact(tmp_path / "best", changed, description.model_copy(update={"added_biases": ("conv1",)}))
    images = torch.randn(2, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "best")(images), changed(images))
    save_artefact(tmp_path / "best", small, description.model_copy(update={"added_biases": ("conv1",)}))
    with pytest.raises(ArtefactError, match="does not fit the network"):
        load(tmp_path / "best")


def test_only_the_two_files_are_left_behind(artefact: tuple[Path, nn.Module, Description]) -> None:
    folder, _, _ = artefact
    assert sorted(file.name for file in folder.iterdir()) == sorted([WEIGHTS_FILE, DESCRIPTION_FILE])
    assert [file.name for file in folder.parent.iterdir()] == ["best"]


def test_saving_again_replaces_the_artefact(artefact: tuple[Path, nn.Module, Description], tmp_path: Path) -> None:
    folder, small, description = artefact
    copy = _copy(folder, tmp_path / "best")
    with torch.no_grad():
        next(small.parameters()).add_(0.0)
    save_artefact(copy, small, description.model_copy(update={"finetuned_epochs": 3}))
    assert read_description(copy).finetuned_epochs == 3
    assert [file.name for file in tmp_path.iterdir()] == ["best"]


def test_a_network_given_as_an_object_is_needed_again(tmp_path: Path) -> None:
    model = build_model("resnet20", seed=5)
    small, _ = _write(tmp_path / "best", model, None, {})
    with pytest.raises(ArtefactError, match=r"given as a Python object.*evoprune\.load\(path, model=\.\.\.\)"):
        load(tmp_path / "best")
    images = torch.randn(2, *SHAPE)
    before = hash_weights(model)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "best", model)(images), small(images))
    assert hash_weights(model) == before
    with pytest.raises(ArtefactError, match="it belongs to another network"):
        load(tmp_path / "best", build_model("resnet32"))


def test_nothing_but_an_artefact_is_replaced(artefact: tuple[Path, nn.Module, Description], tmp_path: Path) -> None:
    _, small, description = artefact
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="is something else; name another"):
        save_artefact(tmp_path, small, description)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_artefact_with_other_files_beside_it_is_not_replaced(
    artefact: tuple[Path, nn.Module, Description], tmp_path: Path
) -> None:
    folder, small, description = artefact
    mine = _copy(folder, tmp_path / "mine")
    (mine / "thesis.tex").write_text("years of work")
    (mine / "data").mkdir()
    with pytest.raises(
        ArtefactError, match=r"mine holds 2 more: data, thesis\.tex; name another folder, or move these"
    ):
        save_artefact(mine, small, description)
    assert sorted(file.name for file in mine.iterdir()) == sorted(
        ["data", DESCRIPTION_FILE, "thesis.tex", WEIGHTS_FILE]
    )
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def _edited(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        content = json.loads((folder / DESCRIPTION_FILE).read_text())
        content.update(changes)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(content))

    return edit


def _truncate(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:1000])


def _exchange_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(build_model("resnet20").state_dict(), folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / DESCRIPTION_FILE).unlink(), "an artefact is a folder with"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), r"weights\.safetensors cannot be read"),
        (_truncate, r"weights\.safetensors cannot be read"),
        (_exchange_weights, "does not fit the network"),
        (_edited(format="other"), "was not written by evoprune"),
        (_edited(schema=99), "must have schema 1, but has 99"),
        (_edited(seed="x"), "is damaged: seed"),
        (_edited(genome={"n_genes": 3, "digest": "", "packed": "", "kept_channels": {"a": [0]}}), "another network"),
    ],
)
def test_damage_is_named(
    artefact: tuple[Path, nn.Module, Description], tmp_path: Path, damage: Any, message: str
) -> None:
    copy = _copy(artefact[0], tmp_path / "best")
    damage(copy)
    with pytest.raises(ArtefactError, match=message):
        load(copy)


def test_a_run_directory_in_its_place_gets_a_hint(artefact: tuple[Path, nn.Module, Description]) -> None:
    with pytest.raises(ArtefactError, match=r"did you mean .*best"):
        load(artefact[0].parent)


def test_a_tampered_mask_is_noticed(artefact: tuple[Path, nn.Module, Description], tmp_path: Path) -> None:
    copy = _copy(artefact[0], tmp_path / "best")
    content = json.loads((copy / DESCRIPTION_FILE).read_text())
    kept = next(iter(content["genome"]["kept_channels"].values()))
    kept.pop()
    (copy / DESCRIPTION_FILE).write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="do not have the recorded digest"):
        load(copy)


def _of_a_factory(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module]:
    """Write an artefact that names a factory in ``place``, which leaves the file ``called`` there."""
    (place / "somebodys_networks.py").write_text(
        "from pathlib import Path\n"
        "from search_spaces.models import build_model\n"
        "Path('called').touch()\n"
        "def build(seed):\n"
        "    return build_model('resnet20', seed=seed)\n"
    )
    monkeypatch.chdir(place)
    monkeypatch.delitem(sys.modules, "somebodys_networks", raising=False)
    return folder, _write(folder, build_model("resnet20", seed=5), "somebodys_networks:build", {"seed": 5})[0]


def test_a_factory_is_called_with_consent_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, small = _of_a_factory(tmp_path / "best", tmp_path, monkeypatch)
    with pytest.raises(
        ArtefactError,
        match=r"names the factory 'somebodys_networks:build', which would be imported and called; .*trust_factory=True",
    ):
        load(folder)
    assert not (tmp_path / "called").exists()
    images = torch.randn(2, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(load(folder, build_model("resnet20"))(images), small(images))
        assert not (tmp_path / "called").exists()
        assert torch.equal(load(folder, trust_factory=True)(images), small(images))
    assert (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("options", "is_trusted"),
    [
        ({"model": "somebodys_networks:build", "model_args": {"seed": 5}}, True),
        ({"model": "somebodys_networks:build", "model_args": {"seed": 6}}, False),
        ({"model": "resnet20", "model_args": {}}, False),
    ],
)
def test_a_factory_that_the_run_around_was_started_with_needs_no_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], is_trusted: bool
) -> None:
    run = RunDirectory.create(tmp_path / "run", options=options, hashes={})
    folder, _ = _of_a_factory(run.best_path, tmp_path, monkeypatch)
    if is_trusted:
        load(folder)
    else:
        with pytest.raises(ArtefactError, match="names the factory"):
            load(folder)
    assert (tmp_path / "called").exists() == is_trusted


def test_a_keyword_that_reads_a_file_needs_consent(
    artefact: tuple[Path, nn.Module, Description], tmp_path: Path
) -> None:
    copy = _copy(artefact[0], tmp_path / "best")
    record = artefact[2].model.model_dump(mode="json")
    _edited(model={**record, "name": "timm:resnet18", "args": {"checkpoint_path": "pickle.pt"}})(copy)
    with pytest.raises(ArtefactError, match=r"the keyword 'checkpoint_path' of 'timm:resnet18', which would read"):
        load(copy)
