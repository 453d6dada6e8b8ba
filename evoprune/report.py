"""``report.html``: a run on one page, self-contained, with plots that can be zoomed.

Everything is read from the run directory, so that a run can be reported while it is live, and by whoever was sent it.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from evoprune.artefact import Description, read_description
from evoprune.budget import LATENCY, format_cost
from evoprune.course import RunSnapshot, read_snapshot
from evoprune.evaluation_store import EvaluationStore
from evoprune.finishing import SENSITIVITY_FILE
from evoprune.run_directory import RunDirectory, bears_mark, check_writable, read_json, write_atomically
from search_spaces.errors import EvoPruneError, OptionError, RunDirectoryError

_TEMPLATE = "plotly_white"
_STYLE = "body{font-family:sans-serif;max-width:1080px;margin:2em auto}td{padding:2px 1.2em 2px 0}h2{margin-top:2em}"
#: Networks by the names of their figures in result.json.
_NETWORKS = {
    "dense": "dense",
    "evolved": "evolved",
    "uniform L1": "baseline_uniform_l1",
    "random search": "random_search",
}
_SENSITIVITY = "What cutting each part alone does"
#: Why a run of a mode that measures sensitivity has no curves.
_NO_CURVES = {
    "layerwise": f"There is no {SENSITIVITY_FILE} yet: the first generation writes it.",
    "staged": f"There is no {SENSITIVITY_FILE}: the first generation writes it, under a budget; without one no stage "
    "is cut alone, and the ratio emerges.",
}
#: Begins the title of a report, and tells it from other pages, which are not replaced.
_TITLE = "<title>evoprune: "
_MOST_MARKERS = 40
_REMAKE = "delete it and continue the run with `evoprune resume`"


@dataclass(frozen=True)
class _Run:
    """What a run directory holds, as far as the run has come."""

    options: Mapping[str, Any]
    snapshot: RunSnapshot
    result: Mapping[str, Any]
    evaluated: Sequence[tuple[int, float]]
    front: Sequence[Mapping[str, str]]
    sensitivity: Sequence[Mapping[str, str]]
    winner: Description | None


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run in the directory ``run`` and return its path.

    Args:
        run: A run directory; one that is not finished is reported as far as it is.
        out: The file; ``report.html`` in the run directory by default.

    Raises:
        RunDirectoryError: ``run`` is no run directory, is damaged, or ``out`` cannot be written or is
            another kind of file.
        OptionError: Plotly is not installed.
    """
    directory = RunDirectory.open_existing(Path(run))
    path = directory.path / "report.html" if out is None else Path(out)
    if not path.parent.is_dir():
        raise RunDirectoryError(f"the report needs a folder that exists, but {str(path.parent)!r} does not; make it")
    check_writable(path, "a report", lambda file: bears_mark(file, _TITLE), suffixes=(".html", ".htm"))
    write_atomically(path, render_report(directory).encode())
    return path


def render_report(directory: RunDirectory) -> str:
    """Return the report as one HTML document without any link to elsewhere.

    Raises:
        RunDirectoryError: A file of the run is damaged.
        OptionError: Plotly is not installed.
    """
    plotly = _plotly()
    try:
        run = _read(directory)
        facts = _facts(run)
        figures = [
            ("The course of the search", _course(plotly, run)),
            ("Quality and cost", _front(plotly, run)),
            ("What is kept of every group", _kept(plotly, run)),
            (_SENSITIVITY, _sensitivity(plotly, run)),
        ]
    except EvoPruneError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"result.json, front.csv and {SENSITIVITY_FILE} must be as evoprune wrote them, but in "
            f"{str(directory.path)!r} one is not ({type(error).__name__}: {error}); restore or delete it"
        ) from error
    parts = [f"<h1>{escape(directory.path.name)}</h1>", facts]
    is_first = True
    for number, (heading, figure) in enumerate(figures):
        if figure is None:
            if heading == _SENSITIVITY and run.options.get("mode") in _NO_CURVES:
                parts += [f"<h2>{escape(heading)}</h2>", f"<p>{escape(_NO_CURVES[run.options['mode']])}</p>"]
            continue
        figure.update_layout(template=_TEMPLATE, margin={"t": 20}, height=420)
        code = figure.to_html(
            full_html=False, include_plotlyjs="inline" if is_first else False, div_id=f"plot-{number}"
        )
        parts += [f"<h2>{escape(heading)}</h2>", code]
        is_first = False
    title = f"{_TITLE}{escape(directory.path.name)}</title>"
    head = f'<meta charset="utf-8">{title}<style>{_STYLE}</style>'
    return f"<!DOCTYPE html>\n<html><head>{head}</head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _plotly() -> Any:
    try:
        return importlib.import_module("plotly.graph_objects")
    except ImportError as error:
        raise OptionError(
            f"a report needs the extra `report`, but {error}; install it with: pip install 'evoprune[report]'"
        ) from error


