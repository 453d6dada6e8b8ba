"""Which criteria help a search, as seeds, as priors, or both: ``python -m benchmarks.priors``.

Question: what objective does a search reach after equal numbers of evaluations with each criterion as seeds of the
first population, as mutation prior, as both, and with neither, beside random search?

Varied: network (ResNet-56 at 0.5 of its MACs, VGG-16 at 0.3), criterion, its role, and the master seed of the search.
Equal everywhere: budget, evaluations, population, and the judge, which is the network rung on few images, recalibrated
and not solved, so that thousands of evaluations fit into an hour. Measured: the best objective after every evaluation,
and the winner's objective as it would be shipped: compensated sequentially and judged on other images.

Every finished run is one line of the results file; started again, the benchmark goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.arguments import positive
from benchmarks.plots import line_chart
from benchmarks.subjects import BUDGETS, SMOKE, WEIGHTS, Subject, load_images, load_subject
from evoprune.knowledge import LEARNED, MIXTURE, TWO_STEP, Choice, Knowledge, gather_knowledge
from evoprune.search import LadderPlan, Repairer, Search, SearchConfig, make_generator
from fitness.criteria import CRITERIA
from fitness.data import ImageData
from fitness.evaluation import Evaluator
from fitness.network import NETWORK_RUNG
from fitness.options import COMPENSATIONS, FitnessOptions
from fitness.recipe import EvaluatorRecipe, make_recipe
from search_spaces.errors import EvoPruneError, UnknownNameError

ROLES = ("seeds", "prior", "both")
RANDOM_SEARCH, NEITHER = "random search", "neither"
_IMAGE_SEED, _OTHER_IMAGES = 0, 1
_N_IMAGES = 64
_N_OTHER_IMAGES = 256
#: Criteria that a chart shows, so that lines can be told apart; the table has all.
_N_CHARTED = 8

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to search: a criterion in a role, or one of the two that know nothing."""

    criterion: str
    role: str

    @property
    def name(self) -> str:
        """As tables and plots call it."""
        return self.criterion if self.role in (RANDOM_SEARCH, NEITHER) else f"{self.criterion}, {self.role}"

    def choice(self) -> Choice:
        """Return which criteria the search asks for what."""
        seeds = self.criterion if self.role in ("seeds", "both") else "none"
        prior = self.criterion if self.role in ("prior", "both") else "none"
        return Choice.of(seeds, prior, is_compensated=True)


@dataclass(frozen=True)
class Setting:
    """What all runs on one network share; part of the identity of a result."""

    network: str
    budget: float
    n_evaluations: int
    population: int
    fitness: str
    n_images: int


