"""The course of a search for TensorBoard: ``tensorboard --logdir RUN``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evoprune.callbacks import Callback, GenerationFinished, SearchOutcome, SearchStarted
from evoprune.loggers.figures import figures_of, import_extra


class TensorBoardLogger(Callback):
    """Writes scalars per generation to ``tensorboard/`` in the run directory.

    Args:
        options: Resolved options of the run, written as text.

    Raises:
        OptionError: TensorBoard is not installed.
    """

    description = "TensorBoard event files in the run directory; needs the extra `tensorboard`"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._make_writer = import_extra("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._options = options
        self._writer: Any = None

    def on_start(self, event: SearchStarted) -> None:
        """Open the event file; what an earlier session wrote after its last checkpoint is purged."""
        is_new = event.generation < 0
        purged = None if is_new else event.generation + 1
        self._writer = self._make_writer(str(event.run_path / "tensorboard"), purge_step=purged)
        if is_new:
            self._writer.add_text("options", f"```json\n{json.dumps(self._options, indent=2)}\n```", 0)

    def on_generation(self, event: GenerationFinished) -> None:
        """Write the figures of the generation."""
        for name, value in figures_of(event).items():
            self._writer.add_scalar(f"search/{name}", value, event.generation)
        self._writer.flush()

    def on_end(self, outcome: SearchOutcome) -> None:
        """Write why the session ended, and close the file."""
        self._writer.add_text("end", f"{outcome.status}: {outcome.reason}", max(outcome.generation, 0))
        self._writer.close()

    def on_failure(self, message: str) -> None:
        """Write the error, and close the file."""
        if self._writer is not None:
            self._writer.add_text("end", f"failed: {message}")
            self._writer.close()
