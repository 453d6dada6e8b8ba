"""The course of a search for an MLflow server, or for the local store that MLflow chooses without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evoprune.callbacks import Callback, GenerationFinished, SearchOutcome, SearchStarted
from evoprune.loggers.figures import figures_of, import_extra
from evoprune.run_directory import write_json

_EXPERIMENT = "evoprune"
_ID_FILE = "mlflow.json"
_MAX_PARAM_LENGTH = 500  # the shortest limit of MLflow's stores


class MLflowLogger(Callback):
    """Writes options and figures per generation to one MLflow run of the experiment ``evoprune``.

    The server is that of ``MLFLOW_TRACKING_URI``. The run's id is kept in ``mlflow.json`` of the run directory, so that
    a resumed search goes on in the same MLflow run. Nothing global is touched: no active run, no tracking URI.

    Args:
        options: Resolved options of the run, written as parameters.

    Raises:
        OptionError: MLflow is not installed.
    """

    description = "an MLflow run on the server of MLFLOW_TRACKING_URI; needs the extra `mlflow`"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._make_client = import_extra("mlflow", "mlflow").MlflowClient
        self._options = options
        self._client: Any = None
        self._run_id = ""

    def on_start(self, event: SearchStarted) -> None:
        """Open the MLflow run of this search, or make it."""
        self._client = self._make_client()
        id_file = event.run_path / _ID_FILE
        if id_file.is_file():
            self._run_id = json.loads(id_file.read_text(encoding="utf-8"))["run_id"]
            self._client.update_run(self._run_id, status="RUNNING")
            return
        self._run_id = self._create(event.run_path)
        write_json(id_file, {"run_id": self._run_id})
        for name, value in self._options.items():
            self._client.log_param(self._run_id, name, str(value)[:_MAX_PARAM_LENGTH])

    def on_generation(self, event: GenerationFinished) -> None:
        """Write the figures of the generation."""
        for name, value in figures_of(event).items():
            self._client.log_metric(self._run_id, name, value, step=event.generation)

    def on_end(self, outcome: SearchOutcome) -> None:
        """Write why the session ended, and end the MLflow run; a resumed search opens it again."""
        self._client.set_tag(self._run_id, "evoprune.end", f"{outcome.status}: {outcome.reason}")
        self._client.set_terminated(self._run_id, "FINISHED" if outcome.status == "finished" else "KILLED")

    def on_failure(self, message: str) -> None:
        """Write the error, and end the MLflow run."""
        if self._run_id:
            self._client.set_tag(self._run_id, "evoprune.end", f"failed: {message}")
            self._client.set_terminated(self._run_id, "FAILED")

    def _create(self, run_path: Path) -> str:
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment_id = self._client.create_experiment(_EXPERIMENT) if experiment is None else experiment.experiment_id
        tags = {"evoprune.run_path": str(run_path)}
        return str(self._client.create_run(experiment_id, run_name=run_path.name, tags=tags).info.run_id)
