"""`evoprune search` and `evoprune resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evoprune.budget import METRICS
from evoprune.cli import arguments as arg
from evoprune.cli.console import print_json, stderr_console, stdout_console
from evoprune.cli.errors import reports_errors
from evoprune.cli.progress import rich_observer
from evoprune.cli.tables import result_table
from evoprune.options import SearchOptions
from evoprune.result import SearchResult

Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        "-b",
        help='Limit on the cost: "0.3", "30%", "62M" or "params=0.4"; repeatable.',
        show_default="0.3, none in modes pareto and staged",
    ),
]
Metric = Annotated[str | None, typer.Option(help=f"What a bare budget counts: {', '.join(METRICS)}.")]
LatencyTable = Annotated[
    Path | None, typer.Option("--latency-table", help="A file of `evoprune latency`, for a budget of latency.")
]
Mode = Annotated[str, typer.Option(help="How the space is searched: a name of `evoprune list modes`.")]
Stages = Annotated[
    str | None, typer.Option(help="Mode staged: resolution (default), blocks, or PATTERN,PATTERN,... of group names.")
]
CostWeight = Annotated[
    float | None, typer.Option(help="Mode staged without a budget: worth of the dense cost, 1 by default.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/MODEL-DATA-SEED.")]
Population = Annotated[int, typer.Option("--population", help="Individuals per generation.")]
Generations = Annotated[int, typer.Option("--generations", help="Generations after the initial population.")]
WidthPhase = Annotated[
    str, typer.Option(help="Generations that evolve widths alone before all bits are free: a number, or a share.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Start a fresh population when diversity is gone; else immigrants come.")
]
LocalSearch = Annotated[
    bool, typer.Option("--local-search", help="Let one mutation exchange channels that lower the two-step error.")
]
OtherGenerations = Annotated[
    int | None, typer.Option("--generations", help="Generations after the initial population, where another number.")
]
MaxEvaluations = Annotated[int | None, typer.Option(help="End after the generation that reaches so many evaluations.")]
MaxTime = Annotated[float | None, typer.Option("--max-time", help="End after so many seconds of search, in all.")]
PatienceOption = Annotated[int | None, typer.Option("--patience", help="End after so many generations without a gain.")]
TargetOption = Annotated[float | None, typer.Option("--target", help="End when the judged objective is at most this.")]
HypervolumeOption = Annotated[
    float | None,
    typer.Option("--min-hypervolume-gain", help="End when a front grew by this share at most in five generations."),
]
NCalibrationImages = Annotated[int, typer.Option(help="Training images that a candidate is adapted on.")]
NFitnessImages = Annotated[int, typer.Option(help="Images that judge a candidate.")]
TrainEpochs = Annotated[int, typer.Option(help="Epochs of training where no weights are given.")]
SeedWith = Annotated[
    str, typer.Option(help="Criteria that propose first genomes: names of `evoprune list criteria`, mixture or none.")
]
PriorOption = Annotated[str, typer.Option("--prior", help="Criteria that guide mutation: NAMES, mixture or none.")]
SeedShare = Annotated[float, typer.Option(help="Share of the first population that criteria propose.")]
RandomShare = Annotated[float, typer.Option(help="Share of population and offspring that follows no criterion.")]
PriorTemperature = Annotated[float, typer.Option(help="Large values make priors weak, small ones strict.")]
Fitness = Annotated[str, typer.Option(help="What candidates are judged by: a name of `evoprune list fitness`.")]
ScreenFactor = Annotated[int | None, typer.Option(help="Offspring screened per offspring judged [ladder: 2].")]
Halvings = Annotated[int | None, typer.Option("--halvings", help="Further screens, on half as many images each [0].")]
Elites = Annotated[
    int | None,
    typer.Option("--elites", help="Individuals per generation that are judged as they would be shipped [ladder: 2]."),
]
NEliteImages = Annotated[int | None, typer.Option(help="Images that judge elites [ladder: 2048].")]
DistillSteps = Annotated[
    int | None, typer.Option("--distill-steps", help="Gradient steps before a candidate is judged [distill: 200].")
]
Objective = Annotated[str, typer.Option(help="What is minimised: a name of `evoprune list objectives`.")]
Compensation = Annotated[str, typer.Option(help="What a sliced network gets: sequential, merge, recalibrate or none.")]
KindOfImages = Annotated[str, typer.Option("--fitness-images", help="auto, mixture or heldout.")]
Workers = Annotated[int, typer.Option(help="Ray workers; 0 evaluates inside this process.")]
Log = Annotated[list[str] | None, typer.Option(help="Also log there: a name of `evoprune list loggers`; repeatable.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join.")]


DEFAULTS: dict[str, Any] = {name: field.default for name, field in SearchOptions.model_fields.items()}


@reports_errors
def search(
    model: arg.Model = DEFAULTS["model"],
    budget: Budget = None,
    weights: arg.Weights = None,
    data: arg.Data = DEFAULTS["data"],
    out: Out = None,
    seed: arg.Seed = None,
    workers: Workers = DEFAULTS["workers"],
    address: Address = None,
    metric: Metric = DEFAULTS["metric"],
    latency_table: LatencyTable = None,
    mode: Mode = DEFAULTS["mode"],
    stages: Stages = None,
    cost_weight: CostWeight = None,
    population: Population = DEFAULTS["population_size"],
    generations: Generations = DEFAULTS["n_generations"],
    width_phase: WidthPhase = str(DEFAULTS["width_phase"]),
    restart: Restart = DEFAULTS["restart"],
    local_search: LocalSearch = DEFAULTS["local_search"],
    max_evaluations: MaxEvaluations = None,
    max_time: MaxTime = None,
    patience: PatienceOption = None,
    target: TargetOption = None,
    min_hypervolume_gain: HypervolumeOption = None,
    seed_with: SeedWith = DEFAULTS["seed_with"],
    prior: PriorOption = DEFAULTS["prior"],
    seed_share: SeedShare = DEFAULTS["seed_share"],
    random_share: RandomShare = DEFAULTS["random_share"],
    prior_temperature: PriorTemperature = DEFAULTS["prior_temperature"],
    fitness: Fitness = DEFAULTS["fitness"],
    screen_factor: ScreenFactor = None,
    halvings: Halvings = None,
    elites: Elites = None,
    n_elite_images: NEliteImages = None,
    distill_steps: DistillSteps = None,
    objective: Objective = DEFAULTS["objective"],
    compensation: Compensation = DEFAULTS["compensation"],
    fitness_images: KindOfImages = DEFAULTS["fitness_images"],
    n_calibration_images: NCalibrationImages = DEFAULTS["n_calibration_images"],
    n_fitness_images: NFitnessImages = DEFAULTS["n_fitness_images"],
    protect: arg.Protect = None,
    only: arg.Only = None,
    min_channels: arg.MinChannels = str(DEFAULTS["min_channels"]),
    round_to: arg.RoundTo = DEFAULTS["round_to"],
    block_genes: arg.BlockGenes = DEFAULTS["block_genes"],
    model_args: arg.ModelArgs = None,
    input_shape: arg.InputShape = None,
    data_root: arg.DataRoot = None,
    train_epochs: TrainEpochs = DEFAULTS["train_epochs"],
    device: arg.Device = DEFAULTS["device"],
    log: Log = None,
    as_json: arg.AsJson = False,
) -> None:
    """Search the smaller network of a budget, and write it with its report to a run directory."""
    from evoprune import api

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
            train_epochs=train_epochs,
            device=device,
            loggers=tuple(name.strip() for names in log or () for name in names.split(",")),
        )
    show_result(result, as_json=as_json)


@reports_errors
def resume(
    run: arg.Run,
    workers: Annotated[int | None, typer.Option(help="Ray workers, where another number than before.")] = None,
    address: Address = None,
    generations: OtherGenerations = None,
    max_evaluations: MaxEvaluations = None,
    max_time: MaxTime = None,
    patience: PatienceOption = None,
    target: TargetOption = None,
    min_hypervolume_gain: HypervolumeOption = None,
    as_json: arg.AsJson = False,
) -> None:
    """Continue a search that was stopped or killed, or with other limits one that ended."""
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
        )
    show_result(result, as_json=as_json)


def show_result(result: SearchResult, *, as_json: bool) -> None:
    """Print ``result``: JSON alone on stdout, or a table with the next steps."""
    if as_json:
        print_json({"run": str(result.run), **result.to_json()})
        return
    console = stdout_console()
    console.print(result_table(result))
    console.print(
        f"{result.n_evaluations} networks evaluated ({result.n_cached} answered from the cache) "
        f"in {result.wall_s:.0f} s on {result.device} in {result.precision}",
        soft_wrap=True,
    )
    console.print(
        f"chosen by {result.objective.name} {result.objective.value:.4g} at rung {result.objective.rung!r}; "
        + ", ".join(f"{rung}: {figures.n_evaluations}" for rung, figures in result.rungs.items()),
        soft_wrap=True,
    )
    for reason, n in result.failures.items():
        console.print(f"{n} evaluations failed: {reason}", soft_wrap=True, markup=False)
    stderr_console().print(
        f"run: {result.run}\nnext: evoprune finetune {result.run}    or: evoprune export {result.run}",
        soft_wrap=True,
        markup=False,
    )