def _read(directory: RunDirectory) -> _Run:
    snapshot = read_snapshot(directory.path)
    front = _read_table(directory.front_path)
    rung = front[0]["rung"] if front else snapshot.best_rung or snapshot.rung
    evaluated: list[tuple[int, float]] = []
    if rung:
        with EvaluationStore(directory.evaluations_path, read_only=True) as store:
            whole = (record for record in store.records(rung) if record.evaluation.is_whole)
            evaluated = [(record.macs, record.evaluation.objective) for record in whole]
    return _Run(
        options=directory.read_config()["options"],
        snapshot=snapshot,
        result=read_json(directory.result_path, _REMAKE) if directory.result_path.is_file() else {},
        evaluated=evaluated,
        front=front,
        sensitivity=_read_table(directory.path / SENSITIVITY_FILE),
        winner=read_description(directory.best_path) if (directory.best_path / "evoprune.json").is_file() else None,
    )


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _facts(run: _Run) -> str:
    """Return a table of what was searched, and what came out."""
    snapshot, result = run.snapshot, run.result
    facts = {
        "network": run.options.get("model"),
        "images": run.options.get("data"),
        "mode": run.options.get("mode"),
        "budget": run.options.get("budget"),
        "seed": run.options.get("seed"),
        "status": f"{snapshot.status}: {snapshot.reason}" if snapshot.reason else snapshot.status,
        "generations": snapshot.generation if snapshot.generation >= 0 else None,
        "evaluations": snapshot.n_evaluations,
        "time": f"{snapshot.elapsed_s:.0f} s",
    }
    if result:
        facts["MACs"] = f"{result['macs']:,} of {result['macs_dense']:,} ({result['macs'] / result['macs_dense']:.2%})"
        facts["parameters"] = f"{result['n_params']:,} of {result['n_params_dense']:,}"
        facts["test accuracy, dense"] = f"{result['test_accuracy_dense']:.2%}"
        facts["test accuracy, evolved"] = f"{result['test_accuracy']:.2%}"
        facts["test accuracy, uniform L1, same adaptation"] = (
            f"{result['baseline_uniform_l1_adapted_test_accuracy']:.2%}"
        )
        if result.get("random_search"):
            facts["test accuracy, random search"] = f"{result['random_search']['test_accuracy']:.2%}"
        facts |= _latency_facts(result.get("latency"))
    cells = [
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    ]
    return f"<table>{''.join(cells)}</table>"


def _latency_facts(latency: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what the networks take, measured where they were and predicted; empty where no latency was budgeted."""
    facts = {}
    for name, figures in _NETWORKS.items():
        if not latency or not latency.get(figures):
            continue
        predicted, measured = latency[figures]["predicted_ns"], latency[figures]["measured_ns"]
        text = f"{format_cost(predicted, LATENCY)} predicted"
        facts[f"latency, {name}"] = text + (f", {format_cost(measured, LATENCY)} measured" if measured else "")
    return facts


def _course(plotly: Any, run: _Run) -> Any:
    """Return the best objective (and the hypervolume, where there is one) over the evaluations."""
    rows = [row for row in run.snapshot.generations if row.get("best") is not None]
    if not rows:
        return None
    at = [row["n_evaluations"] for row in rows]
    figure = plotly.Figure()
    names = [name for name in ("best", "avg", "elite_best") if any(row.get(name) is not None for row in rows)]
    for name in names:
        text = [f"generation {row['gen']}" + (f", {row['stage']}" if row.get("stage") else "") for row in rows]
        figure.add_scatter(x=at, y=[row.get(name) for row in rows], name=name, mode="lines+markers", text=text)
    figure.update_layout(xaxis_title="evaluations", yaxis_title="objective (smaller is better)")
    if any(row.get("hypervolume") is not None for row in rows):
        values = [row.get("hypervolume") for row in rows]
        figure.add_scatter(x=at, y=values, name="hypervolume", yaxis="y2", line={"dash": "dot"})
        figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "hypervolume"})
    return figure


def _front(plotly: Any, run: _Run) -> Any:
    """Return every judged network by cost and objective, and those that none beats in both."""
    if not run.evaluated:
        return None
    figure = plotly.Figure()
    macs, objectives = zip(*run.evaluated, strict=True)
    figure.add_scatter(x=macs, y=objectives, mode="markers", name="judged", marker={"size": 5, "opacity": 0.5})
    if run.front:
        x, y = ([float(row[name]) for row in run.front] for name in ("macs", "objective"))
        digests = [row["genome_digest"][:12] for row in run.front]
        figure.add_scatter(x=x, y=y, mode="lines+markers", name="front", text=digests, line={"shape": "hv"})
    figure.update_layout(xaxis_title="MACs", yaxis_title="objective (smaller is better)")
    return figure


def _kept(plotly: Any, run: _Run) -> Any:
    """Return the share of channels that the winner keeps of every group."""
    if run.winner is None:
        return None
    record = run.winner.genome
    names = [name for name in record.kept_channels if record.group_sizes.get(name)]
    if not names:
        return None
    kept = [len(record.kept_channels[name]) for name in names]
    sizes = [record.group_sizes[name] for name in names]
    shares = [n / size for n, size in zip(kept, sizes, strict=True)]
    text = [f"{n} of {size}" for n, size in zip(kept, sizes, strict=True)]
    figure = plotly.Figure()
    figure.add_bar(x=names, y=shares, text=text)
    figure.update_layout(yaxis={"title": "share kept", "range": [0, 1], "tickformat": ".0%"})
    return figure


def _sensitivity(plotly: Any, run: _Run) -> Any:
    """Return the error over the cost of the whole network when one part alone is cut, a curve per part."""
    if not run.sensitivity:
        return None
    figure = plotly.Figure()
    for part in dict.fromkeys(row["part"] for row in run.sensitivity):
        points = sorted((float(r["cost_share"]), float(r["error"])) for r in run.sensitivity if r["part"] == part)
        shares, errors = zip(*points, strict=True)
        mode = "lines+markers" if len(points) <= _MOST_MARKERS else "lines"
        figure.add_scatter(x=shares, y=errors, mode=mode, name=part)
    rungs = ", ".join(dict.fromkeys(row["rung"] for row in run.sensitivity))
    figure.update_layout(
        xaxis={"title": "cost of the whole network", "tickformat": ".0%"},
        yaxis_title=f"objective at rung {rungs} (smaller is better)",
    )
    return figure
