"""The comparison of runs: planted differences are found, whatever may differ is not one, and nothing stays behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import reproducibility
from benchmarks.reproducibility import Case, Row, Setting, few_images, kill_and_resume, kill_plan, page, table
from benchmarks.reproducibility_compare import differences, named, read_run, use_of
from benchmarks.reproducibility_runs import (
    CommandError,
    CommandLine,
    end_session,
    latest_generation,
    session_members,
)
from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from evoprune.modes import MODES
from evoprune.run_directory import RunDirectory, write_json
from fitness.data import load_data
from fitness.evaluation import Evaluation
from search_spaces import SearchSpace
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import genome_digest
from search_spaces.models import build_model

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="this system has no /proc")


def write_run(path: Path) -> Path:
    """Write what a finished run of two generations leaves behind."""
    run = RunDirectory.create(path, options={"seed": 1}, hashes={"weights": "w", "data": "d", "space": "s"})
    genomes = np.random.default_rng(0).random((4, 11)) < 0.5
    with EvaluationStore(run.evaluations_path, 11, "s") as store:
        for index, genome in enumerate(genomes):
            metrics = {"kl": 0.1 * index, "accuracy": math.nan}
            evaluation = Evaluation(genome_digest(genome), "network", 8, 0.1 * index, metrics, seconds=1.0)
            store.put_many([StoredEvaluation(genome, 10 + index, 5, index // 2, index % 2, evaluation)])
        for generation in (0, 1):
            row = {"gen": generation, "best": 0.1, "elapsed_s": 2.0}
            store.put_course({"generation": generation, "updated_at": 3.0}, row)
    rungs = {"network": {"n_evaluations": 4, "seconds": 4.0}}
    write_json(run.result_path, {"macs": 10, "test_accuracy": 0.5, "wall_s": 9.0, "workers": 0, "rungs": rungs})
    run.best_path.mkdir()
    (run.best_path / "weights.safetensors").write_bytes(b"weights")
    run.front_path.write_text("macs\n10\n")
    return path


def sql(path: Path, statement: str) -> None:
    with sqlite3.connect(path / "evaluations.sqlite") as connection:
        connection.execute(statement)
    connection.close()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first")


@pytest.fixture
def second(first: Path, tmp_path: Path) -> Path:
    shutil.copytree(first, tmp_path / "second")
    return tmp_path / "second"


def compared(first: Path, second: Path) -> list[str]:
    return differences(read_run(first), read_run(second))


def test_times_and_places_are_no_differences(first: Path, second: Path) -> None:
    sql(second, "UPDATE evaluations SET seconds = 77")
    sql(second, """UPDATE generations SET row = replace(row, '"elapsed_s": 2.0', '"elapsed_s": 3.5')""")
    edit(second / "result.json", lambda result: result.update(wall_s=1.0, workers=2))
    edit(second / "result.json", lambda result: result["rungs"]["network"].update(seconds=1.0))
    edit(second / "config.json", lambda config: config["options"].update(workers=2))
    assert compared(first, second) == []


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE evaluations SET objective = 0.30000000000000010 WHERE macs = 13", "evaluation 3: objective is 0.3000"),
        (
            "UPDATE evaluations SET metrics = replace(metrics, '0.1', '0.2')",
            "evaluation 1: metrics is {'accuracy': nan",
        ),
        ("UPDATE evaluations SET rung = 'e2' WHERE macs = 10", "evaluation 0: rung is 'network' and 'e2'"),
        ("UPDATE evaluations SET position = 1 - position WHERE generation = 1", "evaluation 2: digest is"),
        ("UPDATE evaluations SET failure = 'NaN' WHERE macs = 12", "evaluation 2: failure is '' and 'NaN'"),
        ("DELETE FROM evaluations WHERE macs = 13", "evaluations: 4 and 3"),
        ("DELETE FROM generations WHERE generation = 1", "generations: 2 and 1"),
        (
            """UPDATE generations SET row = replace(row, '"best": 0.1', '"best": 0.2')""",
            "generation 0: best is 0.1 and",
        ),
    ],
)
def test_a_planted_difference_of_the_store_is_found(first: Path, second: Path, statement: str, told: str) -> None:
    sql(second, statement)
    found = compared(first, second)
    assert found[0].startswith(told)


def test_planted_differences_of_the_files_are_found(first: Path, second: Path) -> None:
    edit(second / "result.json", lambda result: result.update(test_accuracy=0.25))
    edit(second / "result.json", lambda result: result["rungs"].update(e2={"n_evaluations": 1}))
    edit(second / "config.json", lambda config: config["hashes"].update(data="x"))
    (second / "best" / "weights.safetensors").write_bytes(b"weighty")
    (second / "front.csv").unlink()
    (second / "sensitivity.csv").write_text("")
    found = compared(first, second)
    assert found[:2] == ["input: data is 'd' and 'x'", "result: test_accuracy is 0.5 and 0.25"]
    assert [text.split(" is ")[0] for text in found[2:]] == [
        "result: rungs",
        "file: best/weights.safetensors",
        "file: front.csv",
        "file: sensitivity.csv",
    ]
    assert found[4].endswith("and None")
    assert named(found) == f"{'; '.join(found[:3])}; and 3 more"


# ---------------------------------------------------------------------- budgets


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    model = build_model("vgg16", 10, {"width": 0.0625}, (3, 16, 16)).eval()
    return SearchSpace.trace(model, torch.zeros(1, 3, 16, 16), verify=False)


def test_a_repaired_genome_fills_its_budget_and_one_with_room_does_not(space: SearchSpace) -> None:
    limit = int(0.5 * space.macs_dense)
    genome = space.repair(space.all_ones(), macs_budget=0.5, rng=np.random.default_rng(0))[0]
    macs = int(space.macs(genome[None])[0])
    use = use_of(space, genome, {"macs": limit}, {"macs": macs})
    assert use.problem == ""
    assert use.share == macs / limit <= 1
    assert f"above the limit of {macs - 1}" in use_of(space, genome, {"macs": macs - 1}, {"macs": macs}).problem
    assert f"but the run says {macs + 1}" in use_of(space, genome, {"macs": limit}, {"macs": macs + 1}).problem
    counts = space.kept_counts(genome[None])
    gains = np.minimum(space.lattice.sizes - counts[0], 1)
    dearest = max(
        int(space.macs_cost(counts + gain * np.eye(len(gains), dtype=np.int64)[index])[0]) - macs
        for index, gain in enumerate(gains)
    )
    assert use_of(space, genome, {"macs": macs + dearest - 1}, {"macs": macs}).problem == ""
    n_open = int(gains.sum())
    problem = use_of(space, genome, {"macs": macs + dearest}, {"macs": macs}).problem
    assert (
        problem == f"{dearest} of {macs + dearest} macs are left: room for a further channel in each of {n_open} groups"
    )
    assert use_of(space, genome, {"macs": macs + dearest}, {"macs": macs}, has_to_fill=False).problem == ""
    n_params = int(space.n_params(genome[None])[0])  # the other budget is full
    both = use_of(space, genome, {"macs": 2 * macs, "params": n_params}, {"macs": macs, "params": n_params})
    assert both.problem == ""
    assert both.share == 1


def test_the_dense_network_fills_any_budget(space: SearchSpace) -> None:
    assert use_of(space, space.all_ones()[0], {"macs": space.macs_dense}, {"macs": space.macs_dense}).problem == ""


# ---------------------------------------------------------------------- processes


def test_the_generation_of_a_run_is_that_of_its_latest_evaluation(first: Path, tmp_path: Path) -> None:
    assert latest_generation(first) == 1
    sql(first, "DELETE FROM evaluations")
    assert latest_generation(first) == -1
    (tmp_path / "evaluations.sqlite").write_bytes(b"")  # as it is before its tables are made
    assert latest_generation(tmp_path) == latest_generation(tmp_path / "nowhere") == -1


@needs_proc
def test_processes_that_stay_behind_are_found_and_killed() -> None:
    grandchild = "import subprocess, sys; subprocess.Popen(['sleep', '100']); print('started', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", grandchild], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"started\n"
    assert process.wait() == 0
    left = end_session(process.pid, grace_s=0.0)
    assert len(left) == 1
    assert end_session(process.pid, grace_s=10.0) == []
    assert os.getpid() in session_members(os.getsid(0))


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    command_line = CommandLine(tmp_path / "commands.log", {})
    with pytest.raises(CommandError, match=r"`evoprune search --mode globl` ended with 2: .*did you mean 'global'"):
        command_line.run(["search", "--mode", "globl"])


class Recorder:
    """Stands for a command line whose runs end before they are killed in generation ``end``."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.commands: list[str] = []

    def run(self, arguments: Sequence[str]) -> float:
        self.commands.append(" ".join(arguments))
        return 1.0

    def run_and_kill(self, arguments: Sequence[str], run: Path, generation: int) -> bool:  # noqa: ARG002 - protocol
        self.commands.append(f"{' '.join(arguments)} !{generation}")
        return generation < self.end


