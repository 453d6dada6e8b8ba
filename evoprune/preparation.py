"""From options to a network, images and a search space: everything that a run needs before it has a directory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evoprune.artefact import ModelRecord, SpaceRecord, example_input
from evoprune.budget import LATENCY, Budgets, check_reachable, parse_budgets
from evoprune.fitness_plan import judges_images
from evoprune.interruption import stop_if_asked
from evoprune.latency_tables import check_table_is_given, measuring_command, read_table
from evoprune.modes import MODES
from evoprune.observer import Observer
from evoprune.options import NetworkOptions, SearchOptions
from evoprune.training import TrainingRecipe, train_dense
from fitness.data import ImageData, load_data
from fitness.data.images import MEAN, STD, ChannelFigures
from search_spaces import SearchSpace
from search_spaces.errors import OptionError
from search_spaces.latency import LatencyTable
from search_spaces.models import MODELS, build_model, default_input_shape, hash_weights, load_weights
from search_spaces.tracing import private_copy

TRAINING_SEED = 0
"""Seed of a dense network that is trained here; not the master seed, so that searches that differ in it share one."""

OBJECT = "object:"
"""Begins the name of a model or data set that was given as a Python object."""

_CLASSES_KEYWORDS = ("n_classes", "num_classes")
"""By which a factory takes the length of the logits."""

TRAINED = "trained"
GIVEN = "given"


@dataclass(frozen=True)
class DenseNetwork:
    """The network to be made smaller.

    Attributes:
        model: In eval mode, on the CPU, contiguous; never changed.
        name: Its name, or its class for a network that was given as an object.
        source: Where the weights came from: the path of a file, ``trained`` or ``given``.
        record: What an artefact says about it.
    """

    model: nn.Module
    name: str
    source: str
    record: ModelRecord

    @property
    def is_trained_here(self) -> bool:
        """Whether the validation images are new to the network, since it was trained on this data's training images."""
        return self.source == TRAINED


@dataclass(frozen=True)
class Preparation:
    """What a search starts from.

    Attributes:
        dense: The network.
        data: The images.
        space: What of the network may be removed.
        space_record: How the space was traced.
        device: Where candidates are evaluated.
        budgets: Shares in (0, 1] of the dense costs by metric; empty where no budget was asked for.
        latency_table: What predicts the latency of a network, where one is budgeted.
        hashes: Content hashes that a resumed run must find again.
    """

    dense: DenseNetwork
    data: ImageData
    space: SearchSpace
    space_record: SpaceRecord
    device: torch.device
    budgets: Budgets = field(default_factory=dict)
    latency_table: LatencyTable | None = None
    hashes: dict[str, str] = field(default_factory=dict)


def prepare(
    options: NetworkOptions,
    observer: Observer,
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    dense_weights: Path | None = None,
    latency_table: Path | None = None,
    device: torch.device,
) -> Preparation:
    """Return everything that a search needs; nothing is written but the cache of trained networks.

    The cheap checks come first: a budget that cannot be reached is refused before anything is trained.

    Args:
        options: Resolved options; a :class:`SearchOptions` has its budgets checked against the reachable range.
        observer: Hears of stages, and may stop a training.
        model: The dense network, where it was given as an object.
        data: The images, where they were given as an object.
        dense_weights: Weights of a network that an earlier part of the same run trained.
        latency_table: The copy of the run's latency table, instead of the file that the options name.
        device: Where candidates are evaluated, and a dense network is trained.

    Raises:
        UnknownNameError: No model or data set has the name.
        OptionError: An option breaks a rule that only the network or the data can tell, such as those of the mode, or
            the network's weights are not float32.
        DataError: The images cannot be read.
        WeightsError: The weights cannot be read, or belong to another network.
        TraceError: The network cannot be traced.
        BudgetError: The budget cannot be reached.
        InterruptedRunError: The observer asked to stop.
    """
    if model is None and not options.model.startswith(OBJECT):
        build_model(options.model, model_args=options.model_args)  # a misspelt name should not wait for a download
    if data is None:
        observer.on_stage(f"reading {options.data}", None)
        data = load_data(
            options.data,
            options.data_root,
            input_shape=options.input_shape,
            mean=channel_figures(options.mean or MEAN),
            std=channel_figures(options.std or STD),
        )
    stop_if_asked(observer, None, "reading the images")
    if isinstance(options, SearchOptions) and latency_table is None:
        check_table_is_given(options, data.n_classes, data.input_shape, is_object=model is not None)
    network = _build(options, model, data.n_classes, data.input_shape, dense_weights)
    _check_number_types(network)
    observer.on_stage("tracing the network", None)
    space_record = _space_record(options)
    space = space_record.trace(network, data.input_shape)
    space_record = space_record.model_copy(update={"fingerprint": space.fingerprint})
    stop_if_asked(observer, None, "tracing the network")
    _check_logits(network, options, data)
    if not space.n_genes:
        raise OptionError(
            "a search needs at least one group whose channels may be removed, but all are frozen; "
            "`evoprune inspect` says why, fewer `--protect` patterns may help"
        )
    table, budgets = None, {}
    if isinstance(options, SearchOptions):
        file = latency_table or options.latency_table
        if file is not None:
            table = read_table(file)
            with _measuring(options, data, is_object=model is not None):
                space = space.with_cost(LATENCY, table.cost(space))
        budgets = check_budgets(options, space)
        if (check := MODES[options.mode].check) is not None:
            check(space, options)
    source = GIVEN if model is not None else TRAINED if options.weights is None else str(options.weights)
    if source == TRAINED and dense_weights is None:
        network = _train(options, data, device, observer)
    network = network.to(memory_format=torch.contiguous_format)  # figures follow weights and seed, not their strides
    dense = _describe(network, options, data, source, is_object=model is not None)
    hashes = {"weights": dense.record.weights_hash, "data": data.content_hash, "space": space.fingerprint}
    if table is not None:
        hashes["latency_table"] = table.digest
    return Preparation(dense, data, space, space_record, device, budgets, table, hashes)


