"""Where else the course of a search is written, besides ``log.jsonl``: callbacks that need an extra each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evoprune.callbacks import Callback
from evoprune.loggers.mlflow import MLflowLogger
from evoprune.loggers.tensorboard import TensorBoardLogger
from search_spaces.errors import UnknownNameError

LOGGERS: Mapping[str, type[TensorBoardLogger] | type[MLflowLogger]] = {
    "mlflow": MLflowLogger,
    "tensorboard": TensorBoardLogger,
}


def make_loggers(names: Sequence[str], options: Mapping[str, Any]) -> list[Callback]:
    """Return the loggers ``names``, each once.

    Args:
        names: Keys of :data:`LOGGERS`.
        options: Resolved options of the run, JSON values; written down with the first event.

    Raises:
        UnknownNameError: There is no such logger.
        OptionError: The library of one is not installed; the message names the extra.
    """
    for name in names:
        if name not in LOGGERS:
            raise UnknownNameError("logger", name, LOGGERS)
    return [LOGGERS[name](options) for name in dict.fromkeys(names)]


__all__ = ["LOGGERS", "MLflowLogger", "TensorBoardLogger", "make_loggers"]
