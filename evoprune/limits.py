"""When a run ends, by its options; and how a run that is resumed is given more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evoprune.checkpoint import CheckpointFolder
from evoprune.modes import MODES
from evoprune.options import SearchOptions
from evoprune.resolving import resolve_options
from evoprune.run_directory import RunDirectory, read_json, write_json
from evoprune.stopping import (
    HypervolumeGain,
    MaxEvaluations,
    MaxSeconds,
    Patience,
    StopRule,
    Target,
)
from search_spaces.errors import OptionError, RunDirectoryError

#: Options that say when a run ends, and what it is compared with then; they may be others when it is resumed, since no
#: genome of the search depends on them.
LIMITS = ("n_generations", "max_evaluations", "max_time_s", "patience", "target", "min_hypervolume_gain", "compare")


def check_course(options: SearchOptions, names: Iterable[str] = ("population_size", *LIMITS)) -> None:
    """Check that neither sizes nor stop rules are given in a mode that has no generations.

    Args:
        options: Resolved options.
        names: Those that are given now.

    Raises:
        OptionError: There is one, which nothing would read.
    """
    for name in names:
        value, usual = getattr(options, name), SearchOptions.model_fields[name].default
        is_true = name == "n_generations" and value == 0
        if value != usual and not is_true and not MODES[options.mode].has_course:
            raise OptionError(
                f"the mode {options.mode!r} judges one network and has no generations, but got {name}={value}; leave "
                "it out, or choose another mode"
            )


def stop_rules(options: SearchOptions) -> tuple[StopRule, ...]:
    """Return the rules of which the first that applies ends the search before its generations are done."""
    rules: list[StopRule] = []
    if options.max_evaluations is not None:
        rules.append(MaxEvaluations(options.max_evaluations))
    if options.max_time_s is not None:
        rules.append(MaxSeconds(options.max_time_s))
    if options.patience is not None:
        rules.append(Patience(options.patience))
    if options.target is not None:
        rules.append(Target(options.target))
    if options.min_hypervolume_gain is not None:
        rules.append(HypervolumeGain(options.min_hypervolume_gain))
    return tuple(rules)


def with_limits(run: RunDirectory, options: SearchOptions, given: Mapping[str, Any]) -> SearchOptions:
    """Return ``options`` with the limits that the run was last resumed with, and those ``given`` now. Writes nothing.

    Args:
        run: Its ``limits.json`` is read, and its last checkpoint.
        options: Those that the run was started with.
        given: Limits by name; None leaves one as it is.

    Raises:
        OptionError: A limit is unknown or breaks its rule, or the generations cannot be changed to that number.
        RunDirectoryError: ``limits.json`` is damaged.
    """
    unknown = given.keys() - set(LIMITS)
    if unknown:
        raise OptionError(
            f"a run may be resumed with other limits only, but got {', '.join(sorted(unknown))}; limits are "
            f"{', '.join(LIMITS)}"
        )
    recorded = read_json(run.limits_path) if run.limits_path.is_file() else {}
    recorded = {name: value for name, value in recorded.items() if name in LIMITS}
    changed = {name: value for name, value in given.items() if value is not None}
    try:
        before = resolve_options(SearchOptions, options.model_dump() | recorded)
    except OptionError as error:
        raise RunDirectoryError(
            f"{run.limits_path} must hold the limits of the run, but {error}; delete it for those it began with"
        ) from error
    limited = resolve_options(SearchOptions, before.model_dump() | changed)
    check_course(limited, changed)
    if limited.n_generations != before.n_generations:
        _check_generations(run, limited, before.n_generations)
    return limited


def record_limits(run: RunDirectory, options: SearchOptions) -> None:
    """Write the limits among ``options`` to the ``limits.json`` of ``run``.

    Raises:
        RunDirectoryError: It cannot be written.
    """
    write_json(run.limits_path, {name: getattr(options, name) for name in LIMITS})


def _check_generations(run: RunDirectory, options: SearchOptions, n_before: int) -> None:
    """Refuse a number of generations with which the run would not be one that began with it."""
    if MODES[options.mode].is_sequential:
        raise OptionError(
            f"generations of mode {options.mode!r} count per part of the network, and what follows a part depends on "
            f"them, so they stay at {n_before}, but got {options.n_generations}; leave them out, or start a new run"
        )
    checkpoint, _ = CheckpointFolder(run.checkpoint_path).load_latest()
    if checkpoint is not None and options.n_generations < checkpoint.generation:
        raise OptionError(
            f"a run cannot be resumed with fewer generations than it has done, which are {checkpoint.generation}, but "
            f"got n_generations={options.n_generations}; give {checkpoint.generation} to end it there, or more"
        )