def test_a_run_is_resumed_after_every_kill() -> None:
    recorder = Recorder(end=9)
    assert kill_and_resume(cast(Any, recorder), ["search"], Path("RUN"), [0, 2, 5], ["1", "0", "2"]) == [0, 2, 5]
    assert recorder.commands == [
        "search --out RUN --workers 1 !0",
        "resume RUN --json --workers 0 !2",
        "resume RUN --json --workers 2 !5",
        "resume RUN --json --workers 1",
    ]
    recorder = Recorder(end=2)
    assert kill_and_resume(cast(Any, recorder), ["search"], Path("RUN"), [0, 2], ["0", "1"]) == [0]
    assert len(recorder.commands) == 2


def test_kills_are_a_seeded_choice() -> None:
    setting = Setting(n_kills=3)
    assert kill_plan("x", 2, setting)[0] == [0, 1]
    moments, workers = kill_plan("x", 40, setting)
    assert (moments, workers) == kill_plan("x", 40, setting)
    assert moments == sorted(set(moments))
    assert len(moments) == 3
    assert sorted(workers) == ["0", "1", "2"]
    assert moments != kill_plan("x", 40, replace(setting, seed=8))[0]
    assert moments != kill_plan("y", 40, setting)[0]


# ---------------------------------------------------------------------- the page


