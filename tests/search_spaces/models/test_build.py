from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.models import MODELS, ChannelPad, Subsample, build_model, default_input_shape, hash_weights


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current directory."""
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def plain(): return nn.Conv2d(3, 4, 3)\n"
        "def classes(num_classes, n_hidden=3): return nn.Linear(n_hidden, num_classes)\n"
        "def nothing(): return 'a network'\n"
        "def fails(): raise ZeroDivisionError('on purpose')\n"
        "number = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return "my_networks"


def n_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def resnet_n_params(n_blocks: int) -> int:
    """Convolutions, two numbers per batch-norm channel, and the classifier of a CIFAR ResNet."""
    total = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    n_in = 16
    for n_out in (16, 32, 64):
        total += 9 * n_in * n_out + 9 * n_out * n_out * (2 * n_blocks - 1) + 2 * n_out * 2 * n_blocks
        n_in = n_out
    return total


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_maps_its_images_to_the_classes(name: str) -> None:
    model = build_model(name, n_classes=7, model_args={"width": 0.25})
    assert not model.training
    with torch.inference_mode():
        logits = model(torch.zeros(2, *MODELS[name].input_shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_resnet_sizes_follow_the_formula(depth: int) -> None:
    assert n_params(build_model(f"resnet{depth}")) == resnet_n_params((depth - 2) // 6)


def test_vgg16_size_follows_the_formula() -> None:
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    features = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    assert n_params(build_model("vgg16")) == features + (512 * 512 + 512) + 2 * 512 + (512 * 10 + 10)


def test_densenet40_size_follows_the_formula() -> None:
    n_channels, total = 16, 9 * 3 * 16
    for block in range(3):
        if block:
            total += 2 * n_channels + n_channels**2
        for _ in range(12):
            total += 2 * n_channels + 9 * n_channels * 12
            n_channels += 12
    assert n_params(build_model("densenet40")) == total + 2 * n_channels + n_channels * 10 + 10


def test_resnet_parameter_names() -> None:
    names = set(build_model("resnet20").state_dict())
    weights = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    blocks = {f"layer{s}.{i}.{part}" for s in (1, 2, 3) for i in range(3) for part in ("conv1", "bn1", "conv2", "bn2")}
    assert weights == {"conv1", "bn1", "linear"} | blocks


def test_option_a_shortcut_pads_zeros_on_either_side() -> None:
    x = torch.randn(2, 4, 6, 6)
    padded = ChannelPad(2, 3)(Subsample()(x))
    assert padded.shape == (2, 9, 3, 3)
    assert torch.equal(padded[:, 2:6], x[:, :, ::2, ::2])
    assert not padded[:, :2].any()
    assert not padded[:, 6:].any()


def test_weights_follow_the_seed_and_leave_the_callers_generator() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_model("resnet20", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert hash_weights(first) == hash_weights(same) != hash_weights(other)


def test_input_shape_sets_the_input_channels() -> None:
    model = build_model("resnet20", input_shape=(1, 28, 28))
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvision_networks_with_auxiliary_heads_return_one_tensor(name: str) -> None:
    model = build_model(f"torchvision:{name}", n_classes=5)
    shape = default_input_shape(f"torchvision:{name}")
    with torch.inference_mode():
        assert model(torch.zeros(1, *shape)).shape == (1, 5)


def test_timm_network() -> None:
    pytest.importorskip("timm", reason="the extra evoprune[timm] is not installed")
    model = build_model("timm:resnet18", n_classes=5)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_timm_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(OptionError, match=r"pip install 'evoprune\[timm\]'"):
        build_model("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg61", "unknown model 'vgg61'; did you mean 'vgg16'"),
        ("torchvision:resnet5O", "unknown torchvision model 'resnet5O'; did you mean 'resnet50'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        build_model(name)


def test_unknown_timm_name_lists_only_the_nearest() -> None:
    pytest.importorskip("timm", reason="the extra evoprune[timm] is not installed")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'") as caught:
        build_model("timm:resnet_18")
    assert len(str(caught.value)) < 600


def test_user_factory_from_the_current_directory(user_module: str) -> None:
    path_before = list(sys.path)
    assert isinstance(build_model(f"{user_module}:plain"), nn.Conv2d)
    linear = build_model(f"{user_module}:classes", n_classes=6, model_args={"n_hidden": 8})
    assert linear.weight.shape == (6, 8)
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("suffix", "model_args", "message"),
    [
        ("plian", {}, "did you mean 'plain'"),
        ("number", {}, "must name something callable, but it is a int"),
        ("nothing", {}, "must return a torch.nn.Module, but it returned a str"),
        ("fails", {}, "ZeroDivisionError: on purpose"),
        ("plain", {"size": 3}, "unexpected keyword argument 'size'"),
        ("", {}, "written `package.module:factory`"),
    ],
)
def test_user_factory_errors(user_module: str, suffix: str, model_args: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_model(f"{user_module}:{suffix}", model_args=model_args)


def test_user_module_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="no module named 'no_such_module_here'"):
        build_model("no_such_module_here:factory")


def test_bad_arguments() -> None:
    with pytest.raises(OptionError, match="`n_classes >= 1` must hold, but got 0"):
        build_model("resnet20", n_classes=0)
    with pytest.raises(OptionError, match=r"model 'resnet20' could not be built from .*wodth=2"):
        build_model("resnet20", model_args={"wodth": 2})
    for width in (0, -1, float("nan")):
        with pytest.raises(OptionError, match=r"`width > 0` must hold, but got"):
            build_model("vgg16", model_args={"width": width})
