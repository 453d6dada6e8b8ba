from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces.errors import WeightsError
from search_spaces.models import build_model, hash_weights, load_weights
from tests.shared_data import SHARED_DATA, needs_shared_data


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.fixture
def trained() -> nn.Module:
    return build_model("resnet20", model_args={"width": 0.25}, seed=1)


@pytest.fixture
def fresh() -> nn.Module:
    return build_model("resnet20", model_args={"width": 0.25}, seed=2)


def contiguous(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_safetensors_round_trip(trained: nn.Module, fresh: nn.Module, tmp_path: Path, name: str) -> None:
    save_file(contiguous(trained), tmp_path / name)
    assert hash_weights(fresh) != hash_weights(trained)
    load_weights(fresh, tmp_path / name)
    assert hash_weights(fresh) == hash_weights(trained)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints(trained: nn.Module, fresh: nn.Module, tmp_path: Path, wrapper: str, prefix: str) -> None:
    state: Any = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert hash_weights(fresh) == hash_weights(trained)


def test_half_precision_storage_is_cast(trained: nn.Module, fresh: nn.Module, tmp_path: Path) -> None:
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in contiguous(trained).items()},
        tmp_path / "w.safetensors",
    )
    load_weights(fresh, tmp_path / "w.safetensors")
    assert {parameter.dtype for parameter in fresh.parameters()} == {torch.float32}
    assert torch.equal(fresh.get_parameter("conv1.weight"), trained.get_parameter("conv1.weight").half().float())


def test_missing_batch_counter_is_passed_over(trained: nn.Module, fresh: nn.Module, tmp_path: Path) -> None:
    torch.save({k: v for k, v in trained.state_dict().items() if "num_batches" not in k}, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert hash_weights(fresh) == hash_weights(trained)


def test_auxiliary_head_that_is_switched_off_is_passed_over(tmp_path: Path) -> None:
    with_heads, without = (
        build_model("torchvision:inception_v3", model_args={"aux_logits": aux}) for aux in (True, False)
    )
    torch.save(with_heads.state_dict(), tmp_path / "w.pt")
    load_weights(without, tmp_path / "w.pt")
    assert torch.equal(without.get_parameter("fc.weight"), with_heads.get_parameter("fc.weight"))


def test_missing_unexpected_and_misshapen_keys_are_named_and_counted(fresh: nn.Module, tmp_path: Path) -> None:
    state = fresh.state_dict()
    missing = [key for key in state if key.startswith("layer3") and "num_batches" not in key]
    for key in missing:
        del state[key]
    state["fc.weight"] = torch.zeros(3)
    state["linear.weight"] = torch.zeros(100, 16)
    torch.save(state, tmp_path / "w.pt")
    before = hash_weights(fresh)
    with pytest.raises(WeightsError) as caught:
        load_weights(fresh, tmp_path / "w.pt")
    message = str(caught.value)
    assert f"{len(missing)} missing ({', '.join(missing[:4])}, and {len(missing) - 4} more)" in message
    assert "1 unexpected (fc.weight)" in message
    assert "1 misshapen (linear.weight (100, 16) in the file, (10, 16) in the network)" in message
    assert hash_weights(fresh) == before


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_pickle_with_code_is_refused_and_not_run(fresh: nn.Module, tmp_path: Path, protocol: int, zipped: bool) -> None:
    target, path = tmp_path / "it_ran", tmp_path / "w.pt"
    if zipped:
        torch.save({"state_dict": Bomb(target)}, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(target)}, protocol=protocol))
    with pytest.raises(WeightsError, match="holds code or other objects"):
        load_weights(fresh, path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files(fresh: nn.Module, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(fresh.state_dict(), path)
    else:
        save_file(contiguous(fresh), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match=f"w.{suffix} is no"):
        load_weights(fresh, path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"these are words, not weights " * 9, b"\x80\x04N.", bytes(200)])
def test_files_that_hold_no_weights(fresh: nn.Module, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        load_weights(fresh, tmp_path / name)


def test_no_file_and_no_tensors(fresh: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist or is not a file"):
        load_weights(fresh, tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="does not exist or is not a file"):
        load_weights(fresh, tmp_path)
    for content in ({"epoch": 3}, {0: torch.zeros(1)}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="must hold a mapping of names to tensors"):
            load_weights(fresh, tmp_path / "w.pt")


def test_weights_that_are_not_finite(fresh: nn.Module, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in fresh.state_dict().items()}
    state["linear.bias"][0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"NaN or infinity in linear\.bias"):
        load_weights(fresh, tmp_path / "w.pt")


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "file_name"), [("resnet20", "resnet20"), ("resnet56", "resnet56"), ("vgg16", "vgg16_bn")]
)
def test_real_networks_classify_real_test_images(name: str, file_name: str) -> None:
    model = build_model(name)
    load_weights(model, SHARED_DATA / "weights" / f"{file_name}_cifar10.safetensors")
    sheets = sorted((SHARED_DATA / "cifar10").glob("test-*-*.webp"))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    images, labels = [], []
    for label, word in enumerate(classes):
        sheet = next(path for path in sheets if path.name.startswith(f"test-{word}-"))
        tiles = np.asarray(Image.open(sheet).convert("RGB")).reshape(20, 32, 25, 32, 3).swapaxes(1, 2)
        images.append(tiles.reshape(500, 32, 32, 3)[:20])
        labels += [label] * 20
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    x = ((torch.from_numpy(np.concatenate(images)).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        accuracy = (model(x).argmax(dim=1) == torch.tensor(labels)).float().mean().item()
    assert accuracy > 0.85  # 91.7 to 93.4 % on all 10,000; the standard error of 200 images is 2 points
