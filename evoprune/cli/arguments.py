"""Options that several commands share, and their conversion from what a shell passes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from search_spaces.errors import OptionError

INPUT_PANEL = "Network and images"
RUN_PANEL = "Where it runs, and what it says"
_SPACE = partial(typer.Option, rich_help_panel="What may be cut")
_RUN = partial(typer.Option, rich_help_panel=RUN_PANEL)
_INPUTS = partial(typer.Option, rich_help_panel=INPUT_PANEL)

Model = Annotated[str, typer.Option("--model", "-m", help="Network: a name of `evoprune list models`.")]
ModelArgs = Annotated[str | None, _INPUTS(help="Keywords for the network's factory, as a JSON object.")]
Weights = Annotated[Path | None, typer.Option("--weights", "-w", help="Trained weights: safetensors or checkpoint.")]
Data = Annotated[str, typer.Option("--data", "-d", help="Images: a name of `evoprune list data`.")]
DataRoot = Annotated[Path | None, _INPUTS(help="Folder that downloaded data sets lie in.")]
InputShape = Annotated[str | None, _INPUTS(help="Channels, height and width of an image, such as 3x32x32.")]
Mean = Annotated[
    str | None,
    _INPUTS(help="Of images in [0, 1], per channel: 0.4914,0.4822,0.4465.", show_default="ImageNet's"),
]
Std = Annotated[str | None, _INPUTS(help="Likewise: what is divided by after the mean.", show_default="ImageNet's")]
Protect = Annotated[list[str] | None, _SPACE(help="Leave groups that match this pattern alone; repeatable.")]
Only = Annotated[list[str] | None, _SPACE(help="Touch no groups but those that match; repeatable.")]
MinChannels = Annotated[str, _SPACE(help="Channels that every group keeps: a count, or a share in (0, 1).")]
RoundTo = Annotated[int, _SPACE(help="Kept channels of a group are a multiple of this.")]
BlockGenes = Annotated[bool, _SPACE("--block-genes", help="Let whole residual blocks be removed too.")]
Seed = Annotated[int | None, typer.Option(help="Master seed; drawn and recorded where none is given.")]
Device = Annotated[str, _RUN(help="auto, cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, _RUN("--json", help="Print the result as JSON, alone on stdout.")]
Run = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]


def parse_model_args(text: str | None) -> dict[str, Any]:
    """Return the JSON object in ``text``; empty where there is none.

    Raises:
        OptionError: ``text`` is no JSON object.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OptionError(
            f"`--model-args` must be a JSON object such as '{{\"width\": 0.5}}', but got {text!r}: {error}"
        ) from None
    if not isinstance(value, dict):
        raise OptionError(f"`--model-args` must be a JSON object such as '{{\"width\": 0.5}}', but got {text!r}")
    return value


def parse_input_shape(text: str | None) -> tuple[int, int, int] | None:
    """Return ``(C, H, W)`` from ``3x32x32`` or ``3,32,32``; None where there is none.

    Raises:
        OptionError: ``text`` is not three positive whole numbers.
    """
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"`--input-shape` must be three positive whole numbers such as 3x32x32, but got {text!r}")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def parse_channel_figures(text: str | None, option: str) -> tuple[float, ...] | None:
    """Return the numbers in ``text``, which commas separate; None where there is none.

    Raises:
        OptionError: A part of ``text`` is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"`{option}` must be numbers in [0, 1] with commas between them, one for each channel, such as "
            f"0.4914,0.4822,0.4465, but got {text!r}"
        ) from None


def parse_min_channels(text: str) -> int | float:
    """Return a count where ``text`` is a whole number, else a share.

    Raises:
        OptionError: ``text`` is no number.
    """
    return parse_count_or_share(text, "--min-channels", least=1)


def parse_count_or_share(text: str, option: str, least: int = 0) -> int | float:
    """Return a count where ``text`` is a whole number, else a share.

    Raises:
        OptionError: ``text`` is no number.
    """
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise OptionError(f"`{option}` must be a count >= {least} or a share in (0, 1), but got {text!r}") from None
