"""`evoprune latency`."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import Annotated

import typer

from evoprune.budget import LATENCY, format_cost
from evoprune.cli import arguments as arg
from evoprune.cli.console import print_json, stdout_console
from evoprune.cli.errors import reports_errors
from evoprune.cli.progress import rich_observer
from evoprune.options import LatencyOptions

Classes = Annotated[int, typer.Option("--classes", help="Length of the logits.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File of the table; replaced.")]
BatchSize = Annotated[int, typer.Option(help="Images per call.")]
Threads = Annotated[int | None, typer.Option(help="Threads of one operator; PyTorch's number by default.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
NChecks = Annotated[int, typer.Option("--checks", help="Sliced networks that the table is checked on.")]
DEFAULTS = {name: field.default for name, field in LatencyOptions.model_fields.items()}


@reports_errors
def latency(
    model: arg.Model = "vgg16",
    out: Out = Path("latency.json"),
    n_classes: Classes = 10,
    input_shape: arg.InputShape = None,
    model_args: arg.ModelArgs = None,
    batch_size: BatchSize = DEFAULTS["batch_size"],
    threads: Threads = DEFAULTS["threads"],
    dtype: Dtype = DEFAULTS["dtype"],
    checks: NChecks = DEFAULTS["n_checks"],
    protect: arg.Protect = None,
    only: arg.Only = None,
    min_channels: arg.MinChannels = "1",
    round_to: arg.RoundTo = 1,
    block_genes: arg.BlockGenes = False,
    device: arg.Device = "auto",
    as_json: arg.AsJson = False,
) -> None:
    """Measure how long a network's layers take at every width on this device, for `search --metric latency`."""
    from evoprune import api

    with rich_observer() as observer:
        report = api.latency(
            model,
            out=out,
            n_classes=n_classes,
            observer=observer,
            input_shape=arg.parse_input_shape(input_shape),
            model_args=arg.parse_model_args(model_args),
            batch_size=batch_size,
            threads=threads,
            dtype=dtype,
            n_checks=checks,
            protect=tuple(protect or ()),
            only=tuple(only or ()),
            min_channels=arg.parse_min_channels(min_channels),
            round_to=round_to,
            block_genes=block_genes,
            device=device,
        )
    if as_json:
        print_json(report.to_json())
        return
    under, check = report.conditions, report.check
    low, high = report.latency_range_ns
    print_line = functools.partial(stdout_console().print, soft_wrap=True, markup=False, highlight=False)
    print_line(
        f"{under.model} on {under.device_name}, {under.n_threads} threads, batch size {under.batch_size}, "
        f"{under.dtype}, torch {under.torch_version}"
    )
    print_line(
        f"latency: dense {format_cost(report.latency_dense_ns, LATENCY)}, reachable {format_cost(low, LATENCY)} to "
        f"{format_cost(high, LATENCY)} ({low / high:.2%} to 100.00%)"
    )
    print_line(
        f"predictions for {len(check.predicted_ns)} sliced networks are off by {check.median_error:.1%} at the median, "
        f"{check.worst_error:.1%} at most"
    )
    same = f" --model-args {shlex.quote(model_args)}" if model_args else ""
    same += f" --input-shape {input_shape}" if input_shape else ""
    print_line(
        f"table: {report.table}, for images of {n_classes} classes: `evoprune search --model {under.model}{same} "
        f"--metric latency --latency-table {shlex.quote(str(report.table))}`"
    )
