"""Resolved options: validated once at the public boundary, recorded in every run directory, frozen afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from evoprune.budget import budget_texts
from evoprune.finetuning import FinetuningRecipe, peak_learning_rate
from evoprune.knowledge import MIXTURE, Choice
from fitness.options import FitnessOptions
from search_spaces.latency_measurement import DTYPES

FITNESS = FitnessOptions()
FINETUNING = FinetuningRecipe()
#: Of every image, whatever the data set.
N_CHANNELS = 3
#: Modes in which all genes evolve together.
WHOLE_GENOME_MODES = ("global", "pareto")


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
    mean: Annotated[
        tuple[float, ...] | None,
        Field(strict=False, description="per channel, of images in [0, 1]; ImageNet's if none"),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        Field(strict=False, description="per channel, of images in [0, 1]; ImageNet's if none"),
    ] = None
    protect: Annotated[tuple[str, ...], Field(strict=False, description="patterns of group names to leave alone")] = ()
    only: Annotated[tuple[str, ...], Field(strict=False, description="patterns of the only groups to touch")] = ()
    min_channels: Annotated[
        int | float, Field(description="channels that every group keeps: a count >= 1, or a share in (0, 1)")
    ] = 1
    round_to: Annotated[int, Field(ge=1, description="kept channels of a group are a multiple of it")] = 1
    block_genes: Annotated[bool, Field(description="whether whole residual blocks may be removed")] = False
    train_epochs: Annotated[int, Field(ge=1, description="epochs of training where no weights are given")] = 8

    @field_validator("input_shape")
    @classmethod
    def _positive_sides(cls, shape: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if shape is not None and min(shape) < 1:
            raise ValueError("every side must be at least 1")
        return shape

    @field_validator("mean", "std")
    @classmethod
    def _figures_of_channels(cls, values: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if values is None:
            return None
        if len(values) != N_CHANNELS or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"it must be {N_CHANNELS} numbers in [0, 1], one for each channel")
        if info.field_name == "std" and min(values) <= 0:
            raise ValueError("every number must be positive, since images are divided by it")
        return values

    @field_validator("min_channels")
    @classmethod
    def _count_or_share(cls, value: float) -> float:
        if isinstance(value, bool) or not (value >= 1 if isinstance(value, int) else 0 < value < 1):
            raise ValueError("it must be a whole number >= 1 or a share in (0, 1)")
        return value


class SearchOptions(NetworkOptions):
    """Everything that decides the outcome of a search, and where it runs."""

    budget: Annotated[
        tuple[str, ...],
        Field(strict=False, description='shares ("0.3", "30%") or absolute costs ("62M"), by metric ("params=0.4")'),
    ] = ("0.3",)
    metric: Annotated[str | None, Field(description="what a budget counts that names no metric; macs by default")] = (
        None
    )
    latency_table: Annotated[
        Path | None, Field(strict=False, description="a file of `evoprune latency`, for a budget of latency")
    ] = None
    mode: Annotated[str, Field(description="a name of `evoprune list modes`")] = "global"
    seed: Annotated[int, Field(ge=0, lt=2**63, description="the master seed")]
    population_size: Annotated[int, Field(ge=4, le=100_000, description="individuals per generation")] = 16
    n_generations: Annotated[int, Field(ge=0, description="generations after the initial population")] = 8
    seed_with: Annotated[
        str, Field(description="criteria that propose first genomes: names separated by commas, mixture or none")
    ] = MIXTURE
    prior: Annotated[
        str, Field(description="criteria that guide mutation: names separated by commas, mixture or none")
    ] = MIXTURE
    seed_share: Annotated[float, Field(ge=0, le=1, description="share of the first population from criteria")] = 0.5
    random_share: Annotated[
        float, Field(ge=0, le=1, description="share of the first population, and of offspring, without any criterion")
    ] = 0.2
    prior_temperature: Annotated[
        float, Field(gt=0, lt=float("inf"), description="large values make priors weak, small ones strict")
    ] = 1.0
    fitness: Annotated[str, Field(description="what candidates are judged by: a name of `evoprune list fitness`")] = (
        "ladder"
    )
    screen_factor: Annotated[
        int | None, Field(ge=1, description="offspring screened per offspring judged; 1 screens none")
    ] = None
    n_halvings: Annotated[int | None, Field(ge=0, le=8, description="further screens, on half as many images each")] = (
        None
    )
    n_elites: Annotated[
        int | None, Field(ge=0, description="individuals per generation that are judged as they would be shipped")
    ] = None
    n_elite_images: Annotated[int | None, Field(ge=2, description="images that judge elites")] = None
    n_distillation_steps: Annotated[
        int | None, Field(ge=1, description="gradient steps that a candidate gets before it is judged")
    ] = None
    n_layer_distillation_steps: Annotated[
        int | None,
        Field(ge=0, description="mode layerwise: gradient steps of distillation between one layer and the next, 0"),
    ] = None
    stages: Annotated[
        str | None,
        Field(
            min_length=1,
            description="mode staged: resolution (the default), blocks, or patterns of group names, with commas",
        ),
    ] = None
    cost_weight: Annotated[
        float | None,
        Field(
            gt=0,
            le=1e6,
            description="mode staged without a budget: worth of the dense cost in errors of the stripped network, 1",
        ),
    ] = None
    objective: Annotated[str, Field(description="what is minimised: a name of `evoprune list objectives`")] = "kl"
    compensation: Annotated[
        str, Field(description="what a sliced network gets before it is judged: one of `evoprune list compensations`")
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
    width_phase: Annotated[
        int,
        Field(ge=0, description="generations that evolve widths alone; from a share in (0, 1) of all generations too"),
    ] = 0
    restart: Annotated[bool, Field(description="whether a fresh population replaces one without diversity")] = False
    local_search: Annotated[bool, Field(description="whether one mutation lowers the two-step error by exchanges")] = (
        False
    )
    max_evaluations: Annotated[
        int | None, Field(ge=1, description="evaluations, at any rung, after whose generation the search ends")
    ] = None
    max_time_s: Annotated[
        float | None, Field(gt=0, lt=float("inf"), description="seconds of search, resumed parts included")
    ] = None
    patience: Annotated[int | None, Field(ge=1, description="generations without any gain that end the search")] = None
    target: Annotated[
        float | None, Field(allow_inf_nan=False, description="judged objective at which the search ends")
    ] = None
    min_hypervolume_gain: Annotated[
        float | None,
        Field(ge=0, lt=float("inf"), description="share by which a front has to grow in five generations"),
    ] = None
    device: Annotated[str, Field(min_length=1, description="auto, cpu, cuda or cuda:N")] = "auto"
    workers: Annotated[int, Field(ge=0, description="Ray workers; 0 evaluates inside this process")] = 0
    address: Annotated[str | None, Field(description="a Ray cluster to join")] = None
    compare: Annotated[
        str | None, Field(description="what else is searched at equal cost, to compare with: random")
    ] = None
    loggers: Annotated[
        tuple[str, ...], Field(strict=False, description="names of `evoprune list loggers`, besides log.jsonl")
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _share_of_generations(cls, values: Any) -> Any:
        share = values.get("width_phase") if isinstance(values, dict) else None
        if not isinstance(share, float) or not 0 < share < 1:
            return values
        n_generations = values.get("n_generations", cls.model_fields["n_generations"].default)
        return {**values, "width_phase": round(share * n_generations)} if isinstance(n_generations, int) else values

    @model_validator(mode="after")
    def _of_whole_genomes(self) -> SearchOptions:
        given = [name for name in ("width_phase", "restart", "local_search") if getattr(self, name)]
        if given and self.mode not in WHOLE_GENOME_MODES:
            raise ValueError(
                f"`{given[0]}` is of the modes {' and '.join(WHOLE_GENOME_MODES)}, but the mode is {self.mode}; leave "
                "it out, or choose one of these"
            )
        return self

    @model_validator(mode="after")
    def _widths_are_a_phase(self) -> SearchOptions:
        if self.width_phase > self.n_generations:
            raise ValueError(
                f"`width_phase <= n_generations` must hold, since it is a part of them, but got {self.width_phase} and "
                f"{self.n_generations}; lower it, or give a share such as 0.25"
            )
        return self

    @model_validator(mode="after")
    def _fronts_have_hypervolumes(self) -> SearchOptions:
        if self.min_hypervolume_gain is not None and self.mode != "pareto":
            raise ValueError(
                "`min_hypervolume_gain` needs a front, which mode `pareto` searches alone, but the mode is "
                f"{self.mode}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _clusters_have_workers(self) -> SearchOptions:
        if self.address is not None and not self.workers:
            raise ValueError(
                f"`address` joins a Ray cluster for its workers, but got address={self.address!r} and workers=0; give "
                "the number of workers too"
            )
        return self

    @field_validator("budget", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        return budget_texts(value)

    @model_validator(mode="after")
    def _shares_leave_room(self) -> SearchOptions:
        if self.seed_share + self.random_share > 1:
            raise ValueError(
                "`seed_share + random_share <= 1` must hold, since both are shares of the first population, but got "
                f"{self.seed_share} and {self.random_share}; lower one of them"
            )
        return self

    def criteria(self, *, is_compensated: bool) -> Choice:
        """Return which criteria the search asks, where candidates are or are not compensated before they are judged.

        Raises:
            UnknownNameError: A name is none of a criterion.
        """
        return Choice.of(
            self.seed_with,
            self.prior,
            is_compensated=is_compensated,
            seed_share=self.seed_share,
            random_share=self.random_share,
        )

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
            n_elite_images=self.n_elite_images or FITNESS.n_elite_images,
            n_distillation_steps=self.n_distillation_steps or FITNESS.n_distillation_steps,
        )


class LatencyOptions(NetworkOptions):
    """Of which network a latency table is measured, and how."""

    batch_size: Annotated[int, Field(ge=1, description="images per call")] = 1
    threads: Annotated[int | None, Field(ge=1, description="threads of one operator; PyTorch's number by default")] = (
        None
    )
    dtype: Annotated[str, Field(description="float32 or bfloat16")] = "float32"
    n_checks: Annotated[int, Field(ge=1, description="sliced networks that the table is checked on")] = 20
    device: Annotated[str, Field(min_length=1, description="auto, cpu, cuda or cuda:N")] = "auto"

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"it must be one of {', '.join(DTYPES)}")
        return value


class FinetuneOptions(Options):
    """How a small network is trained on after surgery."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training images")] = FINETUNING.epochs
    max_time_s: Annotated[
        float | None, Field(gt=0, lt=float("inf"), description="seconds after which training ends")
    ] = None
    batch_size: Annotated[int, Field(ge=2, description="images per step")] = FINETUNING.batch_size
    learning_rate: Annotated[float | None, Field(gt=0, lt=float("inf"), description="peak of the schedule")] = None
    temperature: Annotated[float, Field(gt=0, lt=float("inf"), description="softness of the teacher's answers")] = (
        FINETUNING.temperature
    )
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of teacher against labels")] = FINETUNING.alpha
    device: Annotated[str, Field(min_length=1, description="auto, cpu, cuda or cuda:N")] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63, description="the master seed")]

    def recipe(self) -> FinetuningRecipe:
        """Return how the network is trained."""
        return FinetuningRecipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=peak_learning_rate(self.epochs) if self.learning_rate is None else self.learning_rate,
            temperature=self.temperature,
            alpha=self.alpha,
        )
