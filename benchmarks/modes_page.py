"""The page of ``benchmarks.modes``: tables, verdicts and static plots from its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

GREEDY = "greedy"
_COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8e5ea2", "#e08e0b", "#4a4a4a", "#00a6a6", "#a0522d")
_PANEL_WIDTH, _PANEL_HEIGHT, _LEFT, _TOP, _GAP = 260, 180, 56, 56, 64

Row = Mapping[str, Any]
#: A value of one row; None where the method has none.
Measure = Callable[[Row], float | None]


@dataclass(frozen=True)
class Case:
    """What the methods of one table share."""

    network: str
    budget: float


def write_page(rows: Sequence[Row], setting: Mapping[str, Any], docs: Path | None) -> str:
    """Return the tables as Markdown; with ``docs``, write them there and the plots beside it."""
    cases = sorted({Case(row["task"]["network"], row["task"]["budget"]) for row in rows}, key=_order)
    tables = [_table(rows, case, setting) for case in cases]
    verdicts = _verdicts(rows, cases, setting)
    if docs is not None:
        docs.parent.mkdir(parents=True, exist_ok=True)
        plots = []
        for network in dict.fromkeys(case.network for case in cases):
            name = f"{docs.stem}_{network}.svg"
            (docs.parent / name).write_text(_plot(rows, [c for c in cases if c.network == network], setting))
            plots.append(f"![{network}: objective over evaluations and over time]({name})")
        docs.write_text("\n".join([_introduction(rows, setting), *verdicts, "", *plots, "", *tables]) + "\n")
    return "\n".join([*tables, *verdicts])


def value_at(row: Row, *, evaluations: float | None = None, seconds: float | None = None) -> float | None:
    """Return the least objective that ``row`` has after so many evaluations or seconds; None where it has none yet.

    A method that judges a single genome has it from the start.
    """
    found = None
    for n, elapsed_s, objective in row["steps"]:
        if row["n_evaluations"] > 1:
            if evaluations is not None and n > evaluations:
                break
            if seconds is not None and elapsed_s > seconds:
                break
        found = float(objective)
    return found


def _order(case: Case) -> tuple[str, float]:
    return case.network, -case.budget


def _measures(setting: Mapping[str, Any]) -> dict[str, tuple[str, Measure]]:
    """Return, by heading, which protocol's rows are meant and what is read from them."""
    n, t = setting["evaluations"], setting["seconds"]
    return {
        f"after {n} evaluations": ("evaluations", lambda row: value_at(row, evaluations=n)),
        f"after {t:g} s": ("seconds", lambda row: value_at(row, seconds=t)),
        "winner on other images": ("evaluations", lambda row: row["check"].get("objective")),
    }


def _rows_of(rows: Sequence[Row], case: Case, method: str, protocol: str) -> list[Row]:
    found = []
    for row in rows:
        task = row["task"]
        is_it = (task["network"], task["budget"], task["method"]) == (case.network, case.budget, method)
        if is_it and task["protocol"] in (protocol, "both"):
            found.append(row)
    return found


def _ratios(rows: Sequence[Row], case: Case, method: str, protocol: str, measure: Measure) -> list[float]:
    """Return ``measure`` per seed, as a ratio to that of the greedy rule with the same seed."""
    marks = {row["task"]["seed"]: measure(row) for row in _rows_of(rows, case, GREEDY, protocol)}
    ratios = []
    for row in _rows_of(rows, case, method, protocol):
        value, mark = measure(row), marks.get(row["task"]["seed"])
        if value is not None and mark:
            ratios.append(value / mark)
    return ratios


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"]["method"] for row in rows))


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    if not values:
        return "-"
    middle = f"{median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _table(rows: Sequence[Row], case: Case, setting: Mapping[str, Any]) -> str:
    measures = _measures(setting)
    header = ["method", *measures, "accuracy there", "evaluations per second"]
    cells = [header]
    for method in _methods(rows):
        line = [method]
        for protocol, measure in measures.values():
            line.append(_spread(_ratios(rows, case, method, protocol, measure)))
        own = _rows_of(rows, case, method, "evaluations")
        line.append(_spread([row["check"]["accuracy"] for row in own if "accuracy" in row["check"]], ".1%"))
        line.append(_spread([row["n_evaluations"] / row["seconds"] for row in own if row["seconds"] > 0], ".3g"))
        cells.append(line)
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    n_seeds = len({row["task"]["seed"] for row in rows})
    title = f"## {case.network}, {case.budget:.0%} of the MACs, {n_seeds} seed{'s' if n_seeds > 1 else ''}"
    return "\n".join([title, "", *lines, ""])


