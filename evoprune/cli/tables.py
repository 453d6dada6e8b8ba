"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from evoprune.budget import METRICS, format_cost
from evoprune.finishing import BASELINE_ADAPTATION
from evoprune.inspection import SpaceSummary
from evoprune.result import SearchResult


def result_table(result: SearchResult) -> Table:
    """Return the three networks of a search side by side: dense, evolved, and uniform L1 at the same cost."""
    table = Table(title=f"{escape(result.model)} on {escape(result.data)}, seed {result.seed}", title_justify="left")
    further = [figures for figures in result.budgets if figures.metric not in ("macs", "params")]
    table.add_column("network", no_wrap=True)
    metrics = ["macs", "params", *(figures.metric for figures in further)]
    for metric in metrics:
        table.add_column(METRICS[metric].heading, justify="right", no_wrap=True)
        if not further:
            table.add_column("of dense", justify="right", no_wrap=True)
    table.add_column("test", justify="right", no_wrap=True)
    dense = [result.macs_dense, result.n_params_dense, *(figures.cost_dense for figures in further)]
    evolved = [result.macs, result.n_params, *(figures.cost for figures in further)]
    baseline = [
        result.baseline_uniform_l1_macs,
        result.baseline_uniform_l1_n_params,
        *(figures.baseline_uniform_l1_cost for figures in further),
    ]
    rows = [
        ("dense", dense, result.test_accuracy_dense),
        ("evolved", evolved, result.test_accuracy),
        ("uniform L1, recalibrated", baseline, result.baseline_uniform_l1_test_accuracy),
    ]
    if result.adaptation != BASELINE_ADAPTATION:
        name = f"uniform L1, {result.adaptation}"
        rows.append((name, baseline, result.baseline_uniform_l1_adapted_test_accuracy))
    for name, costs, accuracy in rows:
        cells = []
        for metric, cost, cost_dense in zip(metrics, costs, dense, strict=True):
            pair = [format_cost(cost, metric), f"{cost / cost_dense:.2%}"]
            cells += ["\n".join(pair)] if further else pair  # a line of them all would be wider than a terminal
        table.add_row(name, *cells, f"{accuracy:.2%}", style="bold" if name == "evolved" else "")
    return table


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
        frozen.add_column("layer")
        frozen.add_column("channels", justify="right")
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
