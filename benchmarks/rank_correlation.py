"""Which rung ranks candidates as the truth does: ``python -m benchmarks.rank_correlation``.

Question: how well does every rung of the ladder, by every objective, rank genomes, and what does it cost?

Varied: the network (ResNet-56, VGG-16), the MACs budget (0.3, 0.5, 0.7), and where a genome comes from: at random
within the budget, or near the greedy solution of error per MAC with the groups' importance varied, as the genomes of a
search are. Measured: Spearman's rank correlation of each rung's figure with four truths, within each budget and
averaged over the budgets: cross-entropy and error on the test images of the network as it would be handed back, and the
same after a short finetuning; and the median seconds per genome of one thread.

The truth is read from the test images, and from nothing else: this is a measurement of the rungs, which never see them.
A search may not do so. Every genome is appended to ``rank_correlation-<network>.jsonl`` once it is done: an interrupted
benchmark goes on where it was, and a second process may do the other network.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from benchmarks.arguments import positive
from evoprune.finetuning import FinetuningRecipe, finetune, peak_learning_rate
from fitness.data import ImageBatch, ImageData, load_data, normalise
from fitness.data.images import MEAN, STD, InMemorySplit, in_memory_data
from fitness.distillation import DISTILLATION_RUNG
from fitness.evaluation import Evaluation
from fitness.final_network import final_network
from fitness.gradients import autocast, first_logits
from fitness.ladder import SHIPPED_RUNG, build_ladder, fewer_images_rung
from fitness.network import NETWORK_RUNG
from fitness.options import OBJECTIVES, FitnessOptions
from fitness.recipe import EvaluatorRecipe, make_recipe
from fitness.seeding import two_step_scores, width_seeds
from fitness.two_step import E1_RUNG, E2_RUNG
from fitness.wavelet import WAVELET_RUNG
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, FloatArray, genome_digest
from search_spaces.models import build_model, load_weights
from search_spaces.verification import randomise

SEED = 0
BUDGETS = (0.3, 0.5, 0.7)
KINDS = ("random", "near greedy")
#: Name of the network, and of its weights below ``--weights``.
NETWORKS = {"resnet56": "resnet56_cifar10.safetensors", "vgg16": "vgg16_bn_cifar10.safetensors"}
TRUTHS = {
    "cross_entropy": "cross-entropy",
    "error": "error",
    "finetuned_cross_entropy": "cross-entropy, finetuned",
    "finetuned_error": "error, finetuned",
}
#: Figures of an evaluation that passes images forward; ``kl`` is at the temperature of the fitness options.
_FIGURES = ("kl", "kl_plain", *(name for name in OBJECTIVES if name != "kl"))


@dataclass(frozen=True)
class Settings:
    """What is varied by the command line.

    Attributes:
        n_genomes: Per network.
        finetune_steps: Of the second truth, at 128 images each.
        distill_steps: Of the distillation rung; 0 leaves it out.
        fitness: How rungs judge.
        n_test_images: How many tell the truth; None for all.
        n_truth_images: Calibration images of the networks that tell it; None for as many as are handed back with.
    """

    n_genomes: int
    finetune_steps: int
    distill_steps: int
    fitness: FitnessOptions
    n_test_images: int | None = None
    n_truth_images: int | None = None

    @property
    def shipping(self) -> FitnessOptions:
        """How the networks are solved that tell the truth."""
        if self.n_truth_images is None:
            return self.fitness
        return replace(self.fitness, final_calibration_images=self.n_truth_images)

    def key(self) -> dict[str, Any]:
        """Return what rows of the same table agree in."""
        return {
            "finetune_steps": self.finetune_steps,
            "distill_steps": self.distill_steps,
            "truth_images": self.shipping.final_calibration_images,
            "test_images": self.n_test_images,
        }


class Subject:
    """One network with its images, its genomes and its rungs."""

    def __init__(self, name: str, model: nn.Module, data: ImageData, settings: Settings) -> None:
        """Trace the network and gather what depends on it alone."""
        self.name, self.model, self.data, self.settings = name, model, data, settings
        self.space = SearchSpace.trace(model, torch.zeros(1, *data.input_shape))
        self.recipe = self._recipe(E1_RUNG)
        self.scores: FloatArray = two_step_scores(self.recipe)
        self.rungs = self._rungs()

    def _recipe(self, *rungs: str, **changes: Any) -> EvaluatorRecipe:
        options = replace(self.settings.fitness, **changes)
        return make_recipe(self.model, self.space, self.data, options, seed=SEED, rungs=rungs)

    def _rungs(self) -> dict[str, Callable[[BoolArray], Evaluation]]:
        options = self.settings.fitness
        wanted = {
            "E1": (E1_RUNG, {}),
            "E2": (E2_RUNG, {}),
            "wavelet": (WAVELET_RUNG, {}),
            "network as sliced": (NETWORK_RUNG, {"compensation": "none"}),
            "network, merged": (NETWORK_RUNG, {"compensation": "merge"}),
            "network, static compensation": (NETWORK_RUNG, {"compensation": "static"}),
        }
        for n_images in (options.n_fitness_images // 4, options.n_fitness_images // 2):
            wanted[f"network, {n_images} images"] = (fewer_images_rung(n_images), {})
        wanted[f"network, {options.n_fitness_images} images"] = (NETWORK_RUNG, {})
        wanted["as shipped"] = (SHIPPED_RUNG, {})
        if self.settings.distill_steps:
            label = f"distilled, {self.settings.distill_steps} steps"
            wanted[label] = (DISTILLATION_RUNG, {"n_distillation_steps": self.settings.distill_steps})
        rungs: dict[str, Callable[[BoolArray], Evaluation]] = {}
        for label, (rung, changes) in wanted.items():
            evaluator = build_ladder(self._recipe(rung, **changes), self.model)
            rungs[label] = lambda genome, e=evaluator, r=rung: e.evaluate(genome[None], r)[0]
        return rungs

    def genome(self, index: int) -> tuple[BoolArray, float, str]:
        """Return genome ``index`` with its budget and kind; it depends on nothing but the index."""
        budget, kind = BUDGETS[index % len(BUDGETS)], KINDS[index // len(BUDGETS) % len(KINDS)]
        rng = np.random.default_rng([SEED, index])
        if kind == "random":
            return self.space.sample(rng=rng, n=1, macs_budget=budget)[0], budget, kind
        row = 3 + int(rng.integers(3))  # the first three are the plain greedy solutions
        return width_seeds(self.space, self.scores, rng=rng, n=6, budgets={"macs": budget})[row], budget, kind

    def row(self, index: int) -> dict[str, Any]:
        """Return everything that is measured of genome ``index``."""
        genome, budget, kind = self.genome(index)
        figures = {label: _figures(judge(genome)) for label, judge in self.rungs.items()}
        return {
            "network": self.name,
            "setting": self.settings.key(),
            "index": index,
            "digest": genome_digest(genome),
            "budget": budget,
            "kind": kind,
            "macs": int(self.space.macs(genome[None])[0]),
            "rungs": figures,
            "truth": self.truth(genome),
        }

    def truth(self, genome: BoolArray) -> dict[str, float]:
        """Return what the test images say of the network as it would be handed back, and after a short finetuning."""
        small = final_network(self.model, self.space, genome, self.data, self.settings.shipping, seed=SEED)
        found = self._on_test_images(small)
        if self.settings.finetune_steps:
            finetuned = finetune(
                small,
                self.model,
                self._lessons(),
                seed=SEED,
                recipe=FinetuningRecipe(
                    epochs=1, batch_size=_FINETUNE_BATCH, learning_rate=peak_learning_rate(epochs=1)
                ),
            )
            after = self._on_test_images(finetuned.model)
            found |= {f"finetuned_{name}": value for name, value in after.items()}
        return found

    def _lessons(self) -> ImageData:
        """Return the data with as many training images as the finetuning takes, and validation images in name only."""
        n = min(self.settings.finetune_steps * _FINETUNE_BATCH, len(self.data.train))
        rng = np.random.default_rng([SEED, 1])
        batch = self.data.train.take(np.sort(rng.choice(len(self.data.train), n, replace=False)))
        few = self.data.val.take(np.arange(min(8, len(self.data.val))))
        return replace(self.data, train=_split(batch), val=_split(few))

    def _on_test_images(self, model: nn.Module) -> dict[str, float]:
        test, n_wrong, loss = self.data.test, 0, 0.0
        n = min(self.settings.n_test_images or len(test), len(test))
        with torch.inference_mode(), autocast(torch.device("cpu")):
            for start in range(0, n, 256):
                batch = test.take(np.arange(start, min(start + 256, n)))
                logits = first_logits(model(normalise(batch.images, self.data.mean, self.data.std)))
                loss += float(functional.cross_entropy(logits, batch.labels, reduction="sum"))
                n_wrong += int((logits.argmax(dim=1) != batch.labels).sum())
        return {"cross_entropy": loss / n, "error": n_wrong / n}


_FINETUNE_BATCH = 128


def _split(batch: ImageBatch) -> InMemorySplit:
    return InMemorySplit(batch.images, batch.labels)


def _figures(evaluation: Evaluation) -> dict[str, float | str]:
    if evaluation.failure:
        return {"failure": evaluation.failure, "seconds": evaluation.seconds}
    named = {name: evaluation.metrics[name] for name in _FIGURES if name in evaluation.metrics}
    return {**(named or {"objective": evaluation.objective}), "seconds": evaluation.seconds}


def done(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of ``settings`` in ``path``; a line that an interrupted write has cut off is passed over."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(_parsed, lines) if row is not None and row["setting"] == settings.key()]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row


def measure(subject: Subject, path: Path) -> None:
    """Append to ``path`` the rows of the genomes that it lacks."""
    known = {(row["index"], row["digest"]) for row in done(path, subject.settings)}
    for index in range(subject.settings.n_genomes):
        if (index, genome_digest(subject.genome(index)[0])) in known:
            continue
        started = time.perf_counter()
        row = subject.row(index)
        with path.open("a") as file:
            file.write(("\n" if _is_cut_off(path) else "") + json.dumps(row) + "\n")
        seconds = time.perf_counter() - started
        print(f"{subject.name} {index + 1}/{subject.settings.n_genomes}: {seconds:.1f} s", flush=True)


def _is_cut_off(path: Path) -> bool:
    return path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def correlation(figures: Sequence[float], truths: Sequence[float], budgets: Sequence[float]) -> float:
    """Return Spearman's correlation within each budget, the mean over budgets; NaN where nothing varies.

    Within, since a larger budget makes any genome better and any rung look good.
    """
    found = []
    for budget in sorted(set(budgets)):
        members = [i for i, other in enumerate(budgets) if other == budget]
        left, right = [figures[i] for i in members], [truths[i] for i in members]
        if len(set(left)) > 1 and len(set(right)) > 1:
            found.append(float(spearmanr(left, right).statistic))
    return float(np.mean(found)) if found else float("nan")


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry per rung and figure: correlations with every truth, over all genomes and per kind."""
    entries = []
    labels = list(dict.fromkeys(label for row in rows for label in row["rungs"]))
    for label in labels:
        judged = [row for row in rows if "failure" not in row["rungs"][label]]
        names = [name for name in (judged[0]["rungs"][label] if judged else {}) if name != "seconds"]
        for name in names:
            entry: dict[str, Any] = {"rung": label, "figure": name, "n_failed": len(rows) - len(judged)}
            entry["seconds"] = statistics.median(row["rungs"][label]["seconds"] for row in judged)
            for kind in ("all", *KINDS):
                members = [row for row in judged if kind in ("all", row["kind"])]
                for truth in TRUTHS:
                    known = [row for row in members if truth in row["truth"]]
                    entry[f"{kind}: {truth}"] = correlation(
                        [row["rungs"][label][name] for row in known],
                        [row["truth"][truth] for row in known],
                        [row["budget"] for row in known],
                    )
            entries.append(entry)
    return sorted(entries, key=lambda entry: entry["seconds"])