def _verdicts(rows: Sequence[Row], cases: Sequence[Case], setting: Mapping[str, Any]) -> list[str]:
    """Return the questions that the benchmark was made for, with their answers."""
    lines = ["## Verdicts", ""]
    for heading, (protocol, measure) in list(_measures(setting).items())[:2]:
        for rival in (GREEDY, "random"):
            beaten, not_beaten = [], []
            for case in cases:
                own, other = (_ratios(rows, case, m, protocol, measure) for m in ("global", rival))
                if own and other:
                    is_beaten = median(own) < median(other)
                    (beaten if is_beaten else not_beaten).append(f"{case.network} at {case.budget:g}")
            if beaten or not_beaten:
                where = f"; not at {', '.join(not_beaten)}" if not_beaten else ""
                n = len(beaten) + len(not_beaten)
                lines.append(f"* {heading}, `global` beats `{rival}` in {len(beaten)} of {n} cases (medians){where}.")
    for network in dict.fromkeys(case.network for case in cases):
        ratio = _speed_ratio(rows, network)
        if ratio is not None:
            lines.append(
                f"* {network}: `staged` has {ratio:.2f} times as many candidates judged per second as `global`."
            )
    return lines


def _speed_ratio(rows: Sequence[Row], network: str) -> float | None:
    """Return evaluations per second of ``staged`` over those of ``global``, the median over budgets and seeds."""
    rates: dict[str, dict[tuple[float, int], float]] = {"staged": {}, "global": {}}
    for row in rows:
        task = row["task"]
        is_one = task["network"] == network and task["method"] in rates and task["protocol"] != "seconds"
        if is_one and row["seconds"] > 0:
            rates[task["method"]][task["budget"], task["seed"]] = row["n_evaluations"] / row["seconds"]
    both = rates["staged"].keys() & rates["global"].keys()
    return median(rates["staged"][key] / rates["global"][key] for key in both) if both else None


