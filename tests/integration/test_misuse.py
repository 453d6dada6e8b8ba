"""Wrong use ends in exit code 2 and one message with rule, value and remedy, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.command_line import MODEL, QUICK, run, write_images, write_weights

pytestmark = pytest.mark.usefixtures("own_folder")


def _search(inputs: Path, *changed: str | Path) -> Any:
    """Run a search that would be right but for ``changed``, which come last and win."""
    weights, images = inputs / "weights.safetensors", f"npz:{inputs / 'images.npz'}"
    return run("search", *MODEL, "--weights", weights, "--data", images, *QUICK, "--out", "RUN", *changed)


def _refused(outcome: Any, tmp_path: Path, *left: str) -> str:
    assert outcome.exit_code == 2, outcome.stderr
    assert outcome.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)
    return str(outcome.message)


@pytest.mark.parametrize("budget", ["0", "-1", "1.5", "nan", "30%x"])
def test_malformed_budget(inputs: Path, tmp_path: Path, budget: str) -> None:
    message = _refused(_search(inputs, "--budget", budget), tmp_path)
    assert f"but got '{budget}'" in message
    assert 'write a fraction in (0, 1] ("0.3"), a percentage' in message


def test_budget_under_the_reachable_minimum_names_the_range(inputs: Path, tmp_path: Path) -> None:
    message = _refused(_search(inputs, "--budget", "1e-9"), tmp_path)
    assert "must lie in the reachable range" in message
    low = message.partition("reachable range ")[2].split()[0]
    assert _search(inputs, "--budget", low).exit_code == 0  # the number in the message is right


def test_budgets_that_contradict_each_other(inputs: Path, tmp_path: Path) -> None:
    message = _refused(_search(inputs, "--budget", "macs=0.5", "--budget", "0.4"), tmp_path)
    assert "every metric has one budget, but macs has two, '0.5' and '0.4'" in message
    message = _refused(_search(inputs, "--budget", "macs=0.9", "--budget", "params=1e-9"), tmp_path)
    assert "of the dense params" in message


def test_absolute_budget_above_the_dense_cost(inputs: Path, tmp_path: Path) -> None:
    assert "must not exceed the cost of the dense network" in _refused(_search(inputs, "--budget", "62G"), tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("--model", "vgg61", "did you mean 'vgg16'?"),
        ("--model", "resnet21", "did you mean 'resnet20'?"),
        ("--data", "digit", "did you mean 'digits'?"),
        ("--seed-with", "two-stp", "did you mean 'two-step'?"),
        ("--prior", "taylr", "did you mean 'taylor'?"),
        ("--mode", "globl", "did you mean 'global'?"),
        ("--objective", "cross-entropy", "did you mean 'cross_entropy'?"),
        ("--compensation", "sequentially", "did you mean 'sequential'?"),
        ("--fitness-images", "held-out", "did you mean 'heldout'?"),
    ],
)
def test_unknown_name_gets_the_nearest(inputs: Path, tmp_path: Path, option: str, value: str, nearest: str) -> None:
    message = _refused(_search(inputs, option, value), tmp_path)
    assert repr(value) in message
    assert nearest in message


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--population", "1", "greater than or equal to 4, but got 1"),
        ("--population", "1000000000", "less than or equal to 100000, but got 1000000000"),
        ("--fitness-images", "nosuch", "valid: auto, heldout, mixture"),
        ("--min-channels", "1.5", "a whole number >= 1 or a share in (0, 1), but got 1.5"),
        ("--min-channels", "many", "a count >= 1 or a share in (0, 1), but got 'many'"),
        ("--model-args", "width", "must be a JSON object"),
        ("--input-shape", "3x32", "three positive whole numbers such as 3x32x32, but got '3x32'"),
        ("--device", "tpu", "a device is auto, cpu, cuda or cuda:N, but got 'tpu'"),
        ("--device", "cuda:99", "must exist, but this machine has"),
        ("--metric", "flops", "unknown metric 'flops'; "),
        ("--protect", "nowhere*", "nowhere*"),
        ("--model-args", '{"widht": 1}', "widht"),
    ],
)
def test_option_out_of_range(inputs: Path, tmp_path: Path, option: str, value: str, rule: str) -> None:
    assert rule in _refused(_search(inputs, option, value), tmp_path)


def test_unknown_option_of_the_shell() -> None:
    outcome = run("search", "--bugdet", "0.3")
    assert outcome.exit_code == 2
    assert "--budget" in outcome.stderr


# ---------------------------------------------------------------------- weights


def test_weights_of_another_network(inputs: Path, tmp_path: Path) -> None:
    write_weights(inputs / "resnet20.safetensors", name="resnet20", n_classes=10, in_channels=3)
    message = _refused(_search(inputs, "--weights", inputs / "resnet20.safetensors"), tmp_path)
    assert "missing" in message
    assert "unexpected" in message


def test_weights_of_another_width(inputs: Path, tmp_path: Path) -> None:
    write_weights(inputs / "wide.safetensors", width=0.125)
    assert "misshapen" in _refused(_search(inputs, "--weights", inputs / "wide.safetensors"), tmp_path)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"n_classes": 5}, "has 5 logits and the images have 10 classes; leave 'n_classes' out of"),
        ({"n_classes": 100}, "has 100 logits and the images have 10 classes; leave 'n_classes' out of"),
        ({"in_channels": 1}, "as many channels as its images have, 3, but got 1 for 'in_channels' in"),
    ],
)
def test_a_network_for_other_images_is_refused_before_it_is_trained(
    inputs: Path, tmp_path: Path, args: dict[str, int], told: str
) -> None:
    model = ("--model", "vgg16", "--model-args", json.dumps({"width": 0.0625, **args}))
    outcome = run("search", *model, "--data", f"npz:{inputs / 'images.npz'}", *QUICK, "--out", "RUN")
    assert told in _refused(outcome, tmp_path)
    assert "training" not in outcome.stderr


@pytest.mark.parametrize("command", ["inspect", "latency"])
def test_classes_that_are_asked_for_twice(tmp_path: Path, command: str) -> None:
    message = _refused(run(command, "--model-args", '{"n_classes": 5}', "--classes", "10"), tmp_path)
    assert "asked for once, but got 10 for" in message
    assert "and 5 for 'n_classes' in" in message


def test_truncated_weights(inputs: Path, tmp_path: Path) -> None:
    whole = (inputs / "weights.safetensors").read_bytes()
    (inputs / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in _refused(_search(inputs, "--weights", inputs / "half.safetensors"), tmp_path)


def test_missing_weights(inputs: Path, tmp_path: Path) -> None:
    assert "does not exist" in _refused(_search(inputs, "--weights", "nowhere.pt"), tmp_path)


class _Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}",)


def test_a_pickle_with_code_is_refused_and_not_run(inputs: Path, tmp_path: Path) -> None:
    (inputs / "code.pt").write_bytes(pickle.dumps(_Malicious(inputs / "was-run")))
    message = _refused(_search(inputs, "--weights", inputs / "code.pt"), tmp_path)
    assert "is not opened" in message
    assert not (inputs / "was-run").exists()


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("replaced", "named"),
    [
        ({"val_images": None}, "val_images"),
        ({"test_labels": None}, "test_labels"),
        ({"train_images": np.zeros((48, 16, 16, 3), np.float32)}, "train_images"),
        ({"train_labels": np.zeros((48, 1), np.float32)}, "train_labels"),
        ({"val_images": np.zeros((23, 16, 16, 3), np.uint8)}, "val"),
        ({"test_images": np.zeros((0, 16, 16, 3), np.uint8), "test_labels": np.zeros((0, 1), np.uint8)}, "test"),
    ],
)
def test_npz_that_breaks_its_layout(inputs: Path, tmp_path: Path, replaced: dict[str, Any], named: str) -> None:
    write_images(inputs / "broken.npz", **replaced)
    assert named in _refused(_search(inputs, "--data", f"npz:{inputs / 'broken.npz'}"), tmp_path)


def test_npz_that_is_none(inputs: Path, tmp_path: Path) -> None:
    (inputs / "text.npz").write_text("hello")
    assert "text.npz" in _refused(_search(inputs, "--data", f"npz:{inputs / 'text.npz'}"), tmp_path)
    assert "nowhere.npz" in _refused(_search(inputs, "--data", "npz:nowhere.npz"), tmp_path)
    assert "a path must follow `npz:`" in _refused(_search(inputs, "--data", "npz:"), tmp_path)


def test_empty_image_folder(inputs: Path, tmp_path: Path) -> None:
    (inputs / "photos" / "train").mkdir(parents=True)
    assert "photos" in _refused(_search(inputs, "--data", f"imagefolder:{inputs / 'photos'}"), tmp_path)


# ---------------------------------------------------------------------- run directories


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "RUN"
    assert _search(inputs, "--out", folder).exit_code == 0
    return folder


def test_an_existing_run_is_never_overwritten(inputs: Path, finished: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    message = _refused(_search(inputs, "--out", finished), tmp_path)
    assert f"evoprune resume {finished}" in message
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_folder_with_something_else_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "thesis.tex").write_text("")
    assert "choose another --out" in _refused(_search(inputs), tmp_path, "RUN")
    assert [path.name for path in (tmp_path / "RUN").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["file/RUN", "/proc/evoprune/RUN"])
def test_unwritable_output(inputs: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert "must be writable" in _refused(_search(inputs, "--out", place), tmp_path, "file")


def _unfinished(finished: Path, target: Path, **options: Any) -> Path:
    """Copy a run as it was before its last step, with ``options`` changed in its config.json."""
    shutil.copytree(finished, target)
    (target / "result.json").unlink()
    config = json.loads((target / "config.json").read_text())
    config["options"].update(options)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_resume_of_a_run_of_another_model(finished: Path, tmp_path: Path) -> None:
    unfinished = _unfinished(finished, tmp_path / "RUN", model="resnet20")
    outcome = run("resume", unfinished)
    assert outcome.exit_code == 2
    assert "these differ: options (recorded" in outcome.message


def test_resume_with_other_weights_and_data(tmp_path: Path) -> None:
    weights, images = write_weights(tmp_path / "w.safetensors"), write_images(tmp_path / "i.npz")
    options = [*MODEL, "--weights", weights, "--data", f"npz:{images}", *QUICK]
    assert run("search", *options, "--out", "first").exit_code == 0
    unfinished = _unfinished(tmp_path / "first", tmp_path / "RUN")
    write_weights(weights, seed=1)
    write_images(images, seed=1)
    outcome = run("resume", unfinished)
    assert outcome.exit_code == 2
    assert "weights (recorded" in outcome.message
    assert "data (recorded" in outcome.message
    assert "space (recorded" not in outcome.message
    weights.unlink()
    assert "does not exist" in run("resume", unfinished).message


@pytest.mark.parametrize("command", ["resume", "finetune", "evaluate", "export"])
def test_no_run_directory(tmp_path: Path, command: str) -> None:
    outcome = run(command, "nowhere")
    _refused(outcome, tmp_path)
    assert "nowhere" in outcome.message


def test_damaged_run_directory(finished: Path, tmp_path: Path) -> None:
    unfinished = _unfinished(finished, tmp_path / "RUN")
    (unfinished / "config.json").write_text("{")
    outcome = run("resume", unfinished)
    assert outcome.exit_code == 2
    assert "config.json" in outcome.message


@pytest.mark.parametrize("command", ["finetune", "evaluate", "export"])
def test_a_network_that_is_asked_for_before_the_search_is_done(finished: Path, tmp_path: Path, command: str) -> None:
    unfinished = _unfinished(finished, tmp_path / "RUN")
    shutil.rmtree(unfinished / "best")
    outcome = run(command, unfinished)
    assert outcome.exit_code == 2
    assert f"{unfinished} has none yet; continue it with `evoprune resume {unfinished}`" in outcome.message
    assert not (unfinished / "finetuned").exists()


def test_picking_from_a_run_that_stopped_while_it_was_prepared(finished: Path, tmp_path: Path) -> None:
    unfinished = _unfinished(finished, tmp_path / "RUN")
    (unfinished / "evaluations.sqlite").unlink()
    outcome = run("pick", unfinished, "--budget", "0.9")
    assert outcome.exit_code == 2
    assert f"{unfinished} has not; continue it with `evoprune resume {unfinished}`" in outcome.message


def test_unknown_export_format(finished: Path, tmp_path: Path) -> None:
    assert "did you mean 'onnx'?" in _refused(run("export", finished, "--format", "onxn", "--out", "x"), tmp_path)


def test_unknown_list(tmp_path: Path) -> None:
    assert "did you mean 'models'?" in _refused(run("list", "model"), tmp_path)
