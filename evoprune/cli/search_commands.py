"""`evoprune search` and `evoprune resume`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from evoprune.cli import arguments as arg
from evoprune.cli import search_arguments as opt
from evoprune.cli.console import print_json, print_whole, stderr_console, stdout_console
from evoprune.cli.errors import reports_errors
from evoprune.cli.progress import rich_observer
from evoprune.cli.tables import latency_lines, result_table
from evoprune.options import SearchOptions
from evoprune.result import RungFigures, SearchResult

DEFAULTS: dict[str, Any] = {name: field.default for name, field in SearchOptions.model_fields.items()}


@reports_errors
def search(
    model: arg.Model = DEFAULTS["model"],
    budget: opt.Budget = None,
    weights: arg.Weights = None,
    data: arg.Data = DEFAULTS["data"],
    out: opt.Out = None,
    seed: arg.Seed = None,
    workers: opt.Workers = DEFAULTS["workers"],
    address: opt.Address = None,
    metric: opt.Metric = DEFAULTS["metric"],
    latency_table: opt.LatencyTable = None,
    mode: opt.Mode = DEFAULTS["mode"],
    stages: opt.Stages = None,
    cost_weight: opt.CostWeight = None,
    layer_distill_steps: opt.LayerDistillSteps = None,
    population: opt.Population = DEFAULTS["population_size"],
    generations: opt.Generations = DEFAULTS["n_generations"],
    width_phase: opt.WidthPhase = str(DEFAULTS["width_phase"]),
    restart: opt.Restart = DEFAULTS["restart"],
    local_search: opt.LocalSearch = DEFAULTS["local_search"],
    max_evaluations: opt.MaxEvaluations = None,
    max_time: opt.MaxTime = None,
    patience: opt.PatienceOption = None,
    target: opt.TargetOption = None,
    min_hypervolume_gain: opt.HypervolumeOption = None,
    compare: opt.Compare = None,
    seed_with: opt.SeedWith = DEFAULTS["seed_with"],
    prior: opt.PriorOption = DEFAULTS["prior"],
    seed_share: opt.SeedShare = DEFAULTS["seed_share"],
    random_share: opt.RandomShare = DEFAULTS["random_share"],
    prior_temperature: opt.PriorTemperature = DEFAULTS["prior_temperature"],
    fitness: opt.Fitness = DEFAULTS["fitness"],
    screen_factor: opt.ScreenFactor = None,
    halvings: opt.Halvings = None,
    elites: opt.Elites = None,
    n_elite_images: opt.NEliteImages = None,
    distill_steps: opt.DistillSteps = None,
    objective: opt.Objective = DEFAULTS["objective"],
    compensation: opt.Compensation = DEFAULTS["compensation"],
    fitness_images: opt.KindOfImages = DEFAULTS["fitness_images"],
    n_calibration_images: opt.NCalibrationImages = DEFAULTS["n_calibration_images"],
    n_fitness_images: opt.NFitnessImages = DEFAULTS["n_fitness_images"],
    protect: arg.Protect = None,
    only: arg.Only = None,
    min_channels: arg.MinChannels = str(DEFAULTS["min_channels"]),
    round_to: arg.RoundTo = DEFAULTS["round_to"],
    block_genes: arg.BlockGenes = DEFAULTS["block_genes"],
    model_args: arg.ModelArgs = None,
    input_shape: arg.InputShape = None,
    data_root: arg.DataRoot = None,
    mean: arg.Mean = None,
    std: arg.Std = None,
    train_epochs: opt.TrainEpochs = None,
    device: arg.Device = DEFAULTS["device"],
    log: opt.Log = None,
    as_json: arg.AsJson = False,
) -> None:
    """Search the smaller network of a budget, and write it with its report to a run directory."""
    from evoprune import api

    training: dict[str, Any] = {} if train_epochs is None else {"train_epochs": train_epochs}
    with rich_observer() as observer:
        result = api.search(
            model,
            data,
            budget=budget,
            out=out,
            observer=observer,
            weights=weights,
            seed=seed,
            workers=workers,
            address=address,
            metric=metric,
            latency_table=latency_table,
            mode=mode,
            stages=stages,
            cost_weight=cost_weight,
            n_layer_distillation_steps=layer_distill_steps,
            population_size=population,
            n_generations=generations,
            width_phase=arg.parse_count_or_share(width_phase, "--width-phase"),
            restart=restart,
            local_search=local_search,
            max_evaluations=max_evaluations,
            max_time_s=max_time,
            patience=patience,
            target=target,
            min_hypervolume_gain=min_hypervolume_gain,
            compare=compare,
            seed_with=seed_with,
            prior=prior,
            seed_share=seed_share,
            random_share=random_share,
            prior_temperature=prior_temperature,
            fitness=fitness,
            screen_factor=screen_factor,
            n_halvings=halvings,
            n_elites=elites,
            n_elite_images=n_elite_images,
            n_distillation_steps=distill_steps,
            objective=objective,
            compensation=compensation,
            fitness_images=fitness_images,
            n_calibration_images=n_calibration_images,
            n_fitness_images=n_fitness_images,
            protect=tuple(protect or ()),
            only=tuple(only or ()),
            min_channels=arg.parse_min_channels(min_channels),
            round_to=round_to,
            block_genes=block_genes,
            model_args=arg.parse_model_args(model_args),
            input_shape=arg.parse_input_shape(input_shape),
            data_root=data_root,
            mean=arg.parse_channel_figures(mean, "--mean"),
            std=arg.parse_channel_figures(std, "--std"),
            **training,
            device=device,
            loggers=tuple(name.strip() for names in log or () for name in names.split(",")),
        )
    show_result(result, as_json=as_json)


@reports_errors
def resume(
    run: arg.Run,
    workers: Annotated[int | None, typer.Option(help="Ray workers, where another number than before.")] = None,
    address: opt.Address = None,
    generations: opt.OtherGenerations = None,
    max_evaluations: opt.MaxEvaluations = None,
    max_time: opt.MaxTime = None,
    patience: opt.PatienceOption = None,
    target: opt.TargetOption = None,
    min_hypervolume_gain: opt.HypervolumeOption = None,
    compare: opt.Compare = None,
    as_json: arg.AsJson = False,
) -> None:
    """Continue a search that was stopped or killed, or with other limits or a comparison one that ended."""
    from evoprune import api

    with rich_observer() as observer:
        result = api.resume(
            run,
            workers=workers,
            address=address,
            observer=observer,
            n_generations=generations,
            max_evaluations=max_evaluations,
            max_time_s=max_time,
            patience=patience,
            target=target,
            min_hypervolume_gain=min_hypervolume_gain,
            compare=compare,
        )
    show_result(result, as_json=as_json)


def show_result(result: SearchResult, *, as_json: bool) -> None:
    """Print ``result``: JSON alone on stdout, or a table with the next steps."""
    if as_json:
        print_json({"run": str(result.run), **result.to_json()})
        return
    console = stdout_console()
    print_whole(result_table(result))
    console.print(
        f"{result.n_evaluations} networks evaluated ({result.n_cached} answered from the cache) "
        f"in {result.wall_s:.0f} s on {result.device} in {result.precision}",
        soft_wrap=True,
    )
    console.print(
        f"chosen by {result.objective.name} {result.objective.value:.4g} at rung {result.objective.rung!r}; "
        + _counts(result.rungs),
        soft_wrap=True,
    )
    if (random := result.random_search) is not None:
        console.print(
            f"random search: {result.objective.name} {random.objective:.4g} at rung {random.rung!r}; "
            + _counts(random.rungs),
            soft_wrap=True,
        )
    for line in latency_lines(result.latency) if result.latency is not None else ():
        console.print(line, soft_wrap=True, markup=False)
    for reason, n in result.failures.items():
        console.print(f"{n} evaluations failed: {reason}", soft_wrap=True, markup=False)
    run = shlex.quote(str(result.run))
    stderr_console().print(
        f"run: {result.run}\nnext: evoprune finetune {run}    or: evoprune export {run}",
        soft_wrap=True,
        markup=False,
    )


def _counts(rungs: Mapping[str, RungFigures]) -> str:
    """Return how many networks each rung judged, and how many of them it gave up early."""
    return ", ".join(
        f"{rung}: {figures.n_evaluations}" + (f" ({figures.n_stopped} stopped early)" if figures.n_stopped else "")
        for rung, figures in rungs.items()
    )
