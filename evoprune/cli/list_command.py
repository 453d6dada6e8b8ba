"""`evoprune list`: the names that options accept."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from evoprune.cli import arguments as arg
from evoprune.cli.console import print_json, stdout_console
from evoprune.cli.errors import reports_errors
from search_spaces.errors import UnknownNameError

#: Names of the lists, here too, since the catalogue takes seconds to import.
KINDS = (
    *("models", "data", "criteria", "fitness", "rungs", "objectives", "fitness-images", "compensations", "metrics"),
    *("modes", "comparisons", "formats", "loggers"),
)
Kind = Annotated[
    str | None, typer.Argument(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}; all where left out.", show_default=False)
]


@reports_errors
def list_names(kind: Kind = None, as_json: arg.AsJson = False) -> None:
    """List the names that options accept, such as models, data sets, criteria and search modes."""
    from evoprune.catalogue import catalogue

    names = catalogue()
    if kind is not None:
        if kind not in names:
            raise UnknownNameError("list", kind, names)
        names = {kind: names[kind]}
    if as_json:
        print_json(names)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for section, entries in names.items():
        table.add_row(f"[bold]{section}[/bold]", "")
        for name, description in entries.items():
            table.add_row(f"  {escape(name)}", escape(description))
    stdout_console().print(table)