def _introduction(rows: Sequence[Row], setting: Mapping[str, Any]) -> str:
    versions = rows[0]["versions"] if rows else {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    compared = (
        f"`python -m benchmarks.modes`: what each mode finds after {setting['evaluations']} evaluations and after "
        f"{setting['seconds']:g} CPU seconds of one core, beside the greedy rule (widths of least layer error per MAC, "
        "one evaluation) and DEAP's own `eaMuPlusLambda` with its own list operators on the same evaluator."
    )
    figures = (
        "Figures are the least objective (`kl`) among the candidates within the budget, as a ratio to the greedy "
        "rule's on the same images: below 1 is better than the greedy rule. Median over the seeds, with the range. "
        f"The judge is coarse on purpose, so that hundreds of searches can be afforded: {setting['images']} fitness "
        f"images (plain and noisy), {setting['calibration_images']} calibration images ({setting['compensation']}), "
        f"populations of {setting['population']}. A dash: no candidate within the budget by then; modes that measure "
        "the parts of a network first have none before that. *Winner on other images*: the same of the winner by "
        "evaluations, judged again on "
        f"{setting['check_images']} images of another seed."
    )
    conditions = f"Conditions: {told}; CPU, one core, one thread."
    paragraphs = [fill(text, 124, break_on_hyphens=False) for text in (compared, figures, conditions)]
    return "\n\n".join(["# Ways of searching, compared", *paragraphs]) + "\n"


# ---------------------------------------------------------------------- plots


def _plot(rows: Sequence[Row], cases: Sequence[Case], setting: Mapping[str, Any]) -> str:
    """Return an SVG document: one column per budget, objective over evaluations above, over seconds below."""
    methods = [method for method in _methods(rows) if method != GREEDY]
    colours = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(methods)}
    width = _LEFT + len(cases) * (_PANEL_WIDTH + _GAP)
    height = _TOP + 2 * (_PANEL_HEIGHT + _GAP)
    parts = [_legend(cases[0].network, colours)]
    for column, case in enumerate(cases):
        for line, (protocol, limit) in enumerate(
            (("evaluations", setting["evaluations"]), ("seconds", setting["seconds"]))
        ):
            curves = {m: _curve(rows, case, m, protocol, float(limit)) for m in methods}
            x, y = _LEFT + column * (_PANEL_WIDTH + _GAP), _TOP + line * (_PANEL_HEIGHT + _GAP)
            parts.append(
                f'<g transform="translate({x},{y})">{_panel(case, protocol, float(limit), curves, colours)}</g>'
            )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _curve(rows: Sequence[Row], case: Case, method: str, protocol: str, limit: float) -> list[tuple[float, float]]:
    """Return the median ratio to the greedy rule at 60 places up to ``limit``; none before every seed has one."""
    n_rows, points = len(_rows_of(rows, case, method, protocol)), []
    for i in range(1, 61):
        at = limit * i / 60
        marked = {protocol: at}
        ratios = _ratios(rows, case, method, protocol, lambda row, marked=marked: value_at(row, **marked))
        if ratios and len(ratios) == n_rows:
            points.append((at, median(ratios)))
    return points


def _panel(
    case: Case, protocol: str, limit: float, curves: Mapping[str, list[tuple[float, float]]], colours: Mapping[str, str]
) -> str:
    values = [y for points in curves.values() for _, y in points] + [1.0]
    low, high = min(values) * 0.97, min(max(values) * 1.03, 3.0)  # what is three times worse is off the panel

    def place(x: float, y: float) -> str:
        return f"{x / limit * _PANEL_WIDTH:.1f},{(1 - (min(y, high) - low) / (high - low)) * _PANEL_HEIGHT:.1f}"

    parts = [
        f'<rect width="{_PANEL_WIDTH}" height="{_PANEL_HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{_PANEL_WIDTH / 2}" y="-6" text-anchor="middle">{case.budget:.0%} of the MACs</text>',
        f'<text x="{_PANEL_WIDTH / 2}" y="{_PANEL_HEIGHT + 28}" text-anchor="middle">{escape(protocol)}</text>',
    ]
    for value in (low, (low + high) / 2, high):
        _, y = place(0, value).split(",")
        parts.append(f'<text x="-4" y="{float(y) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for share in (0.0, 0.5, 1.0):
        at = f'x="{share * _PANEL_WIDTH:.1f}" y="{_PANEL_HEIGHT + 14}"'
        parts.append(f'<text {at} text-anchor="middle">{limit * share:g}</text>')
    mark = f"{place(0, 1.0)} {place(limit, 1.0)}"
    parts.append(f'<polyline points="{mark}" fill="none" stroke="#999" stroke-dasharray="4 3"/>')
    for method, points in curves.items():
        if points:
            path = " ".join(place(x, y) for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[method]}" stroke-width="1.8"/>')
    return "\n".join(parts)


def _legend(network: str, colours: Mapping[str, str]) -> str:
    about = f"{escape(network)}: objective, as a ratio to the greedy rule (dashed)"
    parts = [f'<text x="8" y="16" font-size="13">{about}</text>']
    x = 8
    for method, colour in colours.items():
        parts.append(f'<line x1="{x}" y1="30" x2="{x + 18}" y2="30" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 22}" y="34">{escape(method)}</text>')
        x += 40 + 7 * len(method)
    return "\n".join(parts)