_INTRODUCTION = """# How well every rung ranks candidates

Spearman's rank correlation of each rung's figure with the truth, within each MACs budget (0.3, 0.5, 0.7), the mean
over the budgets. The truth is cross-entropy (CE) and error on the test images, of the network as it would be handed
back and after a short finetuning (ft). First all genomes, half of them random, half near greedy solutions; then the
latter alone, which are what a search has to tell apart. Seconds are the median per genome of one thread. Written by
`python -m benchmarks.rank_correlation --docs`; searches never see test images."""


def page(rows_of: Mapping[str, Sequence[Mapping[str, Any]]], conditions: str) -> str:
    """Return the document: a table per network."""
    lines = [_INTRODUCTION, "", conditions]
    for name, rows in rows_of.items():
        if not rows:
            continue
        error = 1 / max(len(rows) - 3, 1) ** 0.5
        columns = ("CE", "error", "CE, ft", "error, ft")
        heads = ["rung", "figure", "s / genome", *columns, *(f"greedy: {column}" for column in columns)]
        lines += [
            "",
            f"## {name}, {len(rows)} genomes",
            "",
            f"The standard error of a correlation near 0 is about {error:.2f}, near greedy {error * 2**0.5:.2f}.",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
        ]
        for entry in summarise(rows):
            cells = [entry[f"{kind}: {truth}"] for kind in ("all", KINDS[1]) for truth in TRUTHS]
            numbers = " | ".join("-" if np.isnan(cell) else f"{cell:.2f}" for cell in cells)
            lines.append(f"| {entry['rung']} | {entry['figure']} | {entry['seconds']:.3g} | {numbers} |")
    return "\n".join(lines) + "\n"


