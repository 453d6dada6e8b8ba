"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from evoprune.budget import LATENCY, METRICS, format_cost
from evoprune.finishing import BASELINE_ADAPTATION
from evoprune.inspection import SpaceSummary
from evoprune.result import BudgetFigures, LatencyFigures, NetworkLatency, SearchResult


def result_table(result: SearchResult) -> Table:
    """Return the networks of a search side by side: dense, evolved, and what it is compared with at the same cost."""
    table = Table(title=f"{escape(result.model)} on {escape(result.data)}, seed {result.seed}", title_justify="left")
    further = [figures for figures in result.budgets if figures.metric not in ("macs", "params")]
    table.add_column("network", no_wrap=True)
    metrics = ["macs", "params", *(figures.metric for figures in further)]
    for metric in metrics:
        table.add_column(METRICS[metric].heading, justify="right", no_wrap=True)
        if not further:
            table.add_column("of dense", justify="right", no_wrap=True)
    if result.latency is not None:
        table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("test", justify="right", no_wrap=True)
    rows = _rows(result, further)
    dense = rows[0]
    for row in rows:
        cells = []
        for metric, cost, cost_dense in zip(metrics, row.costs, dense.costs, strict=True):
            pair = [format_cost(cost, metric), f"{cost / cost_dense:.2%}"]
            cells += ["\n".join(pair)] if further else pair  # a line of them all would be wider than a terminal
        if row.latency is not None and dense.latency is not None:
            cells.append(_measured(row.latency, dense.latency))
        table.add_row(row.name, *cells, f"{row.accuracy:.2%}", style="bold" if row.name == "evolved" else "")
    return table


@dataclass(frozen=True)
class _Row:
    """A network in the table: its costs in the order of the columns, its latency where one is budgeted."""

    name: str
    costs: Sequence[int]
    accuracy: float
    latency: NetworkLatency | None


def _rows(result: SearchResult, further: Sequence[BudgetFigures]) -> list[_Row]:
    """Return the networks of ``result``, the dense one first; ``further`` are the costs besides MACs and parameters."""
    latency = result.latency
    baseline = [
        result.baseline_uniform_l1_macs,
        result.baseline_uniform_l1_n_params,
        *(figures.baseline_uniform_l1_cost for figures in further),
    ]
    latencies: tuple[NetworkLatency | None, ...] = (None,) * 4
    if latency is not None:
        latencies = (latency.dense, latency.evolved, latency.baseline_uniform_l1, latency.random_search)
    dense_latency, evolved_latency, baseline_latency, random_latency = latencies
    rows = [
        _Row(
            "dense",
            [result.macs_dense, result.n_params_dense, *(figures.cost_dense for figures in further)],
            result.test_accuracy_dense,
            dense_latency,
        ),
        _Row(
            "evolved",
            [result.macs, result.n_params, *(figures.cost for figures in further)],
            result.test_accuracy,
            evolved_latency,
        ),
        _Row("uniform L1, recalibrated", baseline, result.baseline_uniform_l1_test_accuracy, baseline_latency),
    ]
    if result.adaptation != BASELINE_ADAPTATION:
        accuracy = result.baseline_uniform_l1_adapted_test_accuracy
        rows.append(_Row(f"uniform L1, {result.adaptation}", baseline, accuracy, baseline_latency))
    random = result.random_search
    if random is not None:
        costs = [random.macs, random.n_params, *(random.costs[figures.metric] for figures in further)]
        rows.append(_Row("random search", costs, random.test_accuracy, random_latency))
    return rows


def _measured(latency: NetworkLatency, dense: NetworkLatency) -> str:
    if latency.measured_ns is None or not dense.measured_ns:
        return "-"
    return f"{format_cost(latency.measured_ns, LATENCY)}\n{latency.measured_ns / dense.measured_ns:.2%}"


def latency_lines(latency: LatencyFigures) -> list[str]:
    """Return what the evolved network's latency is, by how much the prediction is exceeded, and what to beware of."""
    predicted, measured = latency.evolved.predicted_ns, latency.evolved.measured_ns
    under = f"with {latency.n_threads} threads, batch size {latency.batch_size}, {latency.dtype}"
    line = f"latency: {format_cost(predicted, LATENCY)} predicted"
    if not measured:
        line += f" {under}; not measured"
    else:
        line += f", {format_cost(measured, LATENCY)} measured ({measured / max(predicted, 1) - 1:+.1%}) {under}"
    return [line, *(f"beware: {difference}" for difference in latency.differences)]


def space_tables(summary: SpaceSummary) -> Iterable[Table | str]:
    """Yield what ``evoprune inspect`` prints: groups, frozen channels, and the reachable range."""
    groups = Table(title=f"channel groups of {escape(summary.model)}", title_justify="left")
    groups.add_column("group", no_wrap=True)
    for heading in ("channels", "genes", "keeps", "MACs", "params"):
        groups.add_column(heading, justify="right")
    groups.add_column("coupled with")
    for group in summary.groups:
        kept = f">= {group.min_keep}" + (f", step {group.step}" if group.step > 1 else "")
        others = [layer for layer in group.layers if layer != group.name]
        groups.add_row(
            escape(group.name),
            str(group.n_channels),
            str(group.n_channels // group.channels_per_gene),
            kept,
            f"{group.macs_share:.1%}",
            f"{group.params_share:.1%}",
            escape(_first_of(others)),
        )
    yield groups
    if summary.frozen:
        frozen = Table(title="frozen channels", title_justify="left")
        frozen.add_column("layer", overflow="fold")
        frozen.add_column("channels", justify="right", no_wrap=True)
        frozen.add_column("reason", overflow="fold")
        for item in summary.frozen:
            frozen.add_row(escape(item.name), str(item.n_channels), escape(item.reason))
        yield frozen
    yield _range("macs", summary.macs_dense, summary.macs_range)
    yield _range("params", summary.n_params_dense, summary.n_params_range)
    yield _range("activation-bytes", summary.activation_bytes_dense, summary.activation_bytes_range)
    yield (
        f"{summary.n_genes} genes in {len(summary.groups)} groups: 10^{summary.log10_size:.0f} networks; "
        f"{summary.macs_share_prunable:.1%} of the MACs lie in layers that can shrink"
    )


def _first_of(layers: list[str]) -> str:
    """Return the first layer and the number of the others; ``--json`` has them all."""
    return "".join(layers[:1]) + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")


def _range(metric: str, dense: int, reachable: tuple[int, int]) -> str:
    low, high = reachable
    return (
        f"{METRICS[metric].heading}: dense {format_cost(dense, metric)}, reachable {format_cost(low, metric)} to "
        f"{format_cost(high, metric)} ({low / dense:.2%} to {high / dense:.2%})"
    )
