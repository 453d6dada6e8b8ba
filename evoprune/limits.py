"""When a run ends, by its options; and how a run that is resumed is given more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evoprune.options import SearchOptions, resolve_options
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
    """Return ``options`` with the limits that the run was last resumed with, and those ``given`` now.

    Args:
        run: Its ``limits.json`` is read, and written where anything is given.
        options: Those that the run was started with.
        given: Limits by name; None leaves one as it is.

    Raises:
        OptionError: A limit is unknown or breaks its rule.
        RunDirectoryError: ``limits.json`` is damaged or cannot be written.
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
    if changed:
        write_json(run.limits_path, {name: getattr(limited, name) for name in LIMITS})
    return limited
