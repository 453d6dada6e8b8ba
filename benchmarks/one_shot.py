"""Each criterion alone, as the rule that it was published as: ``python -m benchmarks.one_shot``.

Question: how good is a network that one criterion cuts in one shot, at 0.7, 0.5 and 0.3 of the MACs, and does
Torch-Pruning's implementation of the same criterion choose better or worse channels?

Varied: network, criterion, budget, and what the cut network gets (batch-norm statistics estimated anew, or sequential
compensation). Equal everywhere: calibration images, test images, and the widths, but for the last channels that fill
the budget. Every layer keeps the same share of its channels and residual streams stay whole, as these rules are
published; criteria that say how wide layers should be get a second row with their own widths. Torch-Pruning's
importances are computed by its own code on its own dependency graph for the same groups, and then rank channels in the
same way in the same run. Measured: test accuracy, no gradient step.

Every row is a line of the results file; started again, the benchmark goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.arguments import positive
from benchmarks.priors import Results, Row
from benchmarks.subjects import BUDGETS, SMOKE, WEIGHTS, Subject, load_images, load_subject
from evoprune.knowledge import TWO_STEP, KnowledgeSource
from fitness.criteria import CRITERIA, ChannelKnowledge, draw_seeds
from fitness.data import normalise
from fitness.final_network import final_network
from fitness.options import FitnessOptions
from fitness.precision import gains_by_bfloat16
from fitness.recipe import make_recipe
from search_spaces.errors import EvoPruneError
from search_spaces.genome import BoolArray, FloatArray

SHARES = (0.7, 0.5, 0.3)
ADAPTATIONS = ("recalibrate", "sequential")
OWN_WIDTHS = ", own widths"
PEER = ", Torch-Pruning"
_SEED = 0
_GRADIENT_IMAGES = 128


@dataclass(frozen=True)
class Peer:
    """A criterion of Torch-Pruning: how its importance is made, and whether gradients must be there."""

    make: Callable[[Any], Any]
    needs_gradients: bool = False


#: Torch-Pruning's implementation of our criterion of that name.
PEERS: Mapping[str, Peer] = {
    "bn-gamma": Peer(lambda tp: tp.importance.BNScaleImportance()),
    "fpgm": Peer(lambda tp: tp.importance.FPGMImportance()),
    "l1": Peer(lambda tp: tp.importance.GroupMagnitudeImportance(p=1)),
    "l2": Peer(lambda tp: tp.importance.GroupMagnitudeImportance(p=2)),
    "random": Peer(lambda tp: tp.importance.RandomImportance()),
    "taylor": Peer(lambda tp: tp.importance.GroupTaylorImportance(), needs_gradients=True),
}


class Bench:
    """One network, cut by rules."""

    def __init__(self, subject: Subject, n_calibration: int, n_test: int) -> None:
        self.subject = subject
        self.options = FitnessOptions(
            n_fitness_images=2,
            n_calibration_images=n_calibration,
            final_calibration_images=n_calibration,
            final_augmented_share=0.0,  # all criteria, and every adaptation, see the same images as they are
            final_pair_steps=0,
        )
        self._recipe = make_recipe(subject.model, subject.space, subject.data, self.options, seed=_SEED)
        self._source = KnowledgeSource(self._recipe, subject.model)
        self._n_test = n_test

    def genome(self, knowledge: ChannelKnowledge, share: float) -> BoolArray:
        """Return the rule's choice ``(n_genes,)`` at ``share`` of the MACs: its first draw, which has no noise."""
        rng = np.random.default_rng(_SEED)
        return draw_seeds(knowledge, self.subject.space, rng=rng, n=1, budgets={"macs": share})[0]

    def variants(self, name: str) -> dict[str, ChannelKnowledge]:
        """Return what ``name`` knows, by the name of the row: at equal widths, and with its own where it has any.

        Raises:
            EvoPruneError: It cannot be computed.
        """
        found = self._source.knowledge(name)
        if not isinstance(found, ChannelKnowledge):
            raise found
        rules = {}
        if found.roles - {"family", "widths"}:
            rules[name] = replace(found, is_global=False, widths=None, family=None)
        if found.family is not None:
            rules[name + OWN_WIDTHS] = ChannelKnowledge(found.sizes, family=found.family)
        elif found.is_global or found.widths is not None:
            rules[name + OWN_WIDTHS] = found
        return rules

    def measure(self, genome: BoolArray) -> Row:
        """Return cost and accuracies of one cut network."""
        subject = self.subject
        row: Row = {"macs": float(subject.space.macs(genome[None])[0] / subject.space.macs_dense)}
        for adaptation in ADAPTATIONS:
            options = replace(self.options, compensation=adaptation)  # type: ignore[arg-type]  # both are valid names
            network = final_network(subject.model, subject.space, genome, subject.data, options, seed=_SEED)
            row[adaptation] = self.accuracy(network)
        return row

    @cached_property
    def _test(self) -> tuple[Tensor, Tensor]:
        data = self.subject.data
        n = min(self._n_test, len(data.test))
        batch = data.test.take(np.random.default_rng(_SEED).permutation(len(data.test))[:n])
        dtype = torch.bfloat16 if gains_by_bfloat16("cpu") else torch.float32
        images = normalise(batch.images, data.mean, data.std).to(dtype)
        return images.contiguous(memory_format=torch.channels_last), batch.labels

    def accuracy(self, network: nn.Module) -> float:
        """Return the share of test images that ``network`` gets right."""
        images, labels = self._test
        cast = copy.deepcopy(network).eval().to(images.dtype)
        with torch.inference_mode():
            logits = torch.cat([cast(part) for part in images.split(256)])
        return float((logits.argmax(dim=1) == labels).double().mean())

    # ------------------------------------------------------------------ Torch-Pruning

    def peer_knowledge(self, name: str) -> ChannelKnowledge:
        """Return Torch-Pruning's importances of the same groups.

        Raises:
            LookupError: It finds other groups than this space has.
        """
        import torch_pruning

        peer, space = PEERS[name], self.subject.space
        model = copy.deepcopy(self.subject.model).requires_grad_(True)
        if peer.needs_gradients:
            self._backward(model)
        torch.manual_seed(_SEED)
        paths = {module: path for path, module in model.named_modules()}
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        groups = {layer: group for group in space.groups for layer in group.layers}
        scores: dict[str, FloatArray] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(model, torch.zeros(1, *self.subject.data.input_shape))
            importance = peer.make(torch_pruning)
            found = graph.get_all_groups(ignored_layers=[last], root_module_types=[nn.Conv2d, nn.Linear])
            for coupled in found:
                path = paths[coupled[0].dep.target.module]
                if path in groups:
                    scores[groups[path].name] = importance(coupled).detach().double().numpy()
        whole = np.zeros(space.n_genes)
        for group in space.groups:
            if scores.get(group.name, np.empty(0)).shape != (group.size,):
                raise LookupError(f"Torch-Pruning has no importance for the {group.size} channels of {group.name}")
            whole[group.start : group.stop] = scores[group.name]
        return ChannelKnowledge(tuple(group.size for group in space.groups), scores=whole)

    def _backward(self, model: nn.Module) -> None:
        inputs = self._recipe.calibration_inputs().float()[:_GRADIENT_IMAGES]
        for part in inputs.split(64):
            logits = model(part)
            functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum").backward()


