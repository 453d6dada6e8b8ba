"""What the options of `evoprune search` are called in a shell, and what its help says of them, in panels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from evoprune.budget import METRICS
from evoprune.cli.arguments import INPUT_PANEL, RUN_PANEL
from evoprune.options import SearchOptions

_MODE = partial(typer.Option, rich_help_panel="How the space is searched")
_EVOLUTION = partial(typer.Option, rich_help_panel="Evolution")
_STOP = partial(typer.Option, rich_help_panel="When it ends")
_FITNESS = partial(typer.Option, rich_help_panel="How candidates are judged")
_INPUTS = partial(typer.Option, rich_help_panel=INPUT_PANEL)
_RUN = partial(typer.Option, rich_help_panel=RUN_PANEL)

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
Mode = Annotated[str, _MODE(help="How the space is searched: a name of `evoprune list modes`.")]
Stages = Annotated[
    str | None, _MODE(help="Mode staged: resolution (default), blocks, or PATTERN,PATTERN,... of group names.")
]
CostWeight = Annotated[float | None, _MODE(help="Mode staged without a budget: worth of the dense cost, 1 by default.")]
LayerDistillSteps = Annotated[
    int | None,
    _MODE(
        "--layer-distill-steps", help="Mode layerwise: gradient steps of distillation between layers.", show_default="0"
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/MODEL-DATA-SEED.")]
Population = Annotated[int, _EVOLUTION("--population", help="Individuals per generation.")]
Generations = Annotated[int, _EVOLUTION("--generations", help="Generations after the initial population.")]
WidthPhase = Annotated[
    str, _MODE(help="Generations that evolve widths alone before all bits are free: a number, or a share.")
]
Restart = Annotated[
    bool, _EVOLUTION("--restart", help="Start a fresh population when diversity is gone; else immigrants come.")
]
LocalSearch = Annotated[
    bool, _EVOLUTION("--local-search", help="Let one mutation exchange channels that lower the two-step error.")
]
OtherGenerations = Annotated[
    int | None, typer.Option("--generations", help="Generations after the initial population, where another number.")
]
MaxEvaluations = Annotated[int | None, _STOP(help="End after the generation that reaches so many evaluations.")]
MaxTime = Annotated[float | None, _STOP("--max-time", help="End after so many seconds of search, in all.")]
PatienceOption = Annotated[int | None, _STOP("--patience", help="End after so many generations without a gain.")]
TargetOption = Annotated[float | None, _STOP("--target", help="End when the judged objective is at most this.")]
HypervolumeOption = Annotated[
    float | None,
    _STOP("--min-hypervolume-gain", help="End when a front grew by this share at most in five generations."),
]
Compare = Annotated[
    str | None,
    _STOP(help="random: then also judge as many random networks, and show the best beside the evolved one."),
]
NCalibrationImages = Annotated[int, _FITNESS(help="Training images that a candidate is adapted on.")]
NFitnessImages = Annotated[int, _FITNESS(help="Images that judge a candidate.")]
TrainEpochs = Annotated[
    int | None,
    _INPUTS(
        help="Epochs of training where no weights are given.",
        show_default=str(SearchOptions.model_fields["train_epochs"].default),
    ),
]
SeedWith = Annotated[
    str, _EVOLUTION(help="Criteria that propose first genomes: names of `evoprune list criteria`, mixture or none.")
]
PriorOption = Annotated[str, _EVOLUTION("--prior", help="Criteria that guide mutation: NAMES, mixture or none.")]
SeedShare = Annotated[float, _EVOLUTION(help="Share of the first population that criteria propose.")]
RandomShare = Annotated[float, _EVOLUTION(help="Share of population and offspring that follows no criterion.")]
PriorTemperature = Annotated[float, _EVOLUTION(help="Large values make priors weak, small ones strict.")]
Fitness = Annotated[str, _FITNESS(help="What candidates are judged by: a name of `evoprune list fitness`.")]
ScreenFactor = Annotated[
    int | None, _FITNESS(help="Offspring screened per offspring judged.", show_default="ladder: 2")
]
Halvings = Annotated[
    int | None, _FITNESS("--halvings", help="Further screens, on half as many images each.", show_default="0")
]
Elites = Annotated[
    int | None,
    _FITNESS(
        "--elites",
        help="Individuals per generation that are judged as they would be shipped.",
        show_default="ladder: 2",
    ),
]
NEliteImages = Annotated[int | None, _FITNESS(help="Images that judge elites.", show_default="ladder: 2048")]
DistillSteps = Annotated[
    int | None,
    _FITNESS("--distill-steps", help="Gradient steps before a candidate is judged.", show_default="distill: 200"),
]
Objective = Annotated[str, _FITNESS(help="What is minimised: a name of `evoprune list objectives`.")]
Compensation = Annotated[str, _FITNESS(help="What a sliced network gets: a name of `evoprune list compensations`.")]
KindOfImages = Annotated[str, _FITNESS("--fitness-images", help="auto, mixture or heldout.")]
Workers = Annotated[int, _RUN(help="Ray workers; 0 evaluates inside this process.")]
Log = Annotated[list[str] | None, _RUN(help="Also log there: a name of `evoprune list loggers`; repeatable.")]
Address = Annotated[str | None, _RUN(help="Ray cluster to join.")]