class Bench:
    """One network with its judges and what criteria know of it."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.subject = subject
        self.setting = setting
        self.budgets = {"macs": setting.budget}
        options = FitnessOptions(
            compensation=setting.fitness,  # type: ignore[arg-type]  # one of COMPENSATIONS, argparse saw to that
            n_fitness_images=setting.n_images,
            n_calibration_images=setting.n_images,
        )
        self._judge_recipe = self._recipe(options, _IMAGE_SEED)
        self.judge: Evaluator = self._judge_recipe.build()

    def _recipe(self, options: FitnessOptions, seed: int) -> EvaluatorRecipe:
        return make_recipe(self.subject.model, self.subject.space, self.subject.data, options, seed=seed)

    @cached_property
    def knowledge_recipe(self) -> EvaluatorRecipe:
        """Calibration images for criteria: as many as a search has by default."""
        return self._recipe(FitnessOptions(n_fitness_images=2), _IMAGE_SEED)

    @cached_property
    def as_shipped(self) -> Evaluator:
        """Judges a winner compensated sequentially, on images that no search saw."""
        options = FitnessOptions(n_fitness_images=_N_OTHER_IMAGES, n_calibration_images=_N_OTHER_IMAGES)
        return self._recipe(options, _OTHER_IMAGES).build()

    def knowledge(self, arm: Arm, seed: int) -> Knowledge:
        """Return seeds and priors of ``arm``."""
        return gather_knowledge(
            self.knowledge_recipe,
            arm.choice(),
            population_size=self.setting.population,
            rng=make_generator(seed, "knowledge"),
            budgets=self.budgets,
            model=self.subject.model,
        )

    def run(self, arm: Arm, seed: int) -> Row:
        """Return the result of one search."""
        knowledge = self.knowledge(arm, seed)
        started = time.process_time()
        values, winner = self._random(seed) if arm.role == RANDOM_SEARCH else self._search(arm, knowledge, seed)
        seconds = (time.process_time() - started) / len(values)
        shipped = self.as_shipped.evaluate(winner[None], NETWORK_RUNG)[0].objective
        best = np.minimum.accumulate(values)
        return {
            "best": [float(f"{value:.6g}") for value in best],
            "shipped": shipped,
            "cpu_s_per_evaluation": seconds,
            "left_out": dict(knowledge.left_out),
        }

    def _random(self, seed: int) -> tuple[list[float], np.ndarray]:
        repairer = Repairer(self.subject.space, self.budgets)
        genomes = repairer.sample(self.setting.n_evaluations, rng=make_generator(seed, "baseline"))
        values = [evaluation.objective for evaluation in self.judge.evaluate(genomes, NETWORK_RUNG)]
        return values, genomes[int(np.argmin(values))]

    def _search(self, arm: Arm, knowledge: Knowledge, seed: int) -> tuple[list[float], np.ndarray]:
        population, n_evaluations = self.setting.population, self.setting.n_evaluations
        config = SearchConfig(
            budgets=self.budgets,
            ladder=LadderPlan(NETWORK_RUNG),
            population_size=population,
            n_generations=n_evaluations,
            initial=arm.choice().initial_shares(population),
        )
        search = Search(self.subject.space, config, seed=seed, seeds=knowledge.seeds, priors=knowledge.priors)
        values: list[float] = []
        while len(values) < n_evaluations:
            request = search.ask()
            if not len(request.genomes):
                break  # a space so small that every genome is known
            evaluations = self.judge.evaluate(request.genomes, request.rung)
            search.tell(evaluations)
            values.extend(evaluation.objective for evaluation in evaluations)
        assert search.best is not None
        return values[:n_evaluations], search.best.genome


def arms_of(criteria: Sequence[str], roles: Sequence[str] = ROLES) -> list[Arm]:
    """Return the two ways that know nothing, then every criterion in every one of ``roles`` that it can take."""
    return [Arm(RANDOM_SEARCH, RANDOM_SEARCH), Arm(NEITHER, NEITHER)] + [
        Arm(criterion, role) for criterion in criteria for role in roles if criterion not in LEARNED or role == "prior"
    ]


class Results:
    """Rows in a JSON-lines file, each written when its run ends.

    Args:
        path: The file; rows that are there already are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.is_file():
            # A last line that was cut off when the benchmark was killed goes, and its run is repeated.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            path.write_text("".join(whole))
            self.rows = [json.loads(line) for line in whole]

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """Return the row with these entries, if any."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: Row) -> None:
        """Append ``row``."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def collect(bench: Bench, arms: Sequence[Arm], seeds: Sequence[int], results: Results) -> Iterator[Row]:
    """Yield one row per seed and arm, from the file where it is there; all arms of one seed before the next seed."""
    for seed in seeds:
        for arm in arms:
            key: Row = {**vars(bench.setting), "criterion": arm.criterion, "role": arm.role, "seed": seed}
            known = results.find(key)
            if known is None:
                try:
                    figures = bench.run(arm, seed)
                except EvoPruneError as error:
                    figures = {"error": str(error)}
                known = {**key, **figures}
                results.add(known)
            yield known