def rules_of(bench: Bench, criteria: Sequence[str], *, with_peer: bool) -> dict[str, ChannelKnowledge | str]:
    """Return rules by the name of their row, or why there is none."""
    rules: dict[str, ChannelKnowledge | str] = {}
    for name in criteria:
        try:
            rules.update(bench.variants(name))
        except EvoPruneError as error:
            rules[name] = str(error)
        if with_peer and name in PEERS:
            try:
                rules[name + PEER] = bench.peer_knowledge(name)
            except Exception as error:  # a peer may fail in any way; the table says how
                rules[name + PEER] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return rules


def summary(rows: Sequence[Row], shares: Sequence[float]) -> str:
    """Return the table of one network, Markdown; accuracies in percent: recalibrated / compensated."""
    lines = [
        "| rule | " + " | ".join(f"{share:g} of the MACs" for share in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for name in dict.fromkeys(row["rule"] for row in rows):
        cells = []
        for share in shares:
            row = next((row for row in rows if (row["rule"], row["share"]) == (name, share)), {"error": ""})
            cells.append(row["error"] if "error" in row else " / ".join(f"{100 * row[way]:.2f}" for way in ADAPTATIONS))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(
    rows: Sequence[Row], shares: Sequence[float], dense: Mapping[str, float], conditions: Mapping[str, Any]
) -> str:
    """Return the documentation page."""
    lines = [
        "# Each criterion as a rule, in one shot",
        "",
        (
            "`python -m benchmarks.one_shot`: test accuracy in percent after one cut, no gradient step: *batch-norm "
            "statistics estimated anew / consumers' weights re-solved (sequential compensation)*. Every layer keeps "
            "the same share of its channels, residual streams stay whole; rows with *own widths* let the criterion "
            "choose them. *Torch-Pruning*: its importances at the same widths, its cut networks treated as ours. "
            "`random` is what any rule has to beat."
        ),
        "",
        "Conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()) + ".",
        "",
    ]
    for network, accuracy in dense.items():
        of_network = [row for row in rows if row["network"] == network]
        lines += [f"## {network}, {100 * accuracy:.2f} % dense", "", summary(of_network, shares), ""]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet56,vgg16", help=f"of {', '.join(BUDGETS)}")
    parser.add_argument("--criteria", help="names separated by commas; all by default")
    parser.add_argument("--calibration", type=positive, default=256, help="calibration images")
    parser.add_argument("--test", type=positive, default=2000, help="test images, the same ones for every rule")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the safetensors files")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--smoke", action="store_true", help="a tiny untrained network: a check that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/one_shot.jsonl"))
    parser.add_argument("--docs", type=Path, help="also write the page to this Markdown file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut and measure what is missing, and print the tables."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    everything = (TWO_STEP, *(name for name in CRITERIA if name != TWO_STEP))
    criteria: Sequence[str] = options.criteria.split(",") if options.criteria else everything
    networks, shares = options.networks.split(","), SHARES
    n_calibration, n_test = options.calibration, options.test
    if options.smoke:
        criteria, networks, shares = (
            options.criteria.split(",") if options.criteria else ("l1", "bn-gamma"),
            [SMOKE],
            (0.5,),
        )
        n_calibration, n_test = 8, 16
    data = load_images(options.data, smoke=options.smoke)
    results, rows, dense = Results(options.out), [], {}
    for network in networks:
        subject = load_subject(network, data, weights=options.weights, smoke=options.smoke, whole_streams=True)
        bench = Bench(subject, n_calibration, n_test)
        dense[network] = bench.accuracy(subject.model)
        setting = {"network": network, "n_calibration": n_calibration, "n_test": n_test}
        for name, knowledge in rules_of(bench, criteria, with_peer=not options.no_peer).items():
            for share in shares:
                started = time.perf_counter()
                key: Row = {**setting, "rule": name, "share": share}
                row = results.find(key)
                if row is None:
                    failed = isinstance(knowledge, str)
                    row = {**key, **({"error": knowledge} if failed else bench.measure(bench.genome(knowledge, share)))}
                    results.add(row)
                rows.append(row)
                print(f"{row} ({time.perf_counter() - started:.1f} s)", flush=True)
    for network in networks:
        print(f"\n{network}\n{summary([row for row in rows if row['network'] == network], shares)}")
    if options.docs:
        conditions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": options.threads,
            "calibration images": n_calibration,
            "test images": n_test,
        }
        options.docs.write_text(page(rows, shares, dense, conditions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
