"""How good is what each mode of search finds: ``python -m benchmarks.modes``.

Question: given the same number of evaluations, and given the same time, which way of searching finds the better
network?

Varied: the network, the MACs budget, the seed, and the method: every mode that evoprune has, the greedy rule (the
widths of least layer error per MAC, no search; the mark to beat), and DEAP's own ``eaMuPlusLambda`` with its own list
operators ``cxUniform`` and ``mutFlipBit``, its examples' rates, and random first individuals repaired to the budget.
All are judged by the same evaluator: the sliced network, compensated on a few calibration images, against the dense
network on a few fitness images. That is a coarse judge; it makes hundreds of searches affordable, and it is the same
for all.

Measured: the least objective among the candidates within the budget that a method has had judged after so many
evaluations, and after so many seconds, as a ratio to the greedy rule's on the same images; the winner judged again on
other images of another seed; evaluations per second. Seconds are CPU seconds of one core from the first request on:
what an idle machine takes. What criteria and statistics of the dense network cost before is not counted.

Evaluations are those of the network rung; what a mode judges by cheaper rungs besides shows in its seconds.

Modes that divide their generations among stages or layers are run twice, with generations planned for the evaluations
and for the seconds; the others once, until both are reached. Every finished search is one line of the results file, so
that a run can be stopped at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.arguments import positive
from benchmarks.modes_methods import DEAP_EA, GREEDY, OPEN_ENDED, SINGLE, Bench, Course, Setting, Task
from benchmarks.modes_page import write_page
from evoprune.modes import MODES
from evoprune.run_directory import library_versions
from search_spaces.errors import EvoPruneError, OptionError
from search_spaces.models import build_model

_NEVER = 10**6


class Results:
    """The lines of the results file."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self._path = path
        self._setting = asdict(setting)
        self.rows: dict[Task, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError, KeyError, TypeError):  # a line torn by a crash
                    row = json.loads(line)
                    if row["setting"] == self._setting:
                        self.rows[Task(**row["task"])] = row

    def add(self, task: Task, course: Course, check: Mapping[str, float]) -> None:
        """Append the course of ``task``."""
        row = {
            "task": asdict(task),
            "setting": self._setting,
            "versions": versions(),
            "steps": course.steps,
            "n_evaluations": course.n_evaluations,
            "seconds": round(course.seconds, 4),
            "n_generations": course.n_generations,
            "check": dict(check),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[task] = json.loads(json.dumps(row))


def tasks_of(network: str, budget: float, seed: int, methods: Sequence[str]) -> list[Task]:
    """Return the searches of one network, budget and seed; a run of planned seconds follows that of evaluations."""
    tasks = []
    for method in methods:
        both = method in OPEN_ENDED or method in SINGLE
        protocols = ("both",) if both else ("evaluations", "seconds")
        tasks += [Task(network, budget, seed, method, protocol) for protocol in protocols]
    return tasks


def planned_generations(task: Task, setting: Setting, results: Results) -> int:
    """Return the generations that fill the evaluations, or the seconds at the rate measured before."""
    if task.protocol == "both":
        return _NEVER
    if task.protocol == "seconds":
        before = results.rows[replace(task, protocol="evaluations")]
        return max(round(setting.seconds * before["n_generations"] / max(before["seconds"], 1e-9)), 1)
    return max(round(setting.evaluations / setting.population) - 1, 1)


def run_all(
    networks: Mapping[str, Mapping[str, Any]],
    budgets: Sequence[float],
    seeds: Sequence[int],
    methods: Sequence[str],
    setting: Setting,
    results: Results,
) -> None:
    """Run what is not in ``results`` yet, seed after seed, so that an early stop leaves whole comparisons."""
    for seed in seeds:
        for network, source in networks.items():
            with closing(Bench(network, source, seed, setting)) as bench:
                for budget in budgets:
                    for task in tasks_of(network, budget, seed, methods):
                        if task not in results.rows:
                            run_one(bench, task, setting, results)


def run_one(bench: Bench, task: Task, setting: Setting, results: Results) -> None:
    """Run ``task`` and keep its course; a method that cannot be had there is told and kept without one."""
    what = f"{task.network} {task.budget:g} seed {task.seed} {task.method} ({task.protocol})"
    try:
        course = bench.run(task, planned_generations(task, setting, results))
    except EvoPruneError as error:
        print(f"{what}: {error}", flush=True)
        course = Course([])
    at = {"seconds": setting.seconds} if task.protocol == "seconds" else {"evaluations": setting.evaluations}
    winner = course.winner() if task.method in SINGLE else course.winner(**at)
    check = {} if winner is None else bench.check(winner)
    results.add(task, course, check)
    best = f"{course.steps[-1][2]:.5g}" if course.steps else "none within the budget"
    print(f"{what}: best {best}, {course.n_evaluations} evaluations in {course.seconds:.1f} s", flush=True)


def versions() -> dict[str, str]:
    """Return what the figures depend on."""
    return {"python": platform.python_version(), **library_versions()}


@contextmanager
def one_core(core: int | None) -> Iterator[None]:
    """Keep this process on one core with one thread, where the system can; given back afterwards.

    Raises:
        OptionError: This process may not use ``core``.
    """
    n_threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if core is not None and core not in (cores or ()):
        raise OptionError(f"`--core` must be one of {sorted(cores or ())}, but got {core}; leave it out for the last")
    torch.set_num_threads(1)
    if cores is not None:
        os.sched_setaffinity(0, {max(cores) if core is None else core})
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        if cores is not None:
            os.sched_setaffinity(0, cores)


def smoke_networks(folder: Path) -> dict[str, dict[str, Any]]:
    """Return a network that is judged in a moment, with random weights."""
    model_args, weights = {"width": 0.0625}, folder / "weights.safetensors"
    save_file(build_model("vgg16", 10, model_args, (3, 32, 32), seed=0).state_dict(), weights)
    return {"vgg16-small": {"model": "vgg16", "model_args": model_args, "weights": str(weights), "data": "digits"}}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Which way of searching finds the better network?")
    parser.add_argument("--networks", default="resnet56,vgg16", help="names of `evoprune list models`")
    parser.add_argument("--weights", action="append", default=[], metavar="NETWORK=FILE", help="trained weights, each")
    parser.add_argument("--data", default="cifar10", help="a name of `evoprune list data`")
    parser.add_argument("--budgets", default="0.7,0.5,0.3", help="shares of the dense MACs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="", help=f"modes, {GREEDY} and {DEAP_EA}; all by default")
    parser.add_argument("--evaluations", type=positive, default=48, help="compare after so many")
    parser.add_argument("--seconds", type=float, default=10.0, help="compare after so many CPU seconds")
    parser.add_argument("--population", type=positive, default=8, help="individuals per generation")
    parser.add_argument("--images", type=positive, default=64, help="fitness images")
    parser.add_argument("--calibration-images", type=positive, default=32)
    parser.add_argument("--compensation", default="sequential", help="sequential, or recalibrate, which is coarser")
    parser.add_argument("--core", type=int, help="number of the core to use; the last one by default")
    parser.add_argument("--check-images", type=int, default=512, help="images on which winners are judged again")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/modes.jsonl"))
    parser.add_argument("--docs", type=Path, help="also write this Markdown file, and its plots beside it")
    parser.add_argument("--smoke", action="store_true", help="a small network, few evaluations: does it run?")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables."""
    options = parse(arguments)
    methods = [name for name in options.methods.split(",") if name] or [GREEDY, *MODES, DEAP_EA]
    unknown = set(methods) - {GREEDY, DEAP_EA, *MODES}
    if unknown:
        raise OptionError(f"methods are {GREEDY}, {DEAP_EA} and the modes {', '.join(MODES)}, but got {unknown}")
    setting = Setting(
        options.evaluations, options.seconds, options.population, options.images, options.calibration_images,
        options.check_images, options.compensation,
    )  # fmt: skip
    budgets, seeds = [float(b) for b in options.budgets.split(",")], [int(s) for s in options.seeds.split(",")]
    if options.smoke:
        setting, budgets, seeds = Setting(12, 0.2, 4, 16, 16, 16), [0.5], [0]
    with tempfile.TemporaryDirectory() as folder, one_core(options.core), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own parts
        weights = dict(item.split("=", 1) for item in options.weights)
        networks: Mapping[str, Mapping[str, Any]] = {
            name: {"model": name, "data": options.data, "weights": weights.get(name)}
            for name in options.networks.split(",")
        }
        if options.smoke:
            networks = smoke_networks(Path(folder))
        results = Results(options.out, setting)
        try:
            run_all(networks, budgets, seeds, methods, setting, results)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on from {options.out}", file=sys.stderr)
            return 130
    text = write_page(list(results.rows.values()), asdict(setting), options.docs)
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