def test_tables_and_pages_say_what_differs() -> None:
    equal: Any = {"twice": [], "workers": [], "killed": []}
    good = Row("vgg16", "global", "0.3", 20, **equal, killed_in=[0, 1], budget_share=0.9988, seconds=12.4)
    found = {"workers": ["evaluation 3: objective is 1 and 2"], "killed": None}
    bad = Row("resnet20", "staged", "0.5", 30, **{**equal, **found}, budget_problem="above")
    lines = table([good, bad]).splitlines()
    assert lines[2] == "| vgg16 | global | 20 | equal | equal | 0, 1: equal | 99.88% | 12 |"
    assert [cell.strip() for cell in lines[3].split("|")[4:7]] == ["equal", "DIFFERS", "not shown"]
    text = page([good, bad], {"python": "3"})
    assert "in 1 of 2 cases all runs are equal" in text
    assert "* resnet20, staged: two workers: evaluation 3: objective is 1 and 2; above" in text
    assert "What differs" not in page([good], {})
    assert "Not run for this page: vgg16 pareto, " in page([good], {})
    complete = [replace(good, network=network, mode=mode) for network in ("vgg16", "resnet20") for mode in MODES]
    assert "Not run" not in page(complete, {})


def test_the_exit_code_says_whether_runs_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"global": Row("vgg16", "global", "0.3"), "random": Row("vgg16", "random", "0.3", twice=["result: x"])}

    def measured(case: Case, mode: str, *_: Any) -> Row:
        assert (case.network, case.budget) == ("vgg16", "0.3")
        assert case.options[2:] == ("--model-args", '{"width": 0.25}')
        return rows[mode]

    monkeypatch.setattr(reproducibility, "measure", measured)
    given = ["--networks", "vgg16", "--out", str(tmp_path / "out.json"), "--docs", str(tmp_path / "page.md")]
    assert reproducibility.main([*given, "--modes", "global"]) == 0
    assert reproducibility.main([*given, "--modes", "global,random"]) == 1
    assert "vgg16, random: again: result: x" in capsys.readouterr().err
    assert [row["mode"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == ["global", "random"]
    assert (tmp_path / "page.md").read_text().startswith("# Same seed, same run\n")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'global'"):
        reproducibility.main(["--modes", "globl"])
    with pytest.raises(UnknownNameError, match="did you mean 'resnet20'"):
        reproducibility.main(["--networks", "resnet21"])
    with pytest.raises(OptionError, match="`--weights` must be NETWORK=FILE, but got 'resnet20'"):
        reproducibility.main(["--weights", "resnet20"])


def test_the_first_images_of_each_split_are_taken(tmp_path: Path) -> None:
    few, digits = load_data(few_images("digits", 40, tmp_path / "few.npz")), load_data("digits")
    assert [len(split) for split in (few.train, few.val, few.test)] == [40, 40, 40]
    index = np.arange(40)
    assert torch.equal(few.val.take(index).images, digits.val.take(index).images)
    assert torch.equal(few.test.labels, digits.test.labels[:40])
