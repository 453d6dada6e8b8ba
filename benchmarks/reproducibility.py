"""Does the same seed give the same run: ``python -m benchmarks.reproducibility``.

Question: is a run of the command line the same when it is repeated, evaluated by other workers, or killed in the middle
and resumed, and does the network that it hands back fill its budget?

Varied: the network with its images and budget, the mode, and how it is run: inside one process; again; by two Ray
workers; and killed (SIGKILL for the process and all that it started) as soon as a generation of a seeded choice has its
first evaluation, then resumed; its parts inside the process, by one Ray worker and by two, in a seeded order. Every run
is a process of its own. They share a folder of caches, so that a network without weights is trained once.

Compared, value by value and bit for bit: every evaluation (genome, rung, objective, metrics, and its place in the run),
every generation's row, the figures of the result, the front, the sensitivity curves, and the weights that are handed
back; not seconds. Budgets hold where the network costs no more, counted anew, and less is left than what a further
channel costs in some group; mode ``pareto`` hands back the best of a front, which may cost less.

The searches are short, VGG-16 has a quarter of its width, and of each split of the images the first ones alone are
taken: whether runs are equal does not depend on how good they are. Cases that the results file holds already, under the
same conditions and as promised, are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.arguments import positive
from benchmarks.reproducibility_compare import budget_use, differences, named, read_run
from benchmarks.reproducibility_runs import CommandError, CommandLine
from evoprune.modes import MODES
from evoprune.run_directory import library_versions
from fitness.data import load_data
from search_spaces.errors import EvoPruneError, OptionError, UnknownNameError
from search_spaces.models import build_model

#: Arguments, data and budget of each network; ``--data`` takes the place of CIFAR-10.
NETWORKS = {
    "vgg16": ({"width": 0.25}, "digits", "0.3"),
    "resnet20": ({}, "cifar10", "0.5"),
    "resnet56": ({}, "cifar10", "0.5"),
}
USUAL = ("vgg16", "resnet20")
SMOKE_ARGS = {"width": 0.0625}
SMOKE_IMAGES = 64
#: Modes whose generations count per part of the network: more than one each would only take longer.
FEWER_GENERATIONS = ("layerwise", "staged")
#: Modes that hand back the best of a front, which may leave some of the budget.
OF_A_FRONT = ("pareto",)
_WORKERS = ("0", "1", "2")
_LONGEST_RAY_FOLDER = 40  # its sockets lie in there, whose paths may have 107 characters


@dataclass(frozen=True)
class Setting:
    """Sizes of the searches."""

    population: int = 6
    generations: int = 2
    images: int = 32
    train_epochs: int = 8
    seed: int = 7
    n_kills: int = 2


@dataclass(frozen=True)
class Case:
    """A network, its images and its budget.

    Attributes:
        network: A name of ``evoprune list models``.
        budget: Share of the MACs.
        options: Further options of ``evoprune search``, such as where its images are.
    """

    network: str
    budget: str
    options: tuple[str, ...]


@dataclass
class Row:
    """What became of one mode on one network. A comparison is None where an error came before it.

    Attributes:
        n_evaluations: Of the first run.
        twice: In what the second run differs.
        workers: In what the run by two workers differs.
        killed: In what the run that was killed differs.
        killed_in: Generations in which it was killed.
        budget_share: Share of the budget that is used.
        budget_problem: Why it does not hold from below within one channel group.
        seconds: Of the first run.
        error: Why there is no more to say.
    """

    network: str
    mode: str
    budget: str
    n_evaluations: int = 0
    twice: list[str] | None = None
    workers: list[str] | None = None
    killed: list[str] | None = None
    killed_in: list[int] = field(default_factory=list)
    budget_share: float = 0.0
    budget_problem: str = ""
    seconds: float = 0.0
    error: str = ""

    def problems(self) -> list[str]:
        """Return what is not as promised, in words."""
        found = [("again", self.twice), ("two workers", self.workers), ("killed and resumed", self.killed)]
        texts = [f"{what}: {named(differing)}" for what, differing in found if differing]
        return texts + [text for text in (self.budget_problem, self.error) if text]


def measure(case: Case, mode: str, setting: Setting, command_line: CommandLine, folder: Path) -> Row:
    """Run ``mode`` on the network of ``case`` in every way and return how the runs compare."""
    row = Row(case.network, mode, case.budget)
    command = search_command(case, mode, setting)
    once = folder / "once"
    try:
        row.seconds = command_line.run([*command, "--out", str(once)])
        first = read_run(once)
        row.n_evaluations = len(first.evaluations)
        use = budget_use(once, has_to_fill=mode not in OF_A_FRONT)
        row.budget_share, row.budget_problem = use.share, use.problem
        command_line.run([*command, "--out", str(folder / "again")])
        row.twice = differences(first, read_run(folder / "again"))
        command_line.run([*command, "--out", str(folder / "workers"), "--workers", "2"])
        row.workers = differences(first, read_run(folder / "workers"))
        moments, workers = kill_plan(f"{case.network} {mode}", len(first.generations), setting)
        row.killed_in = kill_and_resume(command_line, command, folder / "killed", moments, workers)
        row.killed = differences(first, read_run(folder / "killed"))
        if row.killed_in != moments:
            row.error = f"killed in the generations {row.killed_in} instead of {moments}: the run ended before"
    except (CommandError, EvoPruneError) as error:
        row.error = f"{type(error).__name__}: {error}"
    return row


def search_command(case: Case, mode: str, setting: Setting) -> list[str]:
    """Return the command of one search but for its run directory and workers."""
    sizes: dict[str, str | int] = {
        "--budget": case.budget,
        "--mode": mode,
        "--seed": setting.seed,
        "--n-fitness-images": setting.images,
        "--n-calibration-images": setting.images,
    }
    if "--weights" not in case.options:
        sizes["--train-epochs"] = setting.train_epochs
    if MODES[mode].has_course:
        sizes["--population"] = setting.population
        sizes["--generations"] = 1 if mode in FEWER_GENERATIONS else setting.generations
    if MODES[mode].uses_elites and MODES[mode].own_ladder is None:
        sizes["--n-elite-images"] = setting.images
    given = [str(part) for option in sizes.items() for part in option]
    return ["search", "--model", case.network, *case.options, *given, "--json"]


def kill_plan(name: str, n_generations: int, setting: Setting) -> tuple[list[int], list[str]]:
    """Return in which generations a run is killed, ascending, and by how many workers its parts are evaluated in turn.

    Both are a choice that is seeded by ``name`` too.
    """
    rng = np.random.default_rng([setting.seed, *name.encode()])
    chosen = rng.choice(n_generations, min(setting.n_kills, n_generations), replace=False)
    return sorted(int(generation) for generation in chosen), [str(n) for n in rng.permutation(_WORKERS)]


def kill_and_resume(
    command_line: CommandLine, command: Sequence[str], run: Path, generations: Sequence[int], workers: Sequence[str]
) -> list[int]:
    """Start a search, kill it in each of ``generations`` and resume it to its end; return those it was killed in."""
    placed = itertools.cycle(workers)
    arguments, killed_in = [*command, "--out", str(run)], []
    for generation in generations:
        if not command_line.run_and_kill([*arguments, "--workers", next(placed)], run, generation):
            return killed_in
        killed_in.append(generation)
        arguments = ["resume", str(run), "--json"]
    command_line.run([*arguments, "--workers", next(placed)])
    return killed_in


def known_rows(path: Path, conditions: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the results file ``path`` that were measured under ``conditions`` and are as promised."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**row) for row in document["rows"] if document["conditions"] == conditions]
    return [row for row in rows if not row.problems()]


def table(rows: Sequence[Row]) -> str:
    """Return one line per row, as a Markdown table."""
    lines = [
        "| network | mode | evaluations | twice | 2 workers | killed in generations | cost / budget | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        compared = (row.twice, row.workers, row.killed)
        equal = ["not shown" if found is None else "DIFFERS" if found else "equal" for found in compared]
        killed = f"{', '.join(map(str, row.killed_in))}: {equal[2]}" if row.killed_in else equal[2]
        use = f"{row.budget_share:.2%}" + (" (NOT FROM BELOW WITHIN A CHANNEL)" if row.budget_problem else "")
        lines.append(
            f"| {row.network} | {row.mode} | {row.n_evaluations} | {equal[0]} | {equal[1]} | {killed} | {use} "
            f"| {row.seconds:.0f} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[Row], conditions: Mapping[str, Any]) -> str:
    """Return the documentation page."""
    good = sum(not row.problems() for row in rows)
    intro = (
        f"`python -m benchmarks.reproducibility`: in {good} of {len(rows)} cases all runs are equal, and what is "
        "handed back fills its budget. Each case is four runs of the command line: inside one process, again, by two "
        "Ray workers, and killed by SIGKILL in the middle of the generations named and resumed to the end, its parts "
        "inside the process, by one worker and by two, in a seeded order. The searches are short, and VGG-16 has a "
        "quarter of its width."
    )
    compared = (
        "Compared bit for bit: every evaluation with genome, rung, objective, metrics and place, every generation's "
        "row, the figures of `result.json`, `front.csv`, `sensitivity.csv`, `knowledge.json` and the weights in "
        "`best/`; times are left out. *cost / budget*: MACs of the network that is handed back, counted anew, as a "
        "share of its budget; what is left is less than what one more channel costs in some group, but in `pareto`, "
        "which hands back the best of a front, however cheap. *seconds*: of the first run, process start, knowledge "
        "and tests included, while other work shared the machine."
    )
    told = "Conditions: " + ", ".join(f"{name} {value}" for name, value in conditions.items()) + "."
    problems = [f"* {row.network}, {row.mode}: {'; '.join(row.problems())}" for row in rows if row.problems()]
    differing = ["", "## What differs", "", *problems] if problems else []
    known = {(row.network, row.mode) for row in rows}
    missing = [f"{network} {mode}" for network in USUAL for mode in MODES if (network, mode) not in known]
    rest = ["", f"Not run for this page: {', '.join(missing)}."] if missing else []
    lines = ["# Same seed, same run", "", intro, "", compared, "", told, "", table(rows), *rest, *differing]
    return "\n".join(lines) + "\n"


def few_images(spec: str, n_images: int, path: Path) -> str:
    """Write the first ``n_images`` per split of the data ``spec`` to an npz file; return what `--data` calls it."""
    data = load_data(spec)
    arrays: dict[str, Any] = {}
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        batch = split.take(np.arange(min(n_images, len(split))))
        arrays[f"{name}_images"] = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        arrays[f"{name}_labels"] = batch.labels.numpy()
    np.savez(path, **arrays)
    return f"npz:{path}"


def cases_of(options: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Yield the networks that the command line names.

    Raises:
        UnknownNameError: There is no setting for one of them.
        OptionError: Weights are given without a network.
    """
    weights = dict(_pair(item) for item in options.weights)
    names = [name for name in options.networks.split(",") if name]
    for name in (*names, *weights):
        if name not in NETWORKS:
            raise UnknownNameError("network", name, NETWORKS)
    few: dict[str, str] = {}
    for name in names:
        model_args, data, budget = NETWORKS[name]
        if data not in few:
            few[data] = few_images(options.data if data == "cifar10" else data, options.images, folder / f"{data}.npz")
        given = ("--model-args", json.dumps(model_args)) if model_args else ()
        if name in weights:
            given = (*given, "--weights", weights[name])
        yield Case(name, budget, ("--data", few[data], *given))


