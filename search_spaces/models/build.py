"""Networks by name: the literal mapping of this package's own, and the three kinds that come from elsewhere."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.models.densenet_cifar import densenet40
from search_spaces.models.googlenet_cifar import googlenet
from search_spaces.models.mobilenet_cifar import mobilenet_v2
from search_spaces.models.resnet_cifar import resnet_cifar
from search_spaces.models.vgg_cifar import vgg16

ImageShape = tuple[int, int, int]


@dataclass(frozen=True)
class ModelSpec:
    """One network that evoprune brings along.

    Attributes:
        factory: Takes the keywords ``n_classes``, ``in_channels`` and ``width`` and returns fresh, random weights.
        description: One line for people.
        input_shape: ``(C, H, W)`` of the images that it was made for.
    """

    factory: Callable[..., nn.Module]
    description: str
    input_shape: ImageShape = (3, 32, 32)


MODELS: Mapping[str, ModelSpec] = {
    "densenet40": ModelSpec(densenet40, "DenseNet-40, growth 12, CIFAR form"),
    "googlenet": ModelSpec(googlenet, "GoogLeNet, CIFAR form"),
    "mobilenet_v2": ModelSpec(mobilenet_v2, "MobileNetV2, CIFAR form"),
    "resnet20": ModelSpec(partial(resnet_cifar, 20), "ResNet-20, CIFAR form, option-A shortcuts"),
    "resnet32": ModelSpec(partial(resnet_cifar, 32), "ResNet-32, CIFAR form, option-A shortcuts"),
    "resnet44": ModelSpec(partial(resnet_cifar, 44), "ResNet-44, CIFAR form, option-A shortcuts"),
    "resnet56": ModelSpec(partial(resnet_cifar, 56), "ResNet-56, CIFAR form, option-A shortcuts"),
    "resnet110": ModelSpec(partial(resnet_cifar, 110), "ResNet-110, CIFAR form, option-A shortcuts"),
    "vgg16": ModelSpec(vgg16, "VGG-16 with batch norm, CIFAR form"),
}

#: Keywords of torchvision and timm by which a factory reads or fetches a file, some of them as pickle.
_READING_KEYWORDS = frozenset(
    {
        *("weights", "weights_backbone", "pretrained", "checkpoint_path", "cache_dir"),
        *("pretrained_cfg", "pretrained_cfg_overlay"),
    }
)
_ELSEWHERE = ("torchvision:<name>", "timm:<name>", "package.module:factory")


def build_model(
    name: str,
    n_classes: int = 10,
    model_args: Mapping[str, Any] | None = None,
    input_shape: ImageShape | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a fresh network in eval mode with random weights; nothing is ever downloaded.

    Args:
        name: A key of ``MODELS``, ``torchvision:<name>``, ``timm:<name>``, or ``package.module:factory``, which is
            imported with the current directory on the path.
        n_classes: Length of the logits. A factory of the user's gets it as ``n_classes`` or ``num_classes`` where it
            has a parameter of that name.
        model_args: Keywords for the factory; they win over everything set here.
        input_shape: ``(C, H, W)``; only the number of channels matters, and only to ``MODELS`` and timm.
        seed: Of the random weights. The caller's generators are left as they were.

    Raises:
        UnknownNameError: No such name in ``MODELS``, torchvision or timm.
        OptionError: A missing module, attribute or extra; something that is not callable or no ``nn.Module``; keywords
            that the factory refuses.
    """
    if not isinstance(n_classes, Integral) or n_classes < 1:
        raise OptionError(f"`n_classes >= 1` must hold, but got {n_classes!r}; give a whole number")
    if model_args is not None and not isinstance(model_args, Mapping):
        raise OptionError(f"model arguments must be a mapping of names to values, but got {model_args!r}")
    in_channels = input_shape[0] if input_shape else 3
    with torch.random.fork_rng(devices=[]), _current_directory_on_path():
        torch.manual_seed(seed)
        factory, keywords = _resolve(name, n_classes, in_channels)
        keywords.update(model_args or {})
        model = _call(name, factory, keywords)
    return model.eval()


