"""`evoprune watch`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.live import Live

from evoprune.cli import arguments as arg
from evoprune.cli.console import print_json, stderr_console, stdout_console
from evoprune.cli.errors import reports_errors
from evoprune.cli.watch_view import RateMeter, snapshot_line, snapshot_view
from evoprune.course import RunSnapshot, follow, read_snapshot

Once = Annotated[bool, typer.Option("--once", help="Look once, and end.")]
Interval = Annotated[float, typer.Option(help="Seconds between two looks.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print each look as one line of JSON, alone on stdout.")]


@reports_errors
def watch(run: arg.Run, once: Once = False, interval: Interval = 1.0, as_json: AsJson = False) -> None:
    """Show a live run from another terminal, without disturbing it, until the run ends."""
    try:
        if once:
            snapshot = read_snapshot(run)
            if as_json:
                print_json(snapshot.to_json(), in_one_line=True)
            else:
                stdout_console().print(snapshot_view(snapshot, RateMeter()))
            return
        snapshots = follow(run, interval_s=interval)
        if as_json:
            for snapshot in snapshots:
                print_json(snapshot.to_json(), in_one_line=True)
        else:
            _show(snapshots)
    except KeyboardInterrupt:
        stderr_console().print("no longer watching; the run is not affected")


def _show(snapshots: Iterator[RunSnapshot]) -> None:
    """Show ``snapshots``: in place on a terminal, elsewhere one line per generation."""
    console, meter = stdout_console(), RateMeter()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for snapshot in snapshots:
                live.update(snapshot_view(snapshot, meter), refresh=True)
        return
    shown: tuple[str, int] | None = None
    for snapshot in snapshots:
        if (snapshot.status, snapshot.generation) != shown:
            shown = snapshot.status, snapshot.generation
            console.print(snapshot_line(snapshot), soft_wrap=True, markup=False)