def _smoke_data() -> ImageData:
    rng = np.random.default_rng(SEED)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(rng.integers(0, 256, (n, 3, 16, 16), np.uint8)), torch.arange(n) % 10

    return in_memory_data("noise", [split(n) for n in (48, 24, 24)], n_classes=10, mean=MEAN, std=STD, may_flip=True)


def _subjects(options: argparse.Namespace, settings: Settings) -> Iterator[Subject]:
    """Yield one network after the other: each holds gigabytes of targets and statistics."""
    if options.smoke:
        model = build_model("resnet20", model_args={"width": 0.125}).eval().requires_grad_(False)
        randomise(model, seed=SEED)
        yield Subject("resnet20", model, _smoke_data(), settings)
        return
    data = load_data(options.data)
    for name in options.networks:
        model = build_model(name).eval().requires_grad_(False)
        load_weights(model, options.weights / NETWORKS[name])
        yield Subject(name, model, data, settings)


def _settings(options: argparse.Namespace) -> Settings:
    if options.smoke:
        few = FitnessOptions(
            n_fitness_images=16,
            n_calibration_images=24,
            n_elite_images=16,
            final_calibration_images=24,
            n_lessons=24,
        )
        return Settings(options.genomes or 6, 2, 2, few, options.test_images, options.truth_images)
    return Settings(
        options.genomes or 100,
        options.finetune_steps,
        options.distill_steps,
        FitnessOptions(final_augmented_share=0.0, final_pair_steps=0),  # of the published table
        options.test_images,
        options.truth_images,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genomes", type=positive, help="per network; 100 by default")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--data", default="cifar10", help="images, as `evoprune search --data` takes them")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of the networks' weights")
    parser.add_argument("--finetune-steps", type=int, default=100, help="of the second truth; 0 leaves it out")
    parser.add_argument("--distill-steps", type=int, default=50, help="of the distillation rung; 0 leaves it out")
    parser.add_argument("--truth-images", type=positive, help="calibration images of the networks that tell the truth")
    parser.add_argument("--test-images", type=positive, help="that tell the truth, the first ones; all by default")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--smoke", action="store_true", help="a tiny network and few images: a check that it runs")
    parser.add_argument("--out", type=Path, help="folder of the rows; benchmark-results by default")
    parser.add_argument("--docs", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args(arguments)
    if min(options.finetune_steps, options.distill_steps) < 0:
        parser.error("--finetune-steps and --distill-steps must not be negative")
    torch.set_num_threads(options.threads)
    settings = _settings(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or (Path(scratch) if options.smoke else Path("benchmark-results"))
        folder.mkdir(parents=True, exist_ok=True)
        rows_of = {}
        for subject in _subjects(options, settings):
            path = folder / f"rank_correlation-{subject.name}.jsonl"
            measure(subject, path)
            rows_of[subject.name] = done(path, settings)
    fitness = settings.fitness
    conditions = (
        f"{fitness.n_calibration_images} calibration and {fitness.n_fitness_images} fitness images "
        f"({fitness.fitness_images}), as shipped {fitness.n_elite_calibration_images} and {fitness.n_elite_images}; "
        f"the truth from {settings.shipping.final_calibration_images} calibration images and "
        f"{settings.n_test_images or 'all'} test images; "
        f"finetuned for {settings.finetune_steps} steps of {_FINETUNE_BATCH} images; torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, seed {SEED}."
    )
    text = page(rows_of, conditions)
    if options.docs:
        options.docs.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
