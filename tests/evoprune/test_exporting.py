from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evoprune import exporting
from evoprune.artefact import (
    Description,
    ModelRecord,
    SpaceRecord,
    load,
    read_description,
    record_cost,
    record_genome,
    save_artefact,
)
from evoprune.catalogue import catalogue
from evoprune.exporting import FORMATS, ExportError, export
from evoprune.run_directory import RunDirectory
from search_spaces import prune_model
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.models import build_model, hash_weights

SHAPE = (3, 16, 16)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `onnx` is not installed",
)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model("vgg16", model_args={"width": 0.125})
    record = ModelRecord(
        name="vgg16", args={"width": 0.125}, n_classes=10, input_shape=SHAPE, weights_hash=hash_weights(model)
    )
    space_record = SpaceRecord(fingerprint="")
    space = space_record.trace(model, SHAPE)
    genome = space.sample(rng=np.random.default_rng(0), n=1, macs_budget=0.5)[0]
    description = Description(
        model=record,
        space=space_record.model_copy(update={"fingerprint": space.fingerprint}),
        genome=record_genome(space, genome),
        cost=record_cost(space, genome),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        seed=0,
    )
    folder = tmp_path_factory.mktemp("run") / "best"
    return save_artefact(folder, prune_model(model, space, genome), description)


def test_safetensors_and_json_are_a_loadable_artefact(artefact: Path, tmp_path: Path) -> None:
    files = export(artefact.parent, tmp_path / "out")  # a run directory stands for its best network
    assert [file.path.name for file in files] == ["weights.safetensors", "evoprune.json"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["evoprune.json", "weights.safetensors"]
    assert hash_weights(load(tmp_path / "out")) == hash_weights(load(artefact))


def test_an_export_replaces_an_earlier_export_and_no_other_artefact(artefact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(artefact, out)
    export(artefact, out)
    other = tmp_path / "other"
    save_artefact(other, load(artefact), read_description(artefact))
    before = (other / "weights.safetensors").read_bytes()
    for place, formats in ((other, ["safetensors"]), (other, ["pt2"]), (other / "deep" / "er", ["safetensors"])):
        with pytest.raises(OptionError, match=r"replaces nothing but an earlier export, but .*other is an artefact"):
            export(artefact, place, formats)
    assert sorted(file.name for file in other.iterdir()) == ["evoprune.json", "weights.safetensors"]
    assert (other / "weights.safetensors").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights.safetensors").write_bytes(b"years of training")
    with pytest.raises(OptionError, match=r"weights\.safetensors is something else"):
        export(artefact, tmp_path / "mine")
    assert (tmp_path / "mine" / "weights.safetensors").read_bytes() == b"years of training"


@pytest.mark.parametrize("place", ["best", "finetuned", "finetuned-2", "checkpoint/export", "random"])
def test_an_export_takes_no_place_of_a_run(artefact: Path, tmp_path: Path, place: str) -> None:
    run = RunDirectory.create(tmp_path / "run", options={}, hashes={})
    with pytest.raises(OptionError, match="must not take the place of what a run holds of its own"):
        export(artefact, run.path / place)
    with pytest.raises(OptionError, match="needs a folder of its own"):
        export(artefact, run.path)
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoint", "config.json"]
    assert export(artefact, run.path / "export")


def test_an_export_leaves_other_files_in_its_folder_alone(artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "artefact").mkdir()
    (tmp_path / "artefact" / "thesis.tex").write_text("years of work")
    export(artefact, tmp_path)
    assert (tmp_path / "artefact" / "thesis.tex").read_text() == "years of work"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["artefact", "evoprune.json", "weights.safetensors"]


@pytest.mark.parametrize("name", ["pt2", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow])])
def test_a_file_of_another_exporter_is_not_replaced_and_an_earlier_export_is(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / f"model.{name}"
    file.write_bytes(b"mine")
    with pytest.raises(OptionError, match=rf"model\.{name} bears no mark of one; name another folder, or move"):
        export(artefact, tmp_path, ["safetensors", name])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(file.name, b"mine")]
    file.unlink()
    export(artefact, tmp_path, [name])
    export(artefact, tmp_path, [name])
    earlier = file.read_bytes()
    monkeypatch.setattr(exporting, "_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="it was not written"):
        export(artefact, tmp_path, [name])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(file.name, earlier)]


def test_pt2_of_another_program_is_not_taken_for_an_export(artefact: Path, tmp_path: Path) -> None:
    program = torch.export.export(load(artefact), (torch.zeros(2, *SHAPE),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(OptionError, match=r"model\.pt2 bears no mark"):
        export(artefact, tmp_path, ["pt2"])


def test_pt2_takes_any_batch(artefact: Path, tmp_path: Path) -> None:
    (file,) = export(artefact, tmp_path, ["pt2"])
    assert file.n_bytes == (tmp_path / "model.pt2").stat().st_size
    assert file.max_difference is not None
    assert file.max_difference < 1e-5
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(7, *SHAPE)
    with torch.inference_mode():
        assert torch.allclose(program(images), load(artefact)(images), atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_onnx_is_one_file_that_onnx_runtime_agrees_with(artefact: Path, tmp_path: Path) -> None:
    (file,) = export(artefact, tmp_path, ["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert file.max_difference is not None
    assert file.max_difference < 1e-4


def test_an_export_that_computes_something_else_is_removed(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = exporting._checked

    def with_wrong_logits(
        network: nn.Module, exported: Callable[[Tensor], Tensor], shape: tuple[int, ...], path: Path
    ) -> float:
        return checked(network, lambda images: exported(images) + 1.0, shape, path)

    monkeypatch.setattr(exporting, "_checked", with_wrong_logits)
    with pytest.raises(ExportError, match=r"the logits of .*model\.pt2 differ"):
        export(artefact, tmp_path, ["pt2"])
    assert not list(tmp_path.iterdir())


def test_wrong_use_is_named(artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown export format 'onxn'; did you mean 'onnx'"):
        export(artefact, tmp_path, ["onxn"])
    with pytest.raises(OptionError, match="must not overwrite its source"):
        export(artefact, artefact)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="must be a writable folder"):
        export(artefact, tmp_path / "file")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(OptionError, match=r"onnxruntime, which are not installed; pip install 'evoprune\[onnx\]'"):
        export(artefact, tmp_path / "out", ["onnx"])
    assert not (tmp_path / "out").exists()


def test_every_format_is_listed() -> None:
    assert FORMATS.keys() == catalogue()["formats"].keys()
