"""How many candidates a second: ``python -m benchmarks.fitness_throughput``.

Question: how much faster is judging a candidate as a sliced, folded, compensated program than the way people do it
(copy the network, cut it, recalibrate its batch norms, evaluate in float32)?

Varied: the network (ResNet-56 at 0.5 of its MACs, VGG-16 at 0.3) and the way. Measured: the median time per candidate
over several genomes after one warm-up, on equal images and equal networks, all ways in turn in one run; the network
rung's share of the bf16 (or fp32) matrix-product rate that the machine reaches in the same run, as kept MACs x images /
seconds. Weights do not matter for speed and are random.

Every way uses the same number of threads; the search itself runs one candidate per core.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.arguments import positive
from fitness.network import NETWORK_RUNG, NetworkEvaluator, StageEvaluator
from fitness.options import FitnessOptions
from fitness.precision import gains_by_bfloat16
from fitness.program import Program
from fitness.recalibration import recalibrate
from fitness.statistics import SEARCH_STATISTICS, collect_statistics
from fitness.two_step import TwoStep
from search_spaces import SearchSpace, prune_model
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise

SEED = 0
NETWORKS = {"resnet56": 0.5, "vgg16": 0.3}


def median_seconds(calls: Sequence[Callable[[], object]]) -> tuple[float, float]:
    """Return median and spread (largest less smallest) of the seconds of ``calls``, the first of which warms up."""
    seconds = []
    for call in calls:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), max(seconds[1:]) - min(seconds[1:])


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the MACs per second of a large matrix product."""
    size = 2048
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds, _ = median_seconds([lambda: left @ right] * 12)
    return size**3 / seconds


def naive(model: nn.Module, space: SearchSpace, genome: BoolArray, images: Tensor) -> Tensor:
    """Judge the usual way: deep copy, cut, recalibrate, evaluate in float32."""
    small = prune_model(copy.deepcopy(model), space, genome)
    recalibrate(small, images.split(256))
    with torch.inference_mode():
        return torch.cat([small(part) for part in images.split(256)])


def naive_peer(model: nn.Module, ratio: float, images: Tensor) -> Tensor:
    """The same with Torch-Pruning at a uniform channel ratio, where it can cut the network."""
    import torch_pruning

    small = copy.deepcopy(model)
    example = torch.zeros(1, 3, 32, 32)
    last = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
    torch_pruning.pruner.BasePruner(
        small,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[last],
    ).step()
    recalibrate(small, images.split(256))
    with torch.inference_mode():
        return torch.cat([small(part) for part in images.split(256)])


def measure(name: str, budget: float, n_images: int, n_genomes: int) -> dict[str, Any]:
    """Return one row per way of judging ``name`` at ``budget`` of its MACs."""
    model = build_model(name).eval().requires_grad_(False)
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 32, 32))
    rng = np.random.default_rng(SEED)
    genomes = space.repair(
        space.all_ones(n_genomes + 1),
        rng=rng,
        macs_budget=budget,
        scores=rng.random((n_genomes + 1, space.n_genes)) + 9,
    )
    plain = torch.randn(n_images, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if gains_by_bfloat16("cpu") else torch.float32
    images = plain.to(dtype)
    labels = functional.one_hot(torch.arange(n_images) % 10, 10).float()
    program = Program(space, named_tensors(model))
    options = FitnessOptions(compensation="none")
    known = collect_statistics(program, images[:256], SEARCH_STATISTICS)
    two_step = TwoStep(program, known)

    def judging(compensation: str) -> NetworkEvaluator:
        chosen = FitnessOptions(**{**vars(options), "compensation": compensation})
        return NetworkEvaluator(program, images, labels, images[:256], chosen, statistics=known)

    plainly, static, sequential = judging("none"), judging("static"), judging("sequential")
    stage_start = space.groups[len(space.groups) * 2 // 3].start
    base = genomes[0]
    staged = np.repeat(base[None], n_genomes + 1, axis=0)
    staged[:, stage_start:] = genomes[:, stage_start:]
    open_genes = np.arange(stage_start, space.n_genes)
    stage_plain, stage_sequential = (StageEvaluator(e, base, open_genes) for e in (plainly, sequential))
    population = np.repeat(genomes, -(-4096 // len(genomes)), axis=0)[:4096]

    ways: dict[str, list[Callable[[], object]]] = {
        "naive": [lambda g=g: naive(model, space, g, plain) for g in genomes],
        "network rung, as sliced": [lambda g=g: plainly.evaluate(g[None], NETWORK_RUNG) for g in genomes],
        "network rung, static compensation": [lambda g=g: static.evaluate(g[None], NETWORK_RUNG) for g in genomes],
        "network rung, sequential compensation": [
            lambda g=g: sequential.evaluate(g[None], NETWORK_RUNG) for g in genomes
        ],
        "last third open, prefix reused": [lambda g=g: stage_plain.evaluate(g[None], NETWORK_RUNG) for g in staged],
        "last third open, sequential, prefix reused": [
            lambda g=g: stage_sequential.evaluate(g[None], NETWORK_RUNG) for g in staged
        ],
        "E1 (4,096 at once)": [lambda: two_step.e1(population)] * 4,
    }
    peer_fails = ""
    try:
        naive_peer(model, 1 - budget**0.5, plain[:32])
        ways["naive, Torch-Pruning"] = [lambda: naive_peer(model, 1 - budget**0.5, plain)] * (n_genomes + 1)
    except Exception as error:  # a peer may fail in any way; the table says how
        peer_fails = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
    rows = {}
    for way, calls in ways.items():
        seconds, spread = median_seconds(calls)
        if way.startswith("E1"):
            seconds, spread = seconds / len(population), spread / len(population)
        rows[way] = {"seconds": seconds, "spread": spread}
    kept = float(np.median(space.macs(genomes))) * n_images
    rate = matmul_rate(dtype)
    share = kept / rows["network rung, as sliced"]["seconds"] / rate
    return {"rows": rows, "matmul_macs_per_s": rate, "share_of_matmul_rate": share, "peer_fails": peer_fails}


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| network | way | ms per candidate | spread | candidates per second | times naive |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        base = result["rows"]["naive"]["seconds"]
        for way, row in result["rows"].items():
            seconds = row["seconds"]
            lines.append(
                f"| {name} | {way} | {seconds * 1e3:.4g} | {row['spread'] * 1e3:.2g} | {1 / seconds:.4g} "
                f"| {base / seconds:.3g} |"
            )
        lines.append(f"| {name} | share of the matrix-product rate: {result['share_of_matmul_rate']:.0%} | | | | |")
        if result["peer_fails"]:
            lines.append(f"| {name} | Torch-Pruning cannot cut it: {result['peer_fails']} | | | | |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=1024)
    parser.add_argument("--genomes", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--smoke", action="store_true", help="few images and genomes: a check that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/fitness_throughput.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    n_images, n_genomes = (64, 1) if options.smoke else (options.images, options.genomes)
    results = {name: measure(name, budget, n_images, n_genomes) for name, budget in NETWORKS.items()}
    document = {
        "benchmark": "fitness_throughput",
        "config": {"images": n_images, "genomes": n_genomes, "threads": options.threads, "seed": SEED},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": platform.processor() or platform.machine(),
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
