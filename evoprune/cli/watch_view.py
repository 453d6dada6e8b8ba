"""What `evoprune watch` shows: where a run stands, for people."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from evoprune.course import RunSnapshot

_TICKS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 48
_WINDOW_S = 30.0
_SILENCE_WORTH_TELLING_S = 10.0
_STYLES = {"finished": "green", "failed": "red", "killed": "red", "interrupted": "yellow"}


class RateMeter:
    """Evaluations per second and rung over the last half minute of work, or over the whole run at the first look."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def rates(self, snapshot: RunSnapshot) -> dict[str, float]:
        """Return evaluations per second by rung, ``snapshot`` included; a rung without any new ones has 0."""
        counts = {rung: figures.n_evaluations for rung, figures in (snapshot.rungs or {}).items()}
        if self._seen and snapshot.elapsed_s < self._seen[-1][0]:
            self._seen.clear()  # a resumed run began again at its checkpoint
        self._seen.append((snapshot.elapsed_s, counts))
        while len(self._seen) > 2 and self._seen[1][0] <= snapshot.elapsed_s - _WINDOW_S:
            self._seen.popleft()
        since_s, before = self._seen[0] if len(self._seen) > 1 else (0.0, {})
        seconds = snapshot.elapsed_s - since_s
        return {rung: (n - before.get(rung, 0)) / seconds if seconds > 0 else 0.0 for rung, n in counts.items()}


def snapshot_view(snapshot: RunSnapshot, meter: RateMeter) -> RenderableType:
    """Return ``snapshot`` as a few lines and a table of the rungs."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    style = _STYLES.get(snapshot.status, "bold")
    why = f": {escape(snapshot.reason)}" if snapshot.reason else ""
    facts.add_row("run", f"{escape(snapshot.run)}  [{style}]{snapshot.status}[/{style}]{why}")
    facts.add_row("generation", _generation(snapshot))
    if snapshot.n_generations is not None:
        total = snapshot.n_generations + 1
        facts.add_row("", ProgressBar(total=total, completed=min(_generations_done(snapshot), total), width=40))
    if snapshot.best_objective is not None:
        best = f"{snapshot.best_objective:.6g} ({escape(snapshot.best_rung)})"
        facts.add_row("best", f"{best}  [cyan]{sparkline(snapshot.history)}[/cyan]")
    if snapshot.hypervolumes:
        volume = f"{snapshot.hypervolumes[-1]:.6g}"
        facts.add_row("hypervolume", f"{volume}  [cyan]{sparkline(snapshot.hypervolumes)}[/cyan]")
    facts.add_row("time", _time(snapshot))
    parts: list[RenderableType] = [facts]
    if snapshot.rungs:
        parts.append(_rungs(snapshot, meter))
    return Group(*parts)


def snapshot_line(snapshot: RunSnapshot) -> str:
    """Return ``snapshot`` as one line, for where there is no terminal."""
    best = "" if snapshot.best_objective is None else f"  best {snapshot.best_objective:.6g}"
    why = f": {snapshot.reason}" if snapshot.reason else ""
    return f"{snapshot.status}{why}  generation {_generation(snapshot)}  {snapshot.n_evaluations} evaluations{best}"


def sparkline(values: Sequence[float], width: int = _SPARKLINE_WIDTH) -> str:
    """Return ``values`` as bars between the smallest and the largest; of more than ``width``, evenly spaced ones."""
    if not values:
        return ""
    n_shown = min(len(values), width)
    step = (len(values) - 1) / max(n_shown - 1, 1)
    shown = [values[round(i * step)] for i in range(n_shown)]
    low, high = min(shown), max(shown)
    span = high - low
    return "".join(_TICKS[round((value - low) / span * (len(_TICKS) - 1)) if span > 0 else 0] for value in shown)


def duration(seconds: float) -> str:
    """Return ``seconds`` as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _generations_done(snapshot: RunSnapshot) -> float:
    is_judging = snapshot.role == "judge" and not snapshot.has_ended and snapshot.n_requested > 0
    share = snapshot.n_done / snapshot.n_requested if is_judging else 0.0
    return snapshot.generation + 1 + min(share, 0.99)


def _generation(snapshot: RunSnapshot) -> str:
    planned = "" if snapshot.n_generations is None else f" of {snapshot.n_generations}"
    done = f"{snapshot.generation}{planned}" if snapshot.generation >= 0 else f"none yet{planned}"
    done += f", stage {escape(snapshot.stage)}" if snapshot.stage else ""
    if snapshot.has_ended or not snapshot.n_requested:
        return done
    return f"{done}; {escape(snapshot.role)} at {escape(snapshot.rung)}: {snapshot.n_done} of {snapshot.n_requested}"


def _time(snapshot: RunSnapshot) -> str:
    text = duration(snapshot.elapsed_s)
    if snapshot.has_ended or snapshot.status == "preparing":
        return text
    if snapshot.n_generations is not None and snapshot.generation >= 0:
        done = _generations_done(snapshot)
        left = snapshot.elapsed_s / done * max(snapshot.n_generations + 1 - done, 0.0)
        text += f", about {duration(left)} left"
    if snapshot.silent_s >= _SILENCE_WORTH_TELLING_S:
        text += f"; nothing new for {duration(snapshot.silent_s)}"
    return text


def _rungs(snapshot: RunSnapshot, meter: RateMeter) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rung", no_wrap=True)
    for heading in ("evaluations", "per second", "seconds each"):
        table.add_column(heading, justify="right", no_wrap=True)
    rates = meter.rates(snapshot)
    for rung, figures in (snapshot.rungs or {}).items():
        each = figures.seconds / figures.n_evaluations if figures.n_evaluations else 0.0
        table.add_row(escape(rung), str(figures.n_evaluations), f"{rates[rung]:.3g}", f"{each:.3g}")
    return table
