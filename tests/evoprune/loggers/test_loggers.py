"""Loggers of other programs: what they write, over a resume too, and what is said where their library is missing."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evoprune
from evoprune.callbacks import GenerationFinished
from evoprune.loggers import LOGGERS, make_loggers
from evoprune.loggers.figures import figures_of
from evoprune.search import BestGenome
from evoprune.stopping import MaxEvaluations
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space
from tests.evoprune.test_runner import Recorder, make_run, run
from tests.evoprune.tiny_data import bars, small_network

OPTIONS = {"model": "tiny", "seed": 11, "model_args": {"width": "x" * 900}}


class FakeClient:
    """Keeps what an MLflow server would; one server per test."""

    server: dict[str, Any]

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if name in self.server["experiments"] else None

    def create_experiment(self, name: str) -> str:
        self.server["experiments"].append(name)
        return "7"

    def create_run(self, experiment_id: str, *, run_name: str, tags: Mapping[str, str]) -> Any:
        assert experiment_id == "7"
        run_id = f"run-{len(self.server['runs'])}"
        self.server["runs"][run_id] = {
            "name": run_name,
            "tags": dict(tags),
            "params": {},
            "metrics": {},
            "status": ["RUNNING"],
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.server["runs"][run_id]["status"].append(status)

    def log_param(self, run_id: str, name: str, value: str) -> None:
        assert len(value) <= 500
        self.server["runs"][run_id]["params"][name] = value

    def log_metric(self, run_id: str, name: str, value: float, *, step: int) -> None:
        self.server["runs"][run_id]["metrics"].setdefault(name, {})[step] = value

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self.server["runs"][run_id]["tags"][name] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.server["runs"][run_id]["status"].append(status)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = ModuleType("mlflow")
    FakeClient.server = {"experiments": [], "runs": {}}
    module.MlflowClient = FakeClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return FakeClient.server


def test_figures_are_finite_numbers() -> None:
    row = {"gen": 3, "best": 0.5, "best_digest": "ab", "elite_best": None, "std": math.nan, "n_failed": 0}
    best = BestGenome(make_target(4) > 0, "ab", 0.5, "network")
    assert figures_of(GenerationFinished(3, row, best, 40, 2, 1.5)) == {
        "best": 0.5,
        "n_failed": 0.0,
        "n_evaluations": 40.0,
        "n_cached": 2.0,
        "elapsed_s": 1.5,
    }


def test_tensorboard_shows_every_generation_over_a_resume(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    run(directory, *make_loggers(["tensorboard"], OPTIONS), stop=MaxEvaluations(40))
    _, search = run(directory, *make_loggers(["tensorboard"], OPTIONS))
    events = EventAccumulator(str(directory.path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("search/best")
    assert [event.step for event in scalars] == [0, 1, 2, 3, 4]
    assert [event.value for event in scalars] == pytest.approx(search.logbook.select("best"), rel=1e-6)
    assert "search/n_evaluations" in events.Tags()["scalars"]
    (text,) = events.Tensors("options/text_summary")
    written = text.tensor_proto.string_val[0].decode()
    assert json.loads(written.removeprefix("```json\n").removesuffix("\n```")) == OPTIONS
    assert [t.tensor_proto.string_val[0] for t in events.Tensors("end/text_summary")][-1] == b"finished: 4 generations"


def test_mlflow_goes_on_in_the_same_run_after_a_resume(tmp_path: Path, server: dict[str, Any]) -> None:
    directory = make_run(tmp_path / "run")
    run(directory, *make_loggers(["mlflow"], OPTIONS), Recorder(interrupt_after=40))
    _, search = run(directory, *make_loggers(["mlflow"], OPTIONS))
    assert server["experiments"] == ["evoprune"]
    (tracked,) = server["runs"].values()
    assert tracked["name"] == "run"
    assert tracked["params"]["seed"] == "11"
    assert list(tracked["metrics"]["best"].items()) == list(enumerate(search.logbook.select("best")))
    assert tracked["status"] == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert tracked["tags"] == {"evoprune.run_path": str(directory.path), "evoprune.end": "finished: 4 generations"}


def test_the_installed_mlflow_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", (tmp_path / "store").as_uri())
    directory, recorder = make_run(tmp_path / "run"), Recorder()
    _, search = run(directory, *make_loggers(["mlflow"], OPTIONS), recorder)
    assert recorder.warnings == []
    client = mlflow.MlflowClient()
    run_id = json.loads((directory.path / "mlflow.json").read_text())["run_id"]
    assert [metric.value for metric in client.get_metric_history(run_id, "best")] == search.logbook.select("best")
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.params["model"] == "tiny"


def test_a_server_that_does_not_answer_costs_no_run(
    tmp_path: Path, server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(FakeClient, "get_experiment_by_name", refuse)
    recorder = Recorder()
    outcome, _ = run(make_run(tmp_path / "run"), *make_loggers(["mlflow"], OPTIONS), recorder)
    assert outcome.status == "finished"
    assert [message.split(";")[0] for message in recorder.warnings] == [
        "callback MLflowLogger raised ConnectionError: connection refused"
    ]


def test_an_error_that_ends_the_search_ends_the_records_too(tmp_path: Path, server: dict[str, Any]) -> None:
    class Broken(CountingEvaluator):
        def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
            return [] if rung == "dear" else super().evaluate(genomes, rung)

    directory = make_run(tmp_path / "run")
    with pytest.raises(ExecutionError):
        run(
            directory,
            *make_loggers(["mlflow", "tensorboard"], OPTIONS),
            evaluator=Broken(make_target(tiny_space().n_genes)),
        )
    (tracked,) = server["runs"].values()
    assert tracked["status"] == ["RUNNING", "FAILED"]
    assert tracked["tags"]["evoprune.end"].startswith("failed: ExecutionError: ")
    events = EventAccumulator(str(directory.path / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("end/text_summary")
    assert text.tensor_proto.string_val[0].startswith(b"failed: ExecutionError: ")


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_library_names_the_extra(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=rf"logger '{name}' needs the extra.*pip install 'evoprune\[{name}\]'"):
        make_loggers([name], OPTIONS)


def test_an_unknown_logger_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="tensorboard"):
        evoprune.search(data="npz:nowhere.npz", out=tmp_path / "RUN", loggers=("tensorbord",))
    assert not list(tmp_path.iterdir())
    assert sorted(LOGGERS) == list(LOGGERS)


def test_loggers_and_callbacks_from_python(tmp_path: Path) -> None:
    recorder = Recorder()
    result = evoprune.search(
        small_network(),
        bars(),
        budget=0.6,
        seed=0,
        population_size=4,
        n_generations=1,
        n_fitness_images=16,
        out=tmp_path / "RUN",
        loggers=("tensorboard", "tensorboard"),
        callbacks=[recorder],
    )
    assert [e.generation for e in recorder.events if isinstance(e, GenerationFinished)] == [0, 1]
    assert len(list((result.run / "tensorboard").iterdir())) == 1
    assert json.loads((result.run / "config.json").read_text())["options"]["loggers"] == ["tensorboard", "tensorboard"]