def smoke_cases(folder: Path) -> list[Case]:
    """Return a network with random weights that is judged in a moment."""
    weights = folder / "weights.safetensors"
    save_file(build_model("vgg16", 10, SMOKE_ARGS, (3, 32, 32), seed=0).state_dict(), weights)
    data = few_images("digits", SMOKE_IMAGES, folder / "digits.npz")
    given = ("--model-args", json.dumps(SMOKE_ARGS), "--weights", str(weights), "--data", data)
    return [Case("vgg16", "0.5", given)]


def _pair(item: str) -> tuple[str, str]:
    name, equals, file = item.partition("=")
    if not equals or not file:
        raise OptionError(f"`--weights` must be NETWORK=FILE, but got {item!r}")
    return name, file


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Does the same seed give the same run?")
    parser.add_argument("--networks", default=",".join(USUAL), help=f"some of {', '.join(NETWORKS)}")
    parser.add_argument("--modes", default="", help="names of `evoprune list modes`; all by default")
    parser.add_argument("--weights", action="append", default=[], metavar="NETWORK=FILE", help="trained weights, each")
    parser.add_argument("--data", default="cifar10", help="images of networks for CIFAR-10: cifar10 or npz:FILE")
    parser.add_argument("--images", type=positive, default=128, help="images per split")
    parser.add_argument("--kills", type=int, default=Setting.n_kills, help="generations in which a run is killed")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/reproducibility.json"))
    parser.add_argument("--docs", type=Path, help="also write this Markdown file")
    parser.add_argument("--runs", type=Path, help="keep the runs in this folder, which must hold none of them yet")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, one mode: does it run?")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, and return 1 where something is not as promised."""
    options = parse(arguments)
    modes = [name for name in options.modes.split(",") if name] or list(MODES)
    for name in modes:
        if name not in MODES:
            raise UnknownNameError("mode", name, MODES)
    setting = Setting(n_kills=options.kills)
    if options.smoke:
        modes, setting = ["global"], Setting(population=4, generations=1, images=16, n_kills=1)
        options.images = SMOKE_IMAGES
    conditions = {
        "python": platform.python_version(),
        **{name: version for name, version in library_versions().items() if name in ("torch", "numpy", "deap", "ray")},
        "processor": platform.machine(),
        "threads per process": torch.get_num_threads(),
        "images per split": options.images,
        **asdict(setting),
    }
    rows = known_rows(options.out, conditions)
    with tempfile.TemporaryDirectory(prefix="evoprune-") as name:
        folder = Path(name)
        runs = options.runs or folder / "runs"
        environment = {"EVOPRUNE_CACHE": str(folder / "cache")}
        if len(name) <= _LONGEST_RAY_FOLDER:
            environment["RAY_TMPDIR"] = name
        command_line = CommandLine(runs.parent / f"{runs.name}.log", environment)
        for case in smoke_cases(folder) if options.smoke else cases_of(options, folder):
            for mode in modes:
                if any((row.network, row.mode) == (case.network, mode) for row in rows):
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch.export warns about its own parts
                    row = measure(case, mode, setting, command_line, runs / f"{case.network}-{mode}")
                if options.runs is None:
                    shutil.rmtree(runs, ignore_errors=True)
                rows.append(row)
                print(f"{table([row]).splitlines()[-1]} {'; '.join(row.problems())}".strip(), flush=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                document = {"conditions": conditions, "rows": [asdict(row) for row in rows]}
                options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    order = list(MODES)
    rows.sort(key=lambda row: (row.network, order.index(row.mode)))
    print("\n" + table(rows))
    if options.docs is not None:
        options.docs.write_text(page(rows, conditions), encoding="utf-8")
    wrong = [f"{row.network}, {row.mode}: {'; '.join(row.problems())}" for row in rows if row.problems()]
    if wrong:
        print("\nnot as promised:\n" + "\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
