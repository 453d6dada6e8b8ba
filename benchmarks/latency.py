"""How right are predicted latencies, and do rounded widths run faster: ``python -m benchmarks.latency``.

Questions: by how much do predictions from the table miss the measured latency of sliced networks, and is a network
whose widths are multiples of 8 ever slower than one of free widths under the same budget of MACs?

Varied: the network and the batch size; for the second question the budget (0.7, 0.5, 0.3 of the MACs, where it can be
reached) and the genome (several random ones, drawn alike with and without ``round_to=8``). Measured: the table, then
sliced networks that it was not fitted to, as ordinary modules in evaluation mode; every time is the median over rounds
in which all networks take turns, each round the fastest of a few calls, after a warm-up. One thread by default.

Run it on an otherwise idle machine: everything is a time.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.arguments import positive
from search_spaces import SearchSpace
from search_spaces.cost import whole_limit
from search_spaces.genome import BoolArray, FloatArray
from search_spaces.latency_measurement import (
    MeasurementOptions,
    device_name,
    measure_latency,
    measure_networks,
)
from search_spaces.models import build_model

SEED = 0
CASES = (("resnet20", 1), ("resnet56", 1), ("resnet56", 32), ("vgg16", 1), ("mobilenet_v2", 1))
SMOKE_CASES = (("resnet20", 1),)
BUDGETS = (0.7, 0.5, 0.3)
ROUND_TO = 8
#: A rounded network counts as slower where it takes so much more time than the free one: what repetitions differ by.
TOLERANCE = 1.05
#: What the figures of a page stand between.
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def trace(name: str, round_to: int = 1) -> tuple[torch.nn.Module, SearchSpace]:
    """Return a network of random weights and its space; its channels were verified by the tests."""
    model = build_model(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, SearchSpace.trace(model, torch.zeros(2, 3, 32, 32), round_to=round_to, verify=False)


def check_predictions(name: str, options: MeasurementOptions, n_checks: int) -> dict[str, Any]:
    """Return predicted and measured times of ``n_checks`` sliced networks."""
    model, space = trace(name)
    started = time.perf_counter()
    measurement = measure_latency(model, space, options, name=name, rng=np.random.default_rng(SEED), n_checks=n_checks)
    measured_s = time.perf_counter() - started
    table, measured = measurement.table, measurement.checked_ns
    cost = table.cost(space)
    predicted = cost(space.kept_counts(measurement.checked))
    errors = np.abs(predicted - measured) / measured
    population = space.kept_counts(space.sample(rng=np.random.default_rng(SEED), n=10_000))
    started = time.perf_counter()
    cost(population)
    population_s = time.perf_counter() - started
    least, most = cost(np.stack([space.lattice.min_keep, space.lattice.sizes])).tolist()
    return {
        "predicted_ns": predicted.tolist(),
        "measured_ns": measured.tolist(),
        "median_error": float(np.median(errors)),
        "worst_error": float(errors.max()),
        "latency_range_ns": [least, most],
        "fit": {"scale": table.scale, "ns_per_byte": table.ns_per_byte, "overhead_ns": table.overhead_ns},
        "n_shapes": len(table.tables),
        "measured_s": measured_s,
        "seconds_for_10000_genomes": population_s,
    }


def compare_rounding(name: str, options: MeasurementOptions, n_genomes: int) -> list[dict[str, Any]]:
    """Return, per budget of MACs that both can meet, the times of free and of rounded widths."""
    model, free = trace(name)
    _, rounded = trace(name, ROUND_TO)
    rows = []
    for budget in BUDGETS:
        if whole_limit(budget, rounded.macs_dense) < rounded.macs_range[0]:
            continue
        genomes = [
            space.sample(rng=np.random.default_rng(SEED), n=n_genomes, macs_budget=budget) for space in (free, rounded)
        ]
        times = _measured_together(model, free, genomes, options)
        ratio = times[1] / times[0]
        rows.append(
            {
                "budget": budget,
                "free_ns": times[0].tolist(),
                "rounded_ns": times[1].tolist(),
                "median_ratio": float(np.median(ratio)),
                "worst_ratio": float(ratio.max()),
                "n_slower": int((ratio > TOLERANCE).sum()),
            }
        )
    return rows


def _measured_together(
    model: torch.nn.Module, space: SearchSpace, genomes: Sequence[BoolArray], options: MeasurementOptions
) -> list[FloatArray]:
    """Return the times of several populations, whose networks take turns; the genes of both spaces are the same."""
    times = measure_networks(model, space, np.concatenate(genomes), options)
    return np.split(times, np.cumsum([len(part) for part in genomes])[:-1])


def error_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the errors of the predictions as a Markdown table."""
    lines = [
        "| network | batch | dense | reachable | median error | largest | all measured in | 10,000 genomes in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        check = result["predictions"]
        least, most = check["latency_range_ns"]
        lines.append(
            f"| {result['network']} | {result['batch_size']} | {most / 1e6:.3g} ms | from {least / most:.0%} "
            f"| {check['median_error']:.1%} | {check['worst_error']:.1%} | {check['measured_s']:.0f} s "
            f"| {check['seconds_for_10000_genomes']:.2f} s |"
        )
    return "\n".join(lines)


def rounding_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the comparison of rounded and free widths as a Markdown table."""
    lines = [
        f"| network | batch | MACs budget | time of widths rounded to {ROUND_TO} / free, median | largest | slower |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {result['network']} | {result['batch_size']} | {row['budget']} | {row['median_ratio']:.2f} "
        f"| {row['worst_ratio']:.2f} | {row['n_slower']} of {len(row['free_ns'])} |"
        for result in results
        for row in result["rounding"]
    ]
    return "\n".join(lines)


def has_marks(path: Path) -> bool:
    """Return whether ``path`` is a page that figures can be written into."""
    return path.is_file() and all(mark in path.read_text(encoding="utf-8") for mark in (BEGIN, END))


def write_figures(path: Path, document: dict[str, Any]) -> None:
    """Replace what stands between the marks in the page ``path`` by the figures of this run."""
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    config = document["config"]
    figures = (
        f"{document['device']}, {config['n_threads']} thread(s), {config['dtype']}, torch "
        f"{document['versions']['torch']}; medians of {config['n_rounds']} rounds, "
        f"{config['n_checks']} sliced networks.\n\n"
        f"{error_table(document['results'])}\n\n{rounding_table(document['results'])}\n"
    )
    path.write_text(f"{head}{BEGIN}\n{figures}{END}{tail}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its tables and, where asked, write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--checks", type=positive, default=20)
    parser.add_argument("--genomes", type=positive, default=8, help="networks per budget with and without rounding")
    parser.add_argument("--smoke", action="store_true", help="one network, few points: a check that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/latency.json"))
    parser.add_argument("--docs", type=Path, help="page whose figures are replaced, such as docs/latency.md")
    given = parser.parse_args(arguments)
    if given.docs is not None and not has_marks(given.docs):
        parser.error(f"--docs {given.docs}: must be an existing page with the lines {BEGIN} and {END}")
    base = MeasurementOptions(n_threads=given.threads, n_rounds=given.rounds)
    cases, n_checks, n_genomes = CASES, given.checks, given.genomes
    if given.smoke:
        base = replace(base, n_rounds=1, max_points=2, n_networks=3)
        cases, n_checks, n_genomes = SMOKE_CASES, 2, 1
    results = []
    for name, batch_size in cases:
        options = replace(base, batch_size=batch_size)
        predictions = check_predictions(name, options, n_checks)
        rounding = compare_rounding(name, options, n_genomes)
        results.append({"network": name, "batch_size": batch_size, "predictions": predictions, "rounding": rounding})
    document = {
        "benchmark": "latency",
        "config": {**asdict(base), "n_checks": n_checks, "n_genomes": n_genomes, "seed": SEED},
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        "device": device_name(torch.device("cpu")),
        "results": results,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    print(error_table(results), rounding_table(results), sep="\n\n")
    if given.docs is not None:
        write_figures(given.docs, document)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