def summary(rows: Sequence[Row]) -> str:
    """Return the table of one network, Markdown."""
    by_arm: dict[Arm, list[Row]] = {}
    for row in rows:
        by_arm.setdefault(Arm(row["criterion"], row["role"]), []).append(row)
    neither = {row["seed"]: row["best"][-1] for row in rows if row["role"] == NEITHER}
    lines = [
        (
            "| criterion | role | first population | half of the evaluations | end, median (range) "
            "| better than neither | as shipped |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for arm, members in by_arm.items():
        done = [row for row in members if "best" in row]
        name = arm.criterion if arm.role in ROLES else f"*{arm.criterion}*"
        role = arm.role if arm.role in ROLES else ""
        if not done:
            lines.append(f"| {name} | {role} | {members[0]['error'].split(';')[0]} | | | | |")
            continue
        n = len(done[0]["best"])
        first, half, end = (
            [row["best"][index] for row in done] for index in (min(done[0]["population"], n) - 1, n // 2, n - 1)
        )
        n_better = sum(row["best"][-1] < neither.get(row["seed"], -np.inf) for row in done)
        share = f"{n_better} of {len(done)}" if arm.role in ROLES else ""
        lines.append(
            f"| {name} | {role} | {statistics.median(first):.4g} | {statistics.median(half):.4g} "
            f"| {statistics.median(end):.4g} ({min(end):.4g} to {max(end):.4g}) | {share} "
            f"| {statistics.median([row['shipped'] for row in done]):.4g} |"
        )
    return "\n".join(lines)


def chart(network: str, rows: Sequence[Row]) -> str:
    """Return the median of best-so-far against evaluations: what knows nothing, and the best criteria as both."""
    lines: dict[str, dict[str, list[float]]] = {}
    for role in (NEITHER, RANDOM_SEARCH, "both"):
        lines[role] = {}
        for name in dict.fromkeys(row["criterion"] for row in rows if row["role"] == role):
            runs = [row["best"] for row in rows if (row["criterion"], row["role"]) == (name, role) and "best" in row]
            if runs:
                lines[role][name] = np.median(np.array(runs), axis=0).tolist()
    best = sorted(lines["both"], key=lambda name: lines["both"][name][-1])[:_N_CHARTED]
    drawn = {**lines[NEITHER], **lines[RANDOM_SEARCH], **{name: lines["both"][name] for name in best}}
    return line_chart(f"{network}: median over seeds", "evaluations", "best objective so far", drawn)


def page(rows: Sequence[Row], conditions: Mapping[str, Any]) -> str:
    """Return the documentation page."""
    lines = [
        "# What criteria know, and what a search makes of it",
        "",
        (
            "`python -m benchmarks.priors`: the objective (KL to the dense network, smaller is better) that a search "
            "reaches with each criterion as *seeds* of half of the first population, as mutation *prior*, as *both* "
            "and with *neither*, beside random search, at equal numbers of evaluations. *As shipped*: the median of "
            "the winners, compensated sequentially and judged on other images. `mixture` is the default of "
            "`--seed-with` and `--prior`."
        ),
        "",
        "Conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()) + ".",
        "",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        first = of_network[0]
        n_seeds = len({row["seed"] for row in of_network})
        lines += [
            f"## {network} at {first['budget']} of its MACs",
            "",
            (
                f"{first['n_evaluations']} evaluations in populations of {first['population']}, {n_seeds} seeds, "
                f"judged with `{first['fitness']}` on {first['n_images']} images."
            ),
            "",
            f"![best objective so far against evaluations](priors-{network}.svg)",
            "",
            summary(of_network),
            "",
        ]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet56,vgg16", help=f"of {', '.join(BUDGETS)}")
    parser.add_argument("--criteria", help="names separated by commas, mixture among them; all by default")
    parser.add_argument("--roles", default=",".join(ROLES), help="of seeds, prior, both")
    parser.add_argument("--evaluations", type=positive, default=160)
    parser.add_argument("--population", type=positive, default=16)
    parser.add_argument("--seeds", type=positive, default=5, help="how many master seeds: 0, 1, ...")
    parser.add_argument("--fitness", choices=sorted(COMPENSATIONS), default="recalibrate", help="what a candidate gets")
    parser.add_argument("--images", type=positive, default=_N_IMAGES, help="fitness images, and calibration images")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the safetensors files")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--smoke", action="store_true", help="a tiny untrained network: a check that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/priors.jsonl"))
    parser.add_argument("--docs", type=Path, help="also write the page to this Markdown file, charts beside it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and print the tables."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    everything = (MIXTURE, TWO_STEP, *(name for name in CRITERIA if name != TWO_STEP), *LEARNED)
    criteria, networks = options.criteria.split(",") if options.criteria else everything, options.networks.split(",")
    n_evaluations, population, n_seeds, n_images = (
        options.evaluations,
        options.population,
        options.seeds,
        options.images,
    )
    if options.smoke:
        criteria, networks = (options.criteria or "l1,qsfm-ssim").split(","), [SMOKE]
        n_evaluations, population, n_seeds, n_images = 12, 4, 1, 8
    roles = options.roles.split(",")
    for role in roles:
        if role not in ROLES:
            raise UnknownNameError("role", role, ROLES)
    for arm in arms_of(criteria):
        arm.choice()  # a misspelt name should not wait for the images
    data: ImageData = load_images(options.data, smoke=options.smoke)
    results = Results(options.out)
    rows: list[Row] = []
    for network in networks:
        setting = Setting(network, BUDGETS[network], n_evaluations, population, options.fitness, n_images)
        bench = Bench(load_subject(network, data, weights=options.weights, smoke=options.smoke), setting)
        arms, started = arms_of(criteria, roles), time.perf_counter()
        n_runs = len(arms) * n_seeds
        for n_done, row in enumerate(collect(bench, arms, range(n_seeds), results), 1):
            rows.append(row)
            seconds = time.perf_counter() - started
            left = seconds / n_done * (n_runs - n_done)
            end = f"{row['best'][-1]:.4g}" if "best" in row else row["error"]
            print(
                f"{network} seed {row['seed']} {row['criterion']} {row['role']}: {end} ({left:.0f} s left)", flush=True
            )
    for network in networks:
        print(f"\n{network}\n{summary([row for row in rows if row['network'] == network])}")
    if options.docs:
        conditions = {"python": platform.python_version(), "torch": torch.__version__, "threads": options.threads}
        options.docs.write_text(page(rows, conditions))
        for network in networks:
            picture = chart(network, [row for row in rows if row["network"] == network])
            (options.docs.parent / f"priors-{network}.svg").write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
