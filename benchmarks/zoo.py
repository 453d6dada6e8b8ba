"""Which networks can be cut, how much of them, and is it right: ``python -m benchmarks.zoo``.

Question: on how many architectures that people use does a search space hold what it promises, and how does the
best-known pruning library do on the same networks?

Varied: the architecture (torchvision families, timm families), all with random weights, batch size 1. Measured per
network: seconds to trace and verify; genes; share of convolution output channels and of MACs in layers that a gene
changes; over random genomes at MACs budgets 0.3 to 0.9 the largest relative difference of masked and cut logits (in
float64, so that a difference is an error and not rounding); and whether predicted MACs and parameters equal an
independent recount.
Budgets under the reachable minimum are skipped and counted. Beside it, in the same run, Torch-Pruning at channel ratio
0.5: does it cut, does the result run, how long does it take.

Each network runs once; times are single measurements and depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.arguments import positive
from search_spaces import SearchSpace, count_macs, masked, prune_model
from search_spaces.cost import whole_limit
from search_spaces.errors import TraceError
from search_spaces.time_limit import time_limit
from search_spaces.verification import make_generic, relative_difference

SEED = 0
N_GENOMES = 8
TOLERANCE = 1e-4
PEER_TIME_LIMIT_S = 120.0

#: Networks and image sizes. Every classification CNN family of torchvision is here.
TORCHVISION = {
    "alexnet": 224,
    "vgg11_bn": 224,
    "vgg16": 224,
    "resnet18": 224,
    "resnet50": 224,
    "resnext50_32x4d": 224,
    "wide_resnet50_2": 224,
    "densenet121": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "mobilenet_v2": 224,
    "mobilenet_v3_small": 224,
    "mobilenet_v3_large": 224,
    "mnasnet1_0": 224,
    "shufflenet_v2_x1_0": 224,
    "squeezenet1_1": 224,
    "efficientnet_b0": 224,
    "efficientnet_v2_s": 224,
    "regnet_x_400mf": 224,
    "regnet_y_400mf": 224,
    "convnext_tiny": 224,
}
TIMM = {
    "cspresnet50": 128,
    "darknet17": 128,
    "deit_tiny_patch16_224": 224,
    "densenet121": 128,
    "dla34": 128,
    "dm_nfnet_f0": 128,
    "dpn48b": 128,
    "ecaresnet26t": 128,
    "ese_vovnet19b_dw": 128,
    "fbnetc_100": 128,
    "gernet_s": 128,
    "ghostnet_100": 128,
    "hardcorenas_a": 128,
    "hgnetv2_b0": 128,
    "hrnet_w18_small": 128,
    "inception_v4": 160,
    "lcnet_050": 128,
    "convnextv2_atto": 128,
    "mixnet_s": 128,
    "mobilenetv4_conv_small": 128,
    "mobileone_s0": 128,
    "nf_resnet26": 128,
    "poolformer_s12": 128,
    "regnetz_b16": 128,
    "repvgg_a0": 128,
    "res2net50_26w_4s": 128,
    "resnest14d": 128,
    "resnet26d": 128,
    "rexnet_100": 128,
    "selecsls42": 128,
    "seresnext26d_32x4d": 128,
    "skresnet18": 128,
    "tf_efficientnet_lite0": 128,
    "tf_efficientnetv2_b0": 128,
    "xception41": 128,
}
SMOKE = {"torchvision:squeezenet1_1": 64, "torchvision:mobilenet_v3_small": 64, "timm:resnet10t": 64}


@dataclass(frozen=True)
class PeerRow:
    """What Torch-Pruning does on one network: ``status`` is ``cuts and runs`` or the first line of its error."""

    status: str
    seconds: float
    macs_ratio: float | None


@dataclass(frozen=True)
class ZooRow:
    """Measurements of one network; shares are in [0, 1], ``largest_difference`` is relative to the largest logit."""

    network: str
    image_size: int
    error: str | None
    trace_s: float
    n_genes: int
    n_groups: int
    channels_share: float
    macs_share: float
    macs_dense: int
    least_budget: float
    n_compared: int
    n_skipped: int
    largest_difference: float
    counts_exact: bool
    frozen: dict[str, int]
    peer: PeerRow | None


def build(network: str) -> nn.Module:
    """Return ``torchvision:<name>`` or ``timm:<name>`` with random weights, in evaluation mode."""
    source, name = network.split(":")
    if source == "torchvision":
        from torchvision.models import get_model

        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return get_model(name, weights=None, **options).eval()
    import timm

    return timm.create_model(name, pretrained=False).eval()


def channels_share(space: SearchSpace) -> float:
    """Return the share of convolution output channels (depthwise included) that a gene removes."""
    total = prunable = 0
    seen: set[str] = set()
    convolutions = {operation.name for operation in space.graph.operations if operation.op.startswith("conv")}
    for layer in space.layers:
        if layer.operation not in convolutions or layer.weight is None or layer.weight in seen:
            continue
        seen.add(layer.weight)
        genes = space.slot_genes[layer.weight, 1 if layer.is_transposed and not layer.is_depthwise else 0]
        total += len(genes)
        prunable += int((genes >= 0).sum())
    return prunable / total if total else 0.0


def compare(model: nn.Module, inputs: Sequence[Tensor], space: SearchSpace) -> tuple[int, int, float, bool]:
    """Return ``(n_compared, n_skipped, largest difference, counts are exact)`` over random genomes."""
    model = model.double()
    inputs = [value.double() for value in inputs]
    make_generic(model, inputs)
    rng = np.random.default_rng(SEED)
    worst, exact, compared, skipped = 0.0, True, 0, 0
    for budget in np.linspace(0.3, 0.9, N_GENOMES):
        if not space.n_genes or whole_limit(budget, space.macs_dense) < space.macs_range[0]:
            skipped += 1
            continue
        genome = space.sample(rng=rng, n=1, macs_budget=float(budget))[0]
        with torch.no_grad():
            with masked(model, space, genome) as dense:
                expected = dense(*inputs)
            small = prune_model(model, space, genome)
            worst = max(worst, relative_difference(expected, small(*inputs)))
        exact &= count_macs(small, inputs) == int(space.macs(genome[None])[0])
        exact &= sum(p.numel() for p in small.parameters()) == int(space.n_params(genome[None])[0])
        compared += 1
    return compared, skipped, worst, bool(exact)


def measure_peer(network: str, example: Tensor) -> PeerRow:
    """Return what Torch-Pruning makes of the network at channel ratio 0.5, with the classifier left alone."""
    import torch_pruning as tp

    model = build(network)
    dense = count_macs(model, [example])
    classifier = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _n_out(m) == 1000]
    start = time.perf_counter()
    try:
        with time_limit(PEER_TIME_LIMIT_S, "Torch-Pruning"):
            importance = tp.importance.MagnitudeImportance(p=2)
            pruner = tp.pruner.BasePruner(model, example, importance, pruning_ratio=0.5, ignored_layers=classifier)
            pruner.step()
            with torch.no_grad():
                model.eval()(example)
        ratio = count_macs(model, [example]) / dense
        status = "cuts and runs" if ratio < 0.999 else "runs, nothing cut"
        return PeerRow(status, time.perf_counter() - start, ratio)
    except TraceError:
        return PeerRow(f"no end within {PEER_TIME_LIMIT_S:g} s", time.perf_counter() - start, None)
    except Exception as error:  # a peer may fail in any way; the table says how
        first = (str(error).splitlines() or [""])[0]
        return PeerRow(f"{type(error).__name__}: {first}"[:120], time.perf_counter() - start, None)


def _n_out(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]  # torch types attributes of modules as Tensor | Module


def measure(network: str, image_size: int, with_peer: bool) -> ZooRow:
    """Return the measurements of one network."""
    torch.manual_seed(SEED)
    example = torch.randn(1, 3, image_size, image_size)
    model = build(network)
    peer = measure_peer(network, example) if with_peer else None
    start = time.perf_counter()
    try:
        space = SearchSpace.trace(model, example, time_limit_s=300)
    except Exception as error:  # likewise the network under test
        return ZooRow(
            network, image_size, f"{type(error).__name__}: {error}", time.perf_counter() - start,
            0, 0, 0.0, 0.0, 0, 1.0, 0, 0, 0.0, False, {}, peer,
        )  # fmt: skip
    trace_s = time.perf_counter() - start
    frozen: dict[str, int] = {}
    for item in space.frozen:
        frozen[item.reason] = frozen.get(item.reason, 0) + item.n_channels
    compared, skipped, worst, exact = compare(model, [example], space)
    return ZooRow(
        network=network,
        image_size=image_size,
        error=None,
        trace_s=trace_s,
        n_genes=space.n_genes,
        n_groups=len(space.groups),
        channels_share=channels_share(space),
        macs_share=space.macs_cost.prunable_share(space.lattice.sizes),
        macs_dense=space.macs_dense,
        least_budget=space.macs_range[0] / max(space.macs_dense, 1),
        n_compared=compared,
        n_skipped=skipped,
        largest_difference=worst,
        counts_exact=exact,
        frozen=frozen,
        peer=peer,
    )


HEADER = (
    "network", "input", "trace s", "genes", "groups", "conv channels", "MACs", "compared", "skipped", "largest diff",
    "counts", "Torch-Pruning 1.6.1", "its s",
)  # fmt: skip


def cells(row: ZooRow) -> tuple[str, ...]:
    """Return the table cells of one row."""
    peer = row.peer
    peer_cells = ("-", "-") if peer is None else (peer.status[:60].replace("|", "/"), f"{peer.seconds:.1f}")
    if row.error is not None:
        error = row.error[:80].replace("|", "/")
        return (row.network, str(row.image_size), f"{row.trace_s:.1f}", f"error: {error}", *["-"] * 7, *peer_cells)
    return (
        row.network,
        str(row.image_size),
        f"{row.trace_s:.1f}",
        f"{row.n_genes:,}",
        str(row.n_groups),
        f"{row.channels_share:.3f}",
        f"{row.macs_share:.3f}",
        str(row.n_compared),
        str(row.n_skipped),
        f"{row.largest_difference:.1e}" if row.n_compared else "-",
        ("exact" if row.counts_exact else "WRONG") if row.n_compared else "-",
        *peer_cells,
    )


def render(rows: Sequence[ZooRow]) -> str:
    """Return the rows as a Markdown table."""
    table = [HEADER, *[cells(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def page(rows: Sequence[ZooRow], conditions: dict[str, Any]) -> str:
    """Return the documentation page with the table and what stays frozen in each network."""
    traced = [row for row in rows if row.error is None]
    compared = [row for row in traced if row.n_compared]
    good = [row for row in compared if row.largest_difference <= TOLERANCE and row.counts_exact]
    peers = [row for row in rows if row.peer is not None]
    cut = [row for row in peers if row.peer is not None and row.peer.status == "cuts and runs"]
    intro = (
        f"`python -m benchmarks.zoo`: {len(traced)} of {len(rows)} networks traced. In {len(compared)} of these at "
        f"least one of the budgets can be reached; there, cut networks equal the masked ones within {TOLERANCE:g} "
        f"relative and MACs and parameters equal an independent count in {len(good)} of {len(compared)}. "
        f"Torch-Pruning 1.6.1 cuts and runs {len(cut)} of {len(peers)} in the same run; "
        "whether what it cut still computes the same is not "
        "checked."
    )
    legend = (
        "*conv channels*: share of convolution output channels that a gene removes; *MACs*: share of the MACs that lie "
        "in layers which a gene changes; *compared*: random genomes at MACs budgets 0.3 to 0.9; *skipped*: those "
        "budgets that lie under the reachable minimum; *largest diff*: of masked and cut logits, relative, in float64."
    )
    told = "Conditions: " + ", ".join(f"{key} {value}" for key, value in conditions.items())
    told += ". Each network ran once, and seconds depend on the machine and on what else it did."
    lines = [
        *("# Networks that can be cut", "", intro, "", legend, "", told, ""),
        render(rows),
        "",
        "## What stays, and why",
        "",
    ]
    for row in rows:
        reasons = "; ".join(
            f"{n:,} channels: {reason}" for reason, n in sorted(row.frozen.items(), key=lambda x: -x[1])[:4]
        )
        lines.append(f"* `{row.network}`: {row.error or reasons or 'nothing'}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 when a network differs or is miscounted."""
    parser = argparse.ArgumentParser(description="Which networks can be cut, and is it right?")
    parser.add_argument("--smoke", action="store_true", help="three small networks, seconds")
    parser.add_argument("--only", default="*", help="glob on names such as timm:*")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/zoo.json"))
    parser.add_argument("--docs", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--threads", type=positive, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    networks = SMOKE if options.smoke else {
        **{f"torchvision:{name}": size for name, size in TORCHVISION.items()},
        **{f"timm:{name}": size for name, size in TIMM.items()},
    }  # fmt: skip
    with_peer = not options.no_peer and _installed("torch_pruning")
    rows: list[ZooRow] = []
    conditions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("torchvision", "timm", "torch_pruning")},
        "device": "CPU",
        "threads": options.threads,
        "seed": SEED,
    }
    for network, size in networks.items():
        if not fnmatchcase(network, options.only) or not _installed(network.split(":")[0]):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = measure(network, size, with_peer)
        rows.append(row)
        print(" | ".join(cells(row)), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        document = {"conditions": conditions, "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print("\n" + render(rows))
    if options.docs:
        options.docs.write_text(page(rows, conditions))
    wrong = [row.network for row in rows if row.error or not row.counts_exact or row.largest_difference > TOLERANCE]
    if wrong:
        print(f"\nnot as promised: {', '.join(wrong)}")
    return 1 if wrong else 0


def _installed(name: str) -> bool:
    return _version(name) != "not installed"


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
