"""Stopped, killed, resumed, with any number of workers: the outcome is that of one uninterrupted run."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import evoprune
from evoprune.interruption import InterruptedRunError
from evoprune.observer import SilentObserver
from search_spaces.models import build_model
from tests.integration.command_line import run, small_search

ROOT = Path(__file__).parents[2]
#: A script that kills itself in the middle of a generation, as a power cut would.
KILLED = """
import os, signal, sys
import evoprune
from evoprune.observer import SilentObserver

class Killer(SilentObserver):
    def on_step(self, n_done, figures):
        if 2 < n_done < 3:
            os.kill(os.getpid(), signal.SIGKILL)

options = eval(sys.argv[1])
evoprune.search(observer=Killer(), **options)
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_search(tmp_path_factory.mktemp("inputs"), budget=0.5, population_size=6, n_generations=4)


@pytest.fixture(scope="module")
def uninterrupted(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "RUN"
    evoprune.search(**options, out=folder)
    return folder


def _same_run(first: Path, second: Path) -> None:
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        for name in ("wall_s", "search_s", "workers"):
            del result[name]
        random = result["random_search"] or {"rungs": {}}
        for figures in (*result["rungs"].values(), *random["rungs"].values()):
            del figures["seconds"]
    assert results[0] == results[1]
    assert _evaluations(first) == _evaluations(second)
    assert (first / "front.csv").read_bytes() == (second / "front.csv").read_bytes()
    for name in ("weights.safetensors", "evoprune.json"):
        assert (first / "best" / name).read_bytes() == (second / "best" / name).read_bytes()


def _evaluations(folder: Path) -> list[Any]:
    connection = sqlite3.connect(folder / "evaluations.sqlite")
    columns = "digest, rung, generation, position, genome, objective, metrics"
    rows = connection.execute(f"SELECT {columns} FROM evaluations ORDER BY generation, position, digest").fetchall()
    connection.close()
    return rows


class _CtrlC(SilentObserver):
    """Presses Ctrl-C, or sends another signal, when ``n_done`` is reached in the stage ``name``."""

    def __init__(self, name: str, n_done: float, number: signal.Signals = signal.SIGINT) -> None:
        self._name, self._n_done, self._signal = name, n_done, number
        self._stage = ""
        self._is_pressed = False

    def on_stage(self, name: str, n_steps: int | None) -> None:  # noqa: ARG002
        self._stage = name

    def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:  # noqa: ARG002
        if self._stage == self._name and n_done >= self._n_done and not self._is_pressed:
            self._is_pressed = True
            os.kill(os.getpid(), self._signal)


class _StopsIn(SilentObserver):
    """Asks to stop in the first stage whose name begins with ``name``."""

    def __init__(self, name: str) -> None:
        self._name, self._stage = name, ""

    def on_stage(self, name: str, n_steps: int | None) -> None:  # noqa: ARG002 - the observer's signature
        self._stage = name

    def should_stop(self) -> bool:
        return self._stage.startswith(self._name)


@pytest.mark.parametrize(("moment", "number"), [(0.5, signal.SIGINT), (3.4, signal.SIGINT), (3.4, signal.SIGTERM)])
def test_a_signal_saves_and_names_the_command_that_continues(
    options: dict[str, Any], uninterrupted: Path, tmp_path: Path, moment: float, number: signal.Signals
) -> None:
    folder = tmp_path / "RUN"
    with pytest.raises(InterruptedRunError, match=rf"continue with: evoprune resume {folder}"):
        evoprune.search(**options, out=folder, observer=_CtrlC("generations", moment, number))
    assert not (folder / "result.json").exists()
    outcome = run("resume", folder, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    _same_run(folder, uninterrupted)


def test_sigkill_in_the_middle_of_a_generation(options: dict[str, Any], uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    arguments = [sys.executable, "-c", KILLED, repr({**options, "out": str(folder)})]
    assert subprocess.run(arguments, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    evoprune.resume(folder)
    _same_run(folder, uninterrupted)


STAGES = {"mode": "staged", "stages": "features.?,features.1*,features.2*"}
DISTILLED = {"mode": "layerwise", "n_layer_distillation_steps": 2}


@pytest.mark.parametrize(
    "mode",
    [STAGES, {**STAGES, "budget": 1}, {"mode": "layerwise"}, DISTILLED],
    ids=["budget", "free", "layers", "distilled"],
)
def test_sigkill_in_a_search_of_parts(options: dict[str, Any], tmp_path: Path, mode: dict[str, Any]) -> None:
    given = {**options, "n_generations": 1, **mode}
    folder, whole = tmp_path / "RUN", tmp_path / "WHOLE"
    result = evoprune.search(**given, out=whole)
    arguments = [sys.executable, "-c", KILLED, repr({**given, "out": str(folder)})]
    assert subprocess.run(arguments, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    evoprune.resume(folder)
    _same_run(folder, whole)
    assert result.n_evaluations == len(_evaluations(whole))  # a probe that is asked for again counts once
    assert (whole / "sensitivity.csv").exists() == (result.budgets[0].budget < 1)
    assert all(figures.cost <= figures.limit for figures in result.budgets)


def test_stopped_between_the_search_and_its_result(
    options: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "RUN"
    with pytest.raises(InterruptedRunError, match="stopped after the search; continue with"):
        evoprune.search(**options, out=folder, observer=_StopsIn("adapting"))
    evoprune.resume(folder)
    _same_run(folder, uninterrupted)


def test_stopped_before_there_is_anything_to_resume(options: dict[str, Any], tmp_path: Path) -> None:
    class Stopping(SilentObserver):
        def should_stop(self) -> bool:
            return True

    with pytest.raises(InterruptedRunError, match="nothing was written; start it again"):
        evoprune.search(**options, out=tmp_path / "RUN", observer=Stopping())
    assert not list(tmp_path.iterdir())


def test_stopped_while_the_criteria_are_asked(options: dict[str, Any], uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    with pytest.raises(InterruptedRunError, match="stopped after the criteria; continue with"):
        evoprune.search(**options, out=folder, observer=_StopsIn("preparing"))
    watched = run("watch", folder, "--json").json
    assert (watched["status"], watched["reason"]) == ("interrupted", "asked to stop while it was prepared")
    evoprune.resume(folder)
    _same_run(folder, uninterrupted)


def test_a_run_continues_from_another_folder(
    options: dict[str, Any], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(options["weights"]).parent)
    relative = {**options, "weights": "weights.safetensors", "data": "npz:images.npz"}
    with pytest.raises(InterruptedRunError):
        evoprune.search(**relative, out=tmp_path / "RUN", observer=_CtrlC("generations", 2))
    monkeypatch.chdir(tmp_path)
    evoprune.resume("RUN")
    _same_run(tmp_path / "RUN", uninterrupted)


def test_ctrl_c_while_the_dense_network_is_trained_leaves_nothing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path / "cache"))

    class Stopping(_CtrlC):
        def should_stop(self) -> bool:
            return self._stage.startswith("training")

    untrained = {**options, "weights": None}
    with pytest.raises(InterruptedRunError, match="epochs of training; nothing was written"):
        evoprune.search(**untrained, out=tmp_path / "RUN", observer=Stopping("", 0))
    assert not list(tmp_path.iterdir())


#: A command that is interrupted, and says when it goes away.
GOING = """
import atexit, sys
from evoprune import api
from evoprune.cli import main
from evoprune.interruption import InterruptedRunError

def interrupted(*_, **__):
    raise InterruptedRunError(None)

atexit.register(lambda: print("going", flush=True))
api.search = interrupted
sys.argv = ["evoprune", "search"]
main()
"""


def test_a_ctrl_c_that_comes_too_late_does_not_change_the_exit_code() -> None:
    with subprocess.Popen([sys.executable, "-c", GOING], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 130


#: Statistics that are estimated anew tell the last bits of the network that they are estimated in.
RECALIBRATED = {"compensation": "recalibrate", "n_generations": 0}


def test_a_run_that_trains_the_dense_network_is_that_of_one_that_reads_it_from_the_cache(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path / "cache"))
    untrained = {**options, **RECALIBRATED, "weights": None, "train_epochs": 1}
    for name in ("TRAINED", "READ"):
        evoprune.search(**untrained, out=tmp_path / name)
    _same_run(tmp_path / "TRAINED", tmp_path / "READ")


def test_the_memory_format_of_a_network_does_not_decide_its_figures(options: dict[str, Any], tmp_path: Path) -> None:
    network = build_model("vgg16", 10, options["model_args"], (3, 16, 16))
    given = {name: value for name, value in options.items() if name not in ("model", "model_args", "weights")}
    given |= RECALIBRATED
    for name, memory_format in (("PLAIN", torch.contiguous_format), ("LAST", torch.channels_last)):
        evoprune.search(network.to(memory_format=memory_format), **given, out=tmp_path / name)
    _same_run(tmp_path / "PLAIN", tmp_path / "LAST")


def test_the_command_line_ends_with_130_and_one_line(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise InterruptedRunError(tmp_path / "RUN", "generation 3, 96 evaluations")

    monkeypatch.setattr("evoprune.api.search", interrupted)
    outcome = run("search")
    assert outcome.exit_code == 130
    assert outcome.stdout == ""
    expected = f"stopped after generation 3, 96 evaluations; continue with: evoprune resume {tmp_path / 'RUN'}"
    assert outcome.stderr.strip() == expected


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [{"mode": "staged", "stages": "features.?,features.1*"}, DISTILLED], ids=["stages", "distilled"]
)
def test_two_ray_workers_search_parts_alike(options: dict[str, Any], tmp_path: Path, mode: dict[str, Any]) -> None:
    given = {**options, **mode, "n_generations": 1}
    for name, workers in (("ONE", 0), ("TWO", 2)):
        evoprune.search(**given, out=tmp_path / name, workers=workers)
    _same_run(tmp_path / "ONE", tmp_path / "TWO")


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_workers_give_the_same_run(options: dict[str, Any], uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    result = evoprune.search(**options, out=folder, workers=2)
    assert result.workers == 2
    _same_run(folder, uninterrupted)


def test_the_first_ctrl_c_is_acknowledged_at_once(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evoprune.cli import progress

    class Pressing(progress.RichObserver):
        def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:
            super().on_step(n_done, figures)
            if n_done == 2:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress, "RichObserver", Pressing)
    arguments = ["search", "--model", "vgg16", "--model-args", json.dumps(options["model_args"])]
    arguments += ["--weights", options["weights"], "--data", options["data"], "--population", "6"]
    arguments += ["--fitness", "network"]  # 6 networks in each generation
    arguments += ["--n-fitness-images", "16", "--n-calibration-images", "16", "--out", str(tmp_path / "RUN"), "--json"]
    outcome = run(*arguments)
    assert outcome.exit_code == 130
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert "stopping at the next safe point; press Ctrl-C again to stop at once" in lines
    assert re.match(r"stopped after generation 1, \d+ evaluations; continue with: evoprune resume ", lines[-1])