@contextmanager
def _measuring(options: NetworkOptions, data: ImageData, *, is_object: bool) -> Iterator[None]:
    """Complete an error about a table of another network by the command that measures one of this network."""
    try:
        yield
    except OptionError as error:
        command = measuring_command(options, data.n_classes, data.input_shape, is_object=is_object)
        raise OptionError(f"{error}: `{command}`") from error


def channel_figures(values: Sequence[float]) -> ChannelFigures:
    """Return ``values`` as one figure for each of the three channels that images have.

    Raises:
        OptionError: There are more or fewer.
    """
    if len(values) != 3:
        raise OptionError(f"images have three channels, but got {len(values)} figures for them: {tuple(values)}")
    red, green, blue = values
    return red, green, blue


def trace_network(
    options: NetworkOptions, model: nn.Module | None, n_classes: int
) -> tuple[SearchSpace, tuple[int, int, int]]:
    """Return the space of a network that is looked at without images, and the input shape it was traced with.

    Raises:
        EvoPruneError: As :func:`prepare`.
    """
    _, space, shape = build_and_trace(options, model, n_classes)
    return space, shape


def build_and_trace(
    options: NetworkOptions, model: nn.Module | None, n_classes: int
) -> tuple[nn.Module, SearchSpace, tuple[int, int, int]]:
    """Return a network that is looked at without images, in eval mode on the CPU, its space and its input shape.

    Raises:
        EvoPruneError: As :func:`prepare`.
    """
    shape = options.input_shape or ((3, 32, 32) if model is not None else default_input_shape(options.model))
    for name in _CLASSES_KEYWORDS:
        if options.model_args.get(name, n_classes) != n_classes:
            raise OptionError(
                f"the length of the logits is asked for once, but got {n_classes} for `n_classes` and "
                f"{options.model_args[name]!r} for '{name}' in `model_args`; leave it out there, and give `n_classes`"
            )
    network = _build(options, model, n_classes, shape, None).eval()
    return network, _space_record(options).trace(network, shape), shape


def check_budgets(options: SearchOptions, space: SearchSpace) -> dict[str, float]:
    """Return the budgets as shares of the dense costs, by metric.

    Raises:
        BudgetError: One cannot be reached.
    """
    fractions = {}
    for budget in parse_budgets(options.budget, options.metric):
        cost_range = space.cost_range(budget.metric)
        fraction = budget.as_fraction(cost_range[1])
        check_reachable(fraction, cost_range[1], cost_range, budget.metric)
        fractions[budget.metric] = fraction
    return fractions


def resolve_device(name: str) -> torch.device:
    """Return the device that ``name`` stands for; ``auto`` is an accelerator where there is one.

    Raises:
        OptionError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"a device is auto, cpu, cuda or cuda:N, but got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"a device is auto, cpu, cuda or cuda:N, but got {name!r}")
    n_devices = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_devices:
        raise OptionError(f"device {name!r} must exist, but this machine has {n_devices} CUDA devices; use auto or cpu")
    return device


def _build(
    options: NetworkOptions,
    model: nn.Module | None,
    n_classes: int,
    input_shape: tuple[int, int, int],
    dense_weights: Path | None,
) -> nn.Module:
    if model is not None:
        return _private_copy(model)
    if options.model.startswith(OBJECT):
        raise OptionError(
            f"the network {options.model.removeprefix(OBJECT)} was given as a Python object, which its name alone "
            "cannot rebuild; pass it again as `model=...`"
        )
    keyword = _channels_keyword(options.model)
    if options.model_args.get(keyword, input_shape[0]) != input_shape[0]:
        raise OptionError(
            f"a network takes as many channels as its images have, {input_shape[0]}, but got "
            f"{options.model_args[keyword]!r} for '{keyword}' in `model_args`; leave it out there"
        )
    network = build_model(options.model, n_classes, options.model_args, input_shape)
    weights = options.weights or dense_weights
    if weights is not None:
        load_weights(network, weights)
    return network


def _channels_keyword(model: str) -> str:
    """Return the keyword by which the network's factory takes the channels of images; empty where none is known."""
    if model in MODELS:
        return "in_channels"
    return "in_chans" if model.startswith("timm:") else ""