def default_input_shape(name: str) -> ImageShape:
    """Return the ``(C, H, W)`` that the network ``name`` was made for; 3 x 224 x 224 where nothing is known."""
    if name in MODELS:
        return MODELS[name].input_shape
    return (3, 299, 299) if name == "torchvision:inception_v3" else (3, 224, 224)


def foreign_code(name: str, model_args: Mapping[str, Any] | None = None) -> str | None:
    """Return what of others :func:`build_model` would run or read for ``name``, in words; None where it is nothing.

    That is nothing for ``MODELS``, and for names of torchvision and timm unless a keyword makes them read a file.
    """
    prefix, colon, _ = name.partition(":")
    if name in MODELS or not colon:
        return None
    if prefix not in ("torchvision", "timm"):
        return f"the factory {name!r}, which would be imported and called"
    reading = sorted(_READING_KEYWORDS & (model_args or {}).keys())
    return f"the keyword {reading[0]!r} of {name!r}, which would read or fetch a file" if reading else None


def _resolve(name: str, n_classes: int, in_channels: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    prefix, colon, rest = name.partition(":")
    if name in MODELS:
        return MODELS[name].factory, {"n_classes": n_classes, "in_channels": in_channels}
    if not colon:
        raise UnknownNameError("model", name, [*MODELS, *_ELSEWHERE])
    if prefix == "torchvision":
        return _torchvision_factory(rest, n_classes)
    if prefix == "timm":
        return _timm_factory(rest, n_classes, in_channels)
    return _user_factory(name, prefix, rest, n_classes)


def _torchvision_factory(name: str, n_classes: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    import torchvision

    valid = torchvision.models.list_models(module=torchvision.models)
    if name not in valid:
        raise UnknownNameError("torchvision model", name, valid)
    keywords: dict[str, Any] = {"weights": None, "num_classes": n_classes}
    if name in ("googlenet", "inception_v3"):
        # Auxiliary heads are absent in eval mode, hence neither prunable nor wanted; their drawn-out init warns.
        keywords |= {"init_weights": False, "aux_logits": False}
    return torchvision.models.get_model_builder(name), keywords


def _timm_factory(name: str, n_classes: int, in_channels: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    try:
        import timm
    except ImportError as error:
        raise OptionError(
            f"model 'timm:{name}' needs the package timm, which is not installed; pip install 'evoprune[timm]'"
        ) from error
    if not timm.is_model(name):
        valid = timm.list_models()
        near = difflib.get_close_matches(name, valid, n=10, cutoff=0.4)
        raise UnknownNameError(f"timm model (of {len(valid)}, the nearest are listed)", name, near or valid[:10])
    return partial(timm.create_model, name), {"pretrained": False, "num_classes": n_classes, "in_chans": in_channels}


def _user_factory(
    name: str, module_name: str, attribute: str, n_classes: int
) -> tuple[Callable[..., Any], dict[str, Any]]:
    if not module_name or not attribute:
        raise OptionError(f"a model of your own is written `package.module:factory`, but got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"model {name!r}: no module named {error.name!r} in {Path.cwd()} or in the environment; "
            "start evoprune where the module lies, or install its package"
        ) from error
    except Exception as error:  # the user's module may fail in any way at import
        raise OptionError(f"model {name!r}: importing {module_name!r} raised {_described(error)}") from error
    if not hasattr(module, attribute):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownNameError(f"factory of module {module_name!r}:", attribute, names)
    factory = getattr(module, attribute)
    if not callable(factory):
        raise OptionError(f"model {name!r} must name something callable, but it is a {type(factory).__name__}")
    return factory, {key: n_classes for key in ("n_classes", "num_classes") if key in _parameters(factory)}


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some builtins have none
        return {}


def _call(name: str, factory: Callable[..., Any], keywords: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**keywords)
    except Exception as error:  # the factory is not ours and may fail in any way
        given = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise OptionError(f"model {name!r} could not be built from ({given}): {_described(error)}") from error
    if not isinstance(model, nn.Module):
        raise OptionError(f"model {name!r} must return a torch.nn.Module, but it returned a {type(model).__name__}")
    return model


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _current_directory_on_path() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
