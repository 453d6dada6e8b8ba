"""How many candidates a second, in all genes and in stages: ``python -m benchmarks.stage_throughput``.

Question: how many times as many candidates per second does ``staged`` judge as ``global``, since the candidates of a
stage agree on everything before it?

Varied: the mode, and for ``staged`` the stage. The genomes are those that real searches of both modes ask for, at
equal population, generations and budget; to have them in seconds, these searches are led by the two-step errors. Then
the network rung judges them: the sliced network, compensated on calibration images, on fitness images.

Measured: CPU seconds of one thread per candidate, each stream of genomes with pauses of its own as it has in a search,
all streams in turn in one run, so that a busy machine slows all alike. The first candidates of a stream warm up.
Reported are the mean per candidate, candidates per second, and the ratio of ``staged``, equally many candidates in each
stage, to ``global``. What ``staged`` spends on sensitivity before its first stage is not counted: it does not grow with
the search.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.arguments import positive
from benchmarks.modes import one_core, smoke_networks, versions
from evoprune.observer import SilentObserver
from evoprune.options import SearchOptions
from evoprune.preparation import Preparation, prepare, resolve_device
from evoprune.resolving import resolve_options
from evoprune.session import knowledge_of, make_search, plan_of, recipe_of
from fitness.evaluation import Evaluator
from fitness.network import NETWORK_RUNG
from search_spaces.genome import BoolArray

GLOBAL, STAGED = "global", "staged"
_N_WARM_UP = 2


def genomes_by_stream(source: Mapping[str, Any], options: argparse.Namespace) -> tuple[Any, dict[str, BoolArray]]:
    """Return the recipe of the network rung, and the genomes ``(n, n_genes)`` of ``global`` and of each stage."""
    streams: dict[str, BoolArray] = {}
    preparation: Preparation | None = None
    for mode in (GLOBAL, STAGED):
        resolved = resolve_options(
            SearchOptions,
            {
                **source,
                "mode": mode,
                "budget": str(options.budget),
                "seed": options.seed,
                "fitness": "two-step",
                "population_size": options.population,
                "n_generations": options.generations,
                "n_fitness_images": options.images,
                "n_calibration_images": options.calibration_images,
            },
        )
        preparation = preparation or prepare(resolved, SilentObserver(), device=resolve_device("cpu"))
        streams |= judged_genomes(resolved, preparation)
    return recipe_of(resolved, preparation), streams


def judged_genomes(options: SearchOptions, preparation: Preparation) -> dict[str, BoolArray]:
    """Return the genomes that a search asks its judge for, in order, by stage."""
    search = make_search(options, preparation, knowledge_of(options, preparation))
    evaluator = recipe_of(options, preparation, plan_of(options, preparation).rungs).build()
    asked: dict[str, list[BoolArray]] = {}
    pending: list[BoolArray] = []
    while not search.is_finished:
        request = search.ask()
        if request.role == "judge":
            pending.append(request.genomes)
        if search.tell(evaluator.evaluate(request.genomes, request.rung)):
            stage = search.logbook[-1].get("stage")
            asked.setdefault(GLOBAL if stage is None else f"{STAGED}, {stage}", []).extend(pending)
            pending = []
    return {name: np.concatenate(genomes) for name, genomes in asked.items()}


def measure(recipe: Any, streams: Mapping[str, BoolArray], n_candidates: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each candidate of each stream, at least one, the streams in turn."""
    evaluators: dict[str, Evaluator] = {name: recipe.build() for name in streams}
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    for index in range(n_candidates + _N_WARM_UP):
        for name, genomes in streams.items():
            if index < len(genomes):
                started = time.thread_time()
                (evaluation,) = evaluators[name].evaluate(genomes[index : index + 1], NETWORK_RUNG)
                assert not evaluation.failure, evaluation.failure
                if index >= min(_N_WARM_UP, len(genomes) - 1):
                    seconds[name].append(time.thread_time() - started)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]]) -> float:
    """Return how many times as many candidates per second ``staged`` judges, with equally many in each stage."""
    return mean(seconds[GLOBAL]) / mean(mean(values) for name, values in seconds.items() if name != GLOBAL)


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Return the figures as Markdown."""
    lines = ["| candidates of | s per candidate | candidates per second | n |", "|---|---|---|---|"]
    for name, values in seconds.items():
        lines.append(f"| {name} | {mean(values):.3f} | {1 / mean(values):.2f} | {len(values)} |")
    lines += ["", f"`staged` judges {ratio(seconds):.2f} times as many candidates per second as `global`."]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet56", help="a name of `evoprune list models`")
    parser.add_argument("--weights", type=Path, help="trained weights")
    parser.add_argument("--data", default="cifar10", help="a name of `evoprune list data`")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the dense MACs")
    parser.add_argument("--images", type=positive, default=128, help="fitness images")
    parser.add_argument("--calibration-images", type=positive, default=128)
    parser.add_argument("--population", type=positive, default=8)
    parser.add_argument("--generations", type=int, default=3, help="in each stage, and in `global`")
    parser.add_argument("--candidates", type=positive, default=24, help="measured of each stream, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=int, help="number of the core to use; the last one by default")
    parser.add_argument("--smoke", action="store_true", help="a small network: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/stage_throughput.json"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder, one_core(options.core), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own parts
        source: Mapping[str, Any] = {"model": options.network, "weights": options.weights, "data": options.data}
        if options.smoke:
            (source,) = smoke_networks(Path(folder)).values()
            options.images = options.calibration_images = 16
            options.population, options.generations, options.candidates = 4, 1, 3
        recipe, streams = genomes_by_stream(source, options)
        seconds = measure(recipe, streams, options.candidates)
    document = {
        "benchmark": "stage_throughput",
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "versions": {**versions(), "torch": torch.__version__},
        "device": platform.processor() or platform.machine(),
        "seconds": seconds,
        "ratio": ratio(seconds),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
