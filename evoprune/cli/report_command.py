"""`evoprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evoprune.cli import arguments as arg
from evoprune.cli.console import print_json, stdout_console
from evoprune.cli.errors import reports_errors

Out = Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; default report.html in the run directory.")]


@reports_errors
def report(run: arg.Run, out: Out = None, as_json: arg.AsJson = False) -> None:
    """Write a run, finished or not, as one HTML page with plots."""
    from evoprune.report import write_report

    path = write_report(run, out)
    if as_json:
        print_json({"report": str(path), "n_bytes": path.stat().st_size})
        return
    stdout_console().print(str(path), soft_wrap=True, markup=False)
