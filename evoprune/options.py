"""Resolved options: validated once at the public boundary, recorded in every run directory, frozen afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evoprune.budget import parse_budget
from evoprune.finetuning import FinetuningRecipe
from evoprune.modes import MODES
from fitness.data import DATA
from fitness.options import FitnessOptions
from search_spaces.errors import OptionError, UnknownNameError

Metric = Literal["macs", "params"]
FITNESS = FitnessOptions()
FINETUNING = FinetuningRecipe()
_N_SEED_BITS = 32


class Options(BaseModel):
    """Common behaviour: immutable, no unknown names, no silent conversion between kinds of values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class NetworkOptions(Options):
    """Which network, which images, and what of the network may be removed."""

    model: Annotated[str, Field(min_length=1, description="a name that `evoprune list models` shows")] = "vgg16"
    model_args: Annotated[dict[str, Any], Field(description="keywords for the network's factory")] = {}
    weights: Annotated[Path | None, Field(strict=False, description="a safetensors file or a torch checkpoint")] = None
    data: Annotated[str, Field(min_length=1, description="a name that `evoprune list data` shows")] = "digits"
    data_root: Annotated[Path | None, Field(strict=False, description="the folder that downloads go to")] = None
    input_shape: Annotated[
        tuple[int, int, int] | None, Field(strict=False, description="channels, height and width, all positive")
    ] = None
    protect: Annotated[tuple[str, ...], Field(strict=False, description="patterns of group names to leave alone")] = ()
    only: Annotated[tuple[str, ...], Field(strict=False, description="patterns of the only groups to touch")] = ()
    min_channels: Annotated[
        int | float, Field(description="channels that every group keeps: a count >= 1, or a share in (0, 1)")
    ] = 1
    round_to: Annotated[int, Field(ge=1, description="kept channels of a group are a multiple of it")] = 1
    block_genes: Annotated[bool, Field(description="whether whole residual blocks may be removed")] = False
    train_epochs: Annotated[int, Field(ge=1, description="epochs of training where no weights are given")] = 12

    @field_validator("input_shape")
    @classmethod
    def _positive_sides(cls, shape: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if shape is not None and min(shape) < 1:
            raise ValueError("every side must be at least 1")
        return shape

    @field_validator("min_channels")
    @classmethod
    def _count_or_share(cls, value: float) -> float:
        if isinstance(value, bool) or not (value >= 1 if isinstance(value, int) else 0 < value < 1):
            raise ValueError("it must be a whole number >= 1 or a share in (0, 1)")
        return value


class SearchOptions(NetworkOptions):
    """Everything that decides the outcome of a search, and where it runs."""

    budget: Annotated[str, Field(description='a share ("0.3", "30%") or an absolute cost ("62M")')] = "0.3"
    metric: Annotated[Metric, Field(description="what the budget counts")] = "macs"
    mode: Annotated[str, Field(description="a name of `evoprune list modes`")] = "global"
    seed: Annotated[int, Field(ge=0, lt=2**63, description="the master seed")]
    population_size: Annotated[int, Field(ge=4, description="individuals per generation")] = 16
    n_generations: Annotated[int, Field(ge=0, description="generations after the initial population")] = 12
    objective: Annotated[str, Field(description="what is minimised: a name of `evoprune list fitness`")] = "kl"
    compensation: Annotated[
        str, Field(description="what a sliced network gets before it is judged: sequential, merge, recalibrate or none")
    ] = FITNESS.compensation
    fitness_images: Annotated[
        str, Field(description="auto, mixture (for networks that saw these images in training) or heldout")
    ] = "auto"
    n_fitness_images: Annotated[int, Field(ge=2, description="images that judge a candidate")] = (
        FITNESS.n_fitness_images
    )
    n_calibration_images: Annotated[int, Field(ge=2, description="training images that a candidate is adapted on")] = (
        FITNESS.n_calibration_images
    )
    device: Annotated[str, Field(min_length=1, description="auto, cpu, cuda or cuda:N")] = "auto"
    workers: Annotated[int, Field(ge=0, description="Ray workers; 0 evaluates inside this process")] = 0
    address: Annotated[str | None, Field(description="a Ray cluster to join")] = None
    loggers: Annotated[
        tuple[str, ...], Field(strict=False, description="names of `evoprune list loggers`, besides log.jsonl")
    ] = ()

    @field_validator("budget", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("budget")
    @classmethod
    def _well_formed(cls, value: str) -> str:
        return parse_budget(value).text

    def fitness_options(self, *, is_trained_here: bool) -> FitnessOptions:
        """Return how candidates are judged.

        Validation images are held out where the network was trained here, and taken for memorised where its weights
        were brought, unless the user knows better.

        Raises:
            UnknownNameError: No such objective, compensation or kind of fitness images.
        """
        images = self.fitness_images
        if images == "auto":
            images = "heldout" if is_trained_here else "mixture"
        return FitnessOptions(
            objective=self.objective,  # type: ignore[arg-type]  # checked there, with the valid names
            compensation=self.compensation,  # type: ignore[arg-type]  # checked there
            fitness_images=images,  # type: ignore[arg-type]  # checked there
            n_fitness_images=self.n_fitness_images,
            n_calibration_images=self.n_calibration_images,
        )


class FinetuneOptions(Options):
    """How a small network is trained on after surgery."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training images")] = FINETUNING.epochs
    max_time_s: Annotated[float | None, Field(gt=0, description="seconds after which training ends")] = None
    batch_size: Annotated[int, Field(ge=2, description="images per step")] = FINETUNING.batch_size
    learning_rate: Annotated[float, Field(gt=0, description="peak of the schedule")] = FINETUNING.learning_rate
    temperature: Annotated[float, Field(gt=0, description="softness of the teacher's answers")] = FINETUNING.temperature
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of teacher against labels")] = FINETUNING.alpha
    device: Annotated[str, Field(min_length=1, description="auto, cpu, cuda or cuda:N")] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63, description="the master seed")]

    def recipe(self) -> FinetuningRecipe:
        """Return how the network is trained."""
        return FinetuningRecipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
            alpha=self.alpha,
        )


OptionsT = TypeVar("OptionsT", bound=Options)


def draw_seed() -> int:
    """Return a fresh master seed, for a user who gave none; it is recorded, so that the run can be repeated."""
    return secrets.randbits(_N_SEED_BITS)


def resolve_options(kind: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Return validated options of ``kind``; a ``seed`` of None or none at all is drawn.

    Raises:
        BudgetError: The budget is malformed.
        OptionError: Any other option breaks its rule, or is unknown; the message names all that do.
    """
    given = dict(values)
    if "seed" in kind.model_fields and given.get("seed") is None:
        given["seed"] = draw_seed()
    # These have errors of their own kind, which a validation error would hide.
    if isinstance(mode := given.get("mode", "global"), str) and mode not in MODES:
        raise UnknownNameError("mode", mode, MODES)
    if "budget" in given and not isinstance(given["budget"], bool):
        parse_budget(given["budget"])
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = [_described(kind, problem) for problem in error.errors(include_url=False)]
        raise OptionError("; ".join(dict.fromkeys(problems))) from None


def with_absolute_paths(options: SearchOptions) -> SearchOptions:
    """Return ``options`` with every path made absolute, so that a run can be continued from another folder."""
    changes: dict[str, Any] = {
        name: path.expanduser().absolute()
        for name in ("weights", "data_root")
        if (path := getattr(options, name)) is not None
    }
    kind, _, path = options.data.partition(":")
    if path and f"{kind}:PATH" in DATA:
        changes["data"] = f"{kind}:{Path(path).expanduser().absolute()}"
    return options.model_copy(update=changes)


def _described(kind: type[Options], problem: Any) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "options"
    if problem["type"] == "extra_forbidden":
        return f"unknown option `{name}`; valid: {', '.join(sorted(kind.model_fields))}"
    field = kind.model_fields.get(name)
    rule = problem["msg"].removeprefix("Value error, ")
    purpose = f" ({name} = {field.description})" if field is not None and field.description else ""
    return f"`{name}`: {rule[:1].lower()}{rule[1:]}, but got {problem['input']!r}{purpose}"
