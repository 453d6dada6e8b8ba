"""evoprune from Python: the functions behind the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evoprune.artefact import ArtefactError, load, read_description
from evoprune.budget import parse_budgets
from evoprune.callbacks import Callback
from evoprune.exporting import resolve_artefact
from evoprune.finetuned_run import default_finetuned_path, finetune_run, network_to_finetune
from evoprune.fitness_plan import check_fitness
from evoprune.inspection import SpaceSummary, draw_space, summarise_space
from evoprune.latency_tables import LatencyReport, measure_and_check
from evoprune.limits import LIMITS, check_course, record_limits, with_limits
from evoprune.loggers import make_loggers
from evoprune.observer import Observer, SilentObserver
from evoprune.optimisation import accuracy
from evoprune.options import FinetuneOptions, LatencyOptions, NetworkOptions, SearchOptions
from evoprune.picking import check_target, pick_network
from evoprune.preparation import OBJECT, build_and_trace, channel_figures, prepare, resolve_device, trace_network
from evoprune.resolving import resolve_options, with_absolute_paths
from evoprune.result import EvaluationReport, FinetuneResult, PickResult, SearchResult
from evoprune.run_directory import (
    RunDirectory,
    as_path,
    bears_mark,
    check_writable,
    read_json,
    resume_command,
    write_atomically,
)
from evoprune.run_paths import default_run_path
from evoprune.session import plan_of, prepare_again, read_options, run_session, save_inputs
from fitness.data import ImageData, load_data
from search_spaces.errors import OptionError, RunDirectoryError
from search_spaces.latency_measurement import MeasurementOptions

_OBSERVING = ("on_note", "on_stage", "on_step", "should_stop")
_LONGEST_SHOWN = 60
_DRAWING_MARK = "<!-- drawn by evoprune inspect -->"
"""Tells a drawing of a search space from other SVG files, which are not replaced."""
_LATENCY_SEED = 0
"""Of the random networks that a latency table is fitted to and checked on: every table sees the same ones."""


def search(
    model: str | nn.Module = "vgg16",
    data: str | ImageData = "digits",
    *,
    budget: str | float | Sequence[str] | Mapping[str, str | float] | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
    callbacks: Sequence[Callback] | None = None,
    **options: Any,
) -> SearchResult:
    """Search the network that keeps the best channels of ``model`` within ``budget``, and write it to a run directory.

    Args:
        model: A name that ``evoprune list models`` shows, or a trained network, which is not changed.
        data: A name that ``evoprune list data`` shows, or images.
        budget: A share of the dense cost (``0.3``, ``"30%"``) or a cost (``"62M"``), of MACs or of the ``metric`` given
            with the options; or several by metric (``{"macs": 0.5, "params": "1M"}``). None is exceeded. By default
            0.3 of the MACs, and no limit in the modes ``pareto`` and ``staged``.
        out: The run directory; by default ``runs/<model>-<data>-<seed>``, with a number where that exists.
        observer: Hears of progress, and may stop the run.
        callbacks: Hear of every chunk of evaluations and every generation.
        **options: Further fields of :class:`evoprune.options.SearchOptions`.

    Raises:
        OptionError: An option breaks its rule, an argument is of another kind; a name is unknown
            (:class:`UnknownNameError`).
        BudgetError: The budget is malformed or cannot be reached.
        DataError: The images cannot be read.
        WeightsError: The weights cannot be read, or do not fit the network.
        TraceError: The network cannot be traced.
        RunDirectoryError: ``out`` exists or cannot be written.
        ExecutionError: Workers cannot be had, or every candidate failed.
        InterruptedRunError: The run was stopped; it says how to go on.
    """
    _check_arguments(model=model, data=data, observer=observer, callbacks=callbacks)
    observer = observer or SilentObserver()
    named = {"model": _name_of(model), "data": _name_of(data)}
    resolved = with_absolute_paths(resolve_options(SearchOptions, {**options, **named, "budget": budget}))
    _check_object(model, {**options, "weights": resolved.weights})
    if resolved.weights is not None and options.get("train_epochs") is not None:
        raise OptionError(
            f"a network whose weights are given is not trained, but got train_epochs={resolved.train_epochs} beside "
            f"weights={str(resolved.weights)!r}; leave one of them out"
        )
    given = [name for name in ("mean", "std") if getattr(resolved, name) is not None]
    if not isinstance(data, str) and given:
        raise OptionError(
            f"images that are given as an object bring their mean and std, {data.mean} and {data.std}, but got "
            f"`{given[0]}` too; leave it out"
        )
    check_fitness(resolved, is_object=not isinstance(model, str))
    check_course(resolved)
    loggers = make_loggers(resolved.loggers, resolved.model_dump(mode="json"))
    device = resolve_device(resolved.device)
    path = default_run_path(resolved) if out is None else as_path(out, "out")
    RunDirectory.check_available(path)
    preparation = prepare(
        resolved,
        observer,
        model=None if isinstance(model, str) else model,
        data=None if isinstance(data, str) else data,
        device=device,
    )
    is_users_folder = path.is_dir()
    run = RunDirectory.create(path, options=resolved.model_dump(mode="json"), hashes=preparation.hashes)
    try:
        save_inputs(run, preparation)
        return run_session(run, resolved, preparation, observer, [*loggers, *(callbacks or ())])
    except OptionError:
        if not run.evaluations_path.exists():  # wrong use that showed late leaves nothing behind either
            _remove(run.path, keep_folder=is_users_folder)
        raise


def resume(
    run: str | Path,
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    workers: int | None = None,
    address: str | None = None,
    observer: Observer | None = None,
    callbacks: Sequence[Callback] | None = None,
    **limits: Any,
) -> SearchResult:
    """Continue the search in the run directory ``run``; the outcome is that of one that was never interrupted.

    Args:
        run: A run directory; one that is finished is answered from its ``result.json``, unless there are other
            ``limits`` than it had.
        model: The dense network, where the run was started with an object.
        data: The images, where the run was started with an object.
        workers: Number of Ray workers, where it is to be another than before; it does not change the outcome.
        address: Likewise.
        observer: Hears of progress, and may stop the run.
        callbacks: As for :func:`search`; the run's own loggers go on by themselves.
        **limits: When the run ends instead, by the names of :data:`evoprune.limits.LIMITS`, such as ``n_generations``;
            counted from the beginning of the run, and recorded in it. A run that is finished is continued. Among them
            is ``compare``, by which a finished run gets its comparison afterwards.

    Raises:
        RunDirectoryError: ``run`` is no run directory, or network, images or space are not those it was started with.
        EvoPruneError: As :func:`search`.
    """
    _check_arguments(own_model=model, own_data=data, observer=observer, callbacks=callbacks)
    observer = observer or SilentObserver()
    directory = RunDirectory.open_existing(as_path(run, "run"))
    if workers is not None or address is not None or limits.keys() - set(LIMITS):
        _placed(with_limits(directory, read_options(directory), limits), workers, address)  # before all else
    has_limits = any(value is not None for value in limits.values())
    if directory.result_path.is_file() and (not has_limits or _has_these(directory, limits)):
        remedy = f"delete it and continue the run with `{resume_command(directory.path)}`"
        result = SearchResult.from_json(directory.path, read_json(directory.result_path, remedy))
        observer.on_note(f"{run} is finished")
        return result
    options, preparation = prepare_again(directory, observer, model=model, data=data)
    with directory.locked():
        options = with_limits(directory, options, limits)
        resolved = _placed(options, workers, address)
        loggers = make_loggers(options.loggers, options.model_dump(mode="json"))
        if has_limits:
            record_limits(directory, options)
        directory.result_path.unlink(missing_ok=True)  # or a run that is stopped again would pass for finished
    return run_session(directory, resolved, preparation, observer, [*loggers, *(callbacks or ())])


def _has_these(run: RunDirectory, limits: Mapping[str, Any]) -> bool:
    """Whether the run was started, or last resumed, with ``limits``, or such as are None."""
    options = read_options(run)
    return with_limits(run, options, limits) == with_limits(run, options, {})


def evaluate(
    run: str | Path,
    *,
    model: nn.Module | None = None,
    data: str | ImageData | None = None,
    device: str = "auto",
    observer: Observer | None = None,
    trust_factory: bool = False,
) -> EvaluationReport:
    """Measure the small network of a run, or of an artefact, on test images.

    Args:
        run: A run directory, whose ``best`` is taken, or the folder of an artefact.
        model: The dense network, where the artefact was made from an object.
        data: Images; by default those of the run that the artefact lies in. Those that are named are normalised as the
            artefact records; an object brings its own mean and std.
        device: Where to evaluate.
        observer: Hears of progress.
        trust_factory: As for :func:`evoprune.load`.

    Raises:
        ArtefactError: There is no artefact, or it names a factory that is not trusted.
        RunDirectoryError: ``data`` is needed, since the artefact lies in no run directory.
        DataError: The images cannot be read.
        OptionError: The network does not fit the images, or an argument is of another kind.
    """
    _check_arguments(own_model=model, data="" if data is None else data, observer=observer)
    observer = observer or SilentObserver()
    artefact = resolve_artefact(as_path(run, "run"))
    place = resolve_device(device)
    description = read_description(artefact)
    network = load(artefact, model, trust_factory=trust_factory)
    observer.on_stage("reading the images", None)
    images = _images_of(artefact, data)
    if images.input_shape != description.model.input_shape or images.n_classes != description.model.n_classes:
        raise OptionError(
            f"images must have the shape and classes that the network was made for, {description.model.input_shape} "
            f"and {description.model.n_classes}, but {images.name} has {images.input_shape} and {images.n_classes}"
        )
    observer.on_stage("testing the network", None)
    return EvaluationReport(
        artefact=artefact,
        data=images.name,
        n_test_images=len(images.test),
        test_accuracy=accuracy(network.to(place), images.test, images, device=place),
        macs=description.cost.macs,
        n_params=description.cost.n_params,
        genome_digest=description.genome.digest,
        finetuned_epochs=description.finetuned_epochs,
    )


def finetune(
    run: str | Path,
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> FinetuneResult:
    """Train the small network of ``run`` on, taught by the dense one, and write it to an artefact of its own.

    Args:
        run: The directory of a finished run, whose ``best`` is taken, or the folder of another artefact in a run, as
            :func:`pick` and this function write them.
        model: The dense network, where the run was started with an object.
        data: The images, where the run was started with an object.
        out: Folder of the artefact; by default ``finetuned`` in the run directory, ``finetuned-NAME`` for a picked
            network of that name, with a number where that exists. One that is made while the training lasts is not
            replaced: a number is added then, too.
        observer: Hears of progress, and may stop the training; nothing is written then.
        **options: Fields of :class:`evoprune.options.FinetuneOptions`; the seed is that of the run by default.

    Raises:
        RunDirectoryError: ``run`` is no run directory nor in one, network or images are not those it was started with,
            or ``out`` cannot be written.
        ArtefactError: The run has no network yet, the artefact is damaged or of another network, or ``out`` exists.
        OptionError: An option breaks its rule.
        TrainingError: The loss became NaN or infinite.
        InterruptedRunError: The observer asked to stop.
    """
    _check_arguments(own_model=model, own_data=data, observer=observer)
    observer = observer or SilentObserver()
    directory, source = network_to_finetune(as_path(run, "run"))
    started_with = directory.read_config()["options"]
    if options.get("seed") is None:
        options["seed"] = started_with.get("seed")
    resolved = resolve_options(FinetuneOptions, options)
    device = resolve_device(resolved.device)
    description = read_description(source)
    target = default_finetuned_path(directory, source) if out is None else as_path(out, "out")
    if target.exists():
        raise ArtefactError(f"a finetuned network needs a folder of its own, but {target} exists; choose another --out")
    RunDirectory.check_available(target)  # before hours of training
    _, preparation = prepare_again(directory, observer, model=model, data=data)
    return finetune_run(directory, source, resolved, preparation, description, target, observer, device=device)


def pick(
    run: str | Path,
    budget: str | float,
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> PickResult:
    """Write the best network that a run has judged within another ``budget`` to an artefact; nothing is searched again.

    Args:
        run: A run directory, finished or not; one of mode ``pareto`` offers a whole front.
        budget: A share or a cost, of what the run's first budget counts, or of the metric that it names
            (``"params=0.4"``).
        model: The dense network, where the run was started with an object.
        data: The images, where the run was started with an object.
        out: Folder of the artefact; by default ``pick-<budget>`` in the run directory. An artefact there is replaced,
            unless other files lie beside it.
        observer: Hears of progress.

    Raises:
        RunDirectoryError: ``run`` is no run directory, or network or images are not those it was started with.
        BudgetError: The budget is malformed, or nothing that was judged is within it.
        ArtefactError: ``out`` is something else than an artefact, or cannot be written.
        OptionError: ``out`` is the run's own network.
    """
    _check_arguments(own_model=model, own_data=data, observer=observer)
    directory = RunDirectory.open_existing(as_path(run, "run"))
    started_with = read_options(directory)
    metric = parse_budgets(started_with.budget, started_with.metric)[0].metric
    (parsed,) = parse_budgets([str(budget)], None if "=" in str(budget) else metric)
    name = f"pick-{str(budget).replace(' ', '')}"
    target = directory.path / name if out is None else as_path(out, "out")
    check_target(directory, target)
    options, preparation = prepare_again(directory, observer or SilentObserver(), model=model, data=data)
    return pick_network(directory, options, preparation, parsed, plan_of(options, preparation).judge, target)


def inspect(
    model: str | nn.Module = "vgg16", *, n_classes: int = 10, drawing: str | Path | None = None, **options: Any
) -> SpaceSummary:
    """Return what of ``model`` can be removed, what is frozen and why, and which budgets can be reached.

    Args:
        model: A name that ``evoprune list models`` shows, or a network.
        n_classes: Length of the logits of a network that is built by name.
        drawing: SVG file to write, which shows the layers and how their channels are coupled; an earlier drawing is
            replaced.
        **options: Further fields of :class:`evoprune.options.NetworkOptions`.

    Raises:
        OptionError: An option breaks its rule; a name is unknown (:class:`UnknownNameError`).
        WeightsError: The weights cannot be read, or do not fit the network.
        TraceError: The network cannot be traced.
        RunDirectoryError: ``drawing`` cannot be written, or is another kind of file.
    """
    _check_arguments(model=model)
    name = _name_of(model)
    _check_unread(options, "inspecting a network")
    resolved = resolve_options(NetworkOptions, {**options, "model": name})
    _check_object(model, options)
    if drawing is not None:
        check_writable(
            as_path(drawing, "drawing"), "a drawing", lambda file: bears_mark(file, _DRAWING_MARK), suffixes=(".svg",)
        )
    space, shape = trace_network(resolved, None if isinstance(model, str) else model, n_classes)
    title = name.removeprefix(OBJECT)
    if drawing is not None:
        write_atomically(Path(drawing), f"{draw_space(space, title)}{_DRAWING_MARK}\n".encode())
    return summarise_space(space, title, shape)


def latency(
    model: str | nn.Module = "vgg16",
    *,
    out: str | Path = "latency.json",
    n_classes: int = 10,
    observer: Observer | None = None,
    **options: Any,
) -> LatencyReport:
    """Measure how long the layers of ``model`` take at every width on this device, for budgets of latency.

    Args:
        model: A name that ``evoprune list models`` shows, or a network; its weights do not matter.
        out: File of the table, for the option ``latency_table`` of :func:`search`.
        n_classes: Length of the logits of a network that is built by name.
        observer: Hears of progress, and may stop the measurement.
        **options: Further fields of :class:`evoprune.options.LatencyOptions`.

    Raises:
        OptionError: An option breaks its rule; a name is unknown (:class:`UnknownNameError`).
        TraceError: The network cannot be traced.
        RunDirectoryError: ``out`` cannot be written, or is another kind of file.
        InterruptedRunError: The measurement was stopped.
    """
    _check_arguments(model=model, observer=observer)
    observer = observer or SilentObserver()
    name = _name_of(model)
    _check_unread(options, "measuring a network")
    resolved = resolve_options(LatencyOptions, {**options, "model": name})
    _check_object(model, options)
    device = resolve_device(resolved.device)
    check_writable(as_path(out, "out"), "a latency table", _is_latency_table)
    observer.on_stage("tracing the network", None)
    network, space, _ = build_and_trace(resolved, None if isinstance(model, str) else model, n_classes)
    measured = MeasurementOptions(
        batch_size=resolved.batch_size,
        n_threads=resolved.threads or torch.get_num_threads(),
        dtype=resolved.dtype,
    )
    return measure_and_check(
        network.to(device),
        space,
        measured,
        name=name.removeprefix(OBJECT),
        out=Path(out),
        n_checks=resolved.n_checks,
        seed=_LATENCY_SEED,
        observer=observer,
    )


def _placed(options: SearchOptions, workers: int | None, address: str | None) -> SearchOptions:
    """Return ``options`` with another place of evaluation, where one is given.

    Raises:
        OptionError: The place breaks a rule.
    """
    place: dict[str, Any] = {}
    if workers is not None:
        place["workers"] = workers
    if address is not None or workers == 0:
        place["address"] = address  # without workers the recorded cluster is left too
    return resolve_options(SearchOptions, options.model_dump() | place)


def _check_arguments(
    *,
    model: object = "",
    own_model: object = None,
    data: object = "",
    own_data: object = None,
    observer: object = None,
    callbacks: object = None,
) -> None:
    """Check arguments that Python users may get wrong and that options do not hold.

    Args:
        model: A name or a network.
        own_model: A network or None.
        data: A name or images.
        own_data: Images or None.
        observer: An :class:`Observer` or None.
        callbacks: Callbacks or None.

    Raises:
        OptionError: One is of another kind.
    """
    rules = [
        ("model", model, isinstance(model, str | nn.Module), "a name of `evoprune list models` or a torch.nn.Module"),
        ("model", own_model, own_model is None or isinstance(own_model, nn.Module), "the dense torch.nn.Module"),
        ("data", data, isinstance(data, str | ImageData), "a name of `evoprune list data` or a fitness.data.ImageData"),
        ("data", own_data, own_data is None or isinstance(own_data, ImageData), "the fitness.data.ImageData"),
        (
            "observer",
            observer,
            observer is None or all(callable(getattr(observer, name, None)) for name in _OBSERVING),
            f"an object with the methods {', '.join(_OBSERVING)}, or None",
        ),
        (
            "callbacks",
            callbacks,
            callbacks is None
            or (isinstance(callbacks, Sequence) and all(isinstance(each, Callback) for each in callbacks)),
            "a sequence of evoprune.Callback objects, or None",
        ),
    ]
    for name, given, holds, expected in rules:
        if not holds:
            text = repr(given)
            shown = text if len(text) <= _LONGEST_SHOWN else f"an object of type {type(given).__name__}"
            raise OptionError(f"`{name}` must be {expected}, but got {shown}; pass such a one")


def _check_object(model: str | nn.Module, options: Mapping[str, Any]) -> None:
    """Check that nothing is given which would build or train the network, where ``model`` is one.

    Raises:
        OptionError: There is such an option.
    """
    if isinstance(model, str):
        return
    for name, what in (("weights", "weights"), ("model_args", "arguments"), ("train_epochs", "training")):
        if options.get(name):
            raise OptionError(
                f"a network that is given as an object brings its {what}, but got `{name}` too; leave it out"
            )


def _check_unread(options: Mapping[str, Any], what: str) -> None:
    """Check that no option is given that speaks of images or of training, where ``what`` needs neither.

    Raises:
        OptionError: There is one.
    """
    given = [name for name in ("data", "data_root", "mean", "std", "train_epochs") if options.get(name) is not None]
    if given:
        raise OptionError(
            f"{what} reads no images and trains nothing, but got {given[0]}={options[given[0]]!r}; leave it out, and "
            "give `n_classes` and `input_shape` instead"
        )


def _remove(folder: Path, *, keep_folder: bool) -> None:
    """Remove what is in ``folder``, and ``folder`` itself unless it was there before."""
    if not keep_folder:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _is_latency_table(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "conditions", "tables"} <= content.keys()


def _name_of(given: str | nn.Module | ImageData) -> str:
    if isinstance(given, str):
        return given
    return OBJECT + (given.name if isinstance(given, ImageData) else type(given).__name__)


def _images_of(artefact: Path, data: str | ImageData | None) -> ImageData:
    """Return the images that were asked for, else those of the run around ``artefact``, normalised as it records."""
    if isinstance(data, ImageData):
        return data
    folder = artefact.resolve().parent
    is_in_run = (folder / "config.json").is_file()
    if data is None and not is_in_run:
        raise RunDirectoryError(
            f"{artefact} lies in no run directory that would name its images; name them with --data"
        )
    options = read_options(RunDirectory.open_existing(folder)) if is_in_run else None
    if data is None and options is not None:
        data = options.data
        if data.startswith(OBJECT):
            raise OptionError(f"the run was started with images given as a Python object ({data}); pass `data`")
    description = read_description(artefact)
    return load_data(
        str(data),
        None if options is None else options.data_root,
        input_shape=description.model.input_shape,
        mean=channel_figures(description.mean),
        std=channel_figures(description.std),
    )