def _check_logits(network: nn.Module, options: NetworkOptions, data: ImageData) -> None:
    """Check that there is a logit for each class of ``data``, and no more where images judge the candidates.

    Raises:
        OptionError: There are fewer, or more.
    """
    with torch.inference_mode():
        output = private_copy(network)(example_input(network, data.input_shape))
    logits = output if isinstance(output, Tensor) else output[0]
    n_logits, n_classes = logits.shape[-1], data.n_classes
    is_judged = isinstance(options, SearchOptions) and judges_images(options)
    if logits.ndim != 2 or n_logits == n_classes or (n_logits > n_classes and not is_judged):
        return
    given = next(
        (f"leave '{name}' out of `model_args`" for name in _CLASSES_KEYWORDS if name in options.model_args), ""
    )
    raise OptionError(
        f"a network has one logit for each class of the images, but this one has {n_logits} logits and the images have "
        f"{n_classes} classes; {given or 'give a network for these classes, or other images'}"
    )


def _space_record(options: NetworkOptions) -> SpaceRecord:
    return SpaceRecord(
        protect=options.protect,
        only=options.only,
        min_channels=options.min_channels,
        round_to=options.round_to,
        block_genes=options.block_genes,
        fingerprint="",
    )


def _private_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the user's ``model`` on the CPU in eval mode, so that nothing done here reaches the original."""
    try:
        return copy.deepcopy(model).cpu().eval()
    except Exception as error:  # copying runs the user's code
        raise OptionError(
            f"{type(model).__name__} must be copyable, but copy.deepcopy raised {type(error).__name__}: {error}; "
            "remove what cannot be copied (open files, locks, generators) from the network"
        ) from error


def _check_number_types(network: nn.Module) -> None:
    """Check that the weights of ``network`` are float32; integers, and buffers that numpy has a type for, may be there.

    Raises:
        OptionError: A parameter is of another type, or a buffer is bfloat16.
    """
    parameters = [("parameter", name, tensor) for name, tensor in network.named_parameters()]
    buffers = [("buffer", name, tensor) for name, tensor in network.named_buffers() if tensor.dtype == torch.bfloat16]
    for kind, name, tensor in [*parameters, *buffers]:
        if tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.is_complex()):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise OptionError(
                f"a network is searched in float32, but {kind} {name!r} of {type(network).__name__} is {dtype}; "
                "pass `model.float()`, and convert the small network afterwards"
            )


def _train(options: NetworkOptions, data: ImageData, device: torch.device, observer: Observer) -> nn.Module:
    recipe = TrainingRecipe(epochs=options.train_epochs)
    has_begun = False

    def on_progress(epoch: int, n_epochs: int, step: int, n_steps: int, loss: float) -> None:
        nonlocal has_begun
        if not has_begun:
            observer.on_stage(f"training {options.model} on {data.name}, since no weights were given", n_steps)
            has_begun = True
        stop_if_asked(observer, None, f"{epoch} of {n_epochs} epochs of training")
        observer.on_step(step, {"epoch": epoch + 1, "loss": loss})

    trained = train_dense(
        options.model,
        data,
        seed=TRAINING_SEED,
        model_args=options.model_args,
        recipe=recipe,
        device=device,
        on_progress=on_progress,
    )
    what = "trained earlier and read from the cache" if trained.from_cache else f"trained in {trained.seconds:.0f} s"
    place = f" ({trained.cache_path})" if trained.cache_path else ""
    observer.on_note(f"no weights given: the dense network was {what}{place}")
    return trained.model.cpu()


def _describe(
    network: nn.Module, options: NetworkOptions, data: ImageData, source: str, *, is_object: bool
) -> DenseNetwork:
    args: dict[str, Any] = {} if is_object else dict(options.model_args)
    record = ModelRecord(
        name=None if is_object else options.model,
        args=args,
        n_classes=data.n_classes,
        input_shape=data.input_shape,
        weights_hash=hash_weights(network),
    )
    return DenseNetwork(network, type(network).__name__ if is_object else options.model, source, record)
