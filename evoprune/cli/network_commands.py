"""`evoprune inspect`, `evaluate`, `finetune`, `pick` and `export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from evoprune.budget import format_count
from evoprune.cli import arguments as arg
from evoprune.cli.console import print_json, print_whole, stderr_console, stdout_console
from evoprune.cli.errors import reports_errors
from evoprune.cli.progress import rich_observer
from evoprune.cli.tables import space_tables
from evoprune.options import FINETUNING

Classes = Annotated[int, typer.Option("--classes", help="Length of the logits.")]
Drawing = Annotated[Path | None, typer.Option("--drawing", help="Draw layers and coupling into this SVG file.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training images.")]
MaxTime = Annotated[float | None, typer.Option("--max-time", help="Seconds after which training ends.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak of the cosine schedule.", show_default="0.005 per epoch, at most 0.02")
]
BatchSize = Annotated[int, typer.Option(help="Images per step.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; default inside the run.")]
ExportOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder to write; default RUN/export, of an artefact export-NAME beside it."),
]
TrustFactory = Annotated[
    bool,
    typer.Option("--trust-factory", help="Import and call the package.module:factory that an artefact names."),
]
RunOrArtefact = Annotated[Path, typer.Argument(help="Run directory, or folder of an artefact.", show_default=False)]
RunOrItsArtefact = Annotated[
    Path,
    typer.Argument(help="Run directory, or folder of an artefact in one, such as RUN/pick-0.4.", show_default=False),
]
Formats = Annotated[list[str] | None, typer.Option("--format", "-f", help="safetensors, onnx or pt2; repeatable.")]
OtherBudget = Annotated[
    str | None, typer.Option("--budget", "-b", help="Take the run's best network within this budget instead.")
]
Data = Annotated[str | None, typer.Option("--data", "-d", help="Other images than those of the run.")]


@reports_errors
def inspect(
    model: arg.Model = "vgg16",
    weights: arg.Weights = None,
    n_classes: Classes = 10,
    input_shape: arg.InputShape = None,
    model_args: arg.ModelArgs = None,
    protect: arg.Protect = None,
    only: arg.Only = None,
    min_channels: arg.MinChannels = "1",
    round_to: arg.RoundTo = 1,
    block_genes: arg.BlockGenes = False,
    drawing: Drawing = None,
    as_json: arg.AsJson = False,
) -> None:
    """Show what of a network can be removed, what is frozen and why, and which budgets can be reached."""
    from evoprune import api

    summary = api.inspect(
        model,
        n_classes=n_classes,
        weights=weights,
        input_shape=arg.parse_input_shape(input_shape),
        model_args=arg.parse_model_args(model_args),
        protect=tuple(protect or ()),
        only=tuple(only or ()),
        min_channels=arg.parse_min_channels(min_channels),
        round_to=round_to,
        block_genes=block_genes,
        drawing=drawing,
    )
    if as_json:
        print_json(summary.to_json())
        return
    for part in space_tables(summary):
        if isinstance(part, str):
            stdout_console().print(part, soft_wrap=True, markup=False)
        else:
            print_whole(part)


@reports_errors
def evaluate(
    run: RunOrArtefact,
    data: Data = None,
    device: arg.Device = "auto",
    trust_factory: TrustFactory = False,
    as_json: arg.AsJson = False,
) -> None:
    """Measure the small network of a run, or an artefact, on the test images."""
    from evoprune import api

    with rich_observer() as observer:
        report = api.evaluate(run, data=data, device=device, observer=observer, trust_factory=trust_factory)
    if as_json:
        print_json(report.to_json())
        return
    console = stdout_console()
    console.print(
        f"test accuracy {report.test_accuracy:.2%} on {report.n_test_images} images of {report.data}, "
        f"{format_count(report.macs)} MACs, {format_count(report.n_params)} params",
        soft_wrap=True,
        markup=False,
    )


@reports_errors
def finetune(
    run: RunOrItsArtefact,
    out: Out = None,
    epochs: Epochs = FINETUNING.epochs,
    max_time: MaxTime = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = FINETUNING.batch_size,
    seed: arg.Seed = None,
    device: arg.Device = "auto",
    as_json: arg.AsJson = False,
) -> None:
    """Train the small network of a run on, or one picked from it, taught by the dense one; write another artefact."""
    from evoprune import api

    with rich_observer() as observer:
        result = api.finetune(
            run,
            out=out,
            epochs=epochs,
            max_time_s=max_time,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            device=device,
            observer=observer,
        )
    if as_json:
        print_json(result.to_json())
        return
    stdout_console().print(
        f"test accuracy {result.test_accuracy_before:.2%} -> {result.test_accuracy:.2%} after {result.epochs_done:g} "
        f"epochs in {result.wall_s:.0f} s; artefact: {result.artefact}",
        soft_wrap=True,
        markup=False,
    )
    artefact = shlex.quote(str(result.artefact))
    stderr_console().print(f"next: evoprune export {artefact}", soft_wrap=True, markup=False)


@reports_errors
def pick(
    run: arg.Run,
    budget: Annotated[str, typer.Option("--budget", "-b", help='Limit on the cost: "0.4", "40%" or "62M".')],
    out: Out = None,
    as_json: arg.AsJson = False,
) -> None:
    """Write the best network that a run has judged within another budget; nothing is searched again."""
    from evoprune import api
    from evoprune.run_directory import run_around

    with rich_observer() as observer:
        result = api.pick(run, budget, out=out, observer=observer)
    if as_json:
        print_json(result.to_json())
        return
    stdout_console().print(
        f"{result.artefact}: {format_count(result.macs)} MACs ({result.macs / result.macs_dense:.2%} of dense), "
        f"{format_count(result.n_params)} params ({result.n_params / result.n_params_dense:.2%}), "
        f"objective {result.objective:.4g}",
        soft_wrap=True,
        markup=False,
    )
    artefact = shlex.quote(str(result.artefact))
    can_be_trained = run_around(result.artefact) is not None
    finetuning = f"evoprune finetune {artefact}    or: " if can_be_trained else ""
    stderr_console().print(f"next: {finetuning}evoprune export {artefact}", soft_wrap=True, markup=False)


@reports_errors
def export(
    run: RunOrArtefact,
    out: ExportOut = None,
    formats: Formats = None,
    budget: OtherBudget = None,
    trust_factory: TrustFactory = False,
    as_json: arg.AsJson = False,
) -> None:
    """Copy the small network of a run (its `best`), or an artefact, for other programs; each file is checked."""
    from evoprune import api
    from evoprune.exporting import check_export_folder, check_formats, default_export_folder
    from evoprune.exporting import export as export_artefact
    from evoprune.run_directory import check_folder

    names = tuple(formats or ("safetensors",))
    check_formats(names)
    artefact, target = run, out or default_export_folder(run)
    if budget is None:
        _name_finetuned(run)
    else:
        check_export_folder(target, names)  # or a picked network would stay behind
        check_folder(target)
        with rich_observer() as observer:
            artefact = api.pick(run, budget, observer=observer).artefact
        target = out or run / artefact.name.replace("pick", "export", 1)
    files = export_artefact(artefact, target, names, trust_factory=trust_factory)
    if as_json:
        print_json(
            [
                {"format": f.format, "path": str(f.path), "n_bytes": f.n_bytes, "max_difference": f.max_difference}
                for f in files
            ]
        )
        return
    for file in files:
        checked = "" if file.max_difference is None else f", logits within {file.max_difference:.1g} of the network's"
        stdout_console().print(f"{file.path}: {format_count(file.n_bytes)}B{checked}", soft_wrap=True, markup=False)


def _name_finetuned(run: Path) -> None:
    """Say which finetuned networks a run holds beside the one that its name stands for."""
    from evoprune.exporting import finetuned_networks

    for folder in finetuned_networks(run):
        command = f"evoprune export {shlex.quote(str(folder))}"
        stderr_console().print(f"{folder} is there too: {command}", style="dim", soft_wrap=True, markup=False)
