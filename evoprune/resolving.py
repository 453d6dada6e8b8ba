"""From what a user gives to options that hold: what is missing is drawn or chosen, what does not fit is refused."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from evoprune.budget import LATENCY, METRICS, budget_texts, parse_budgets
from evoprune.comparison import COMPARISONS
from evoprune.fitness_plan import FITNESSES
from evoprune.knowledge import LEARNED, parse_criteria
from evoprune.modes import MODES
from evoprune.options import NetworkOptions, Options, SearchOptions
from evoprune.preparation import OBJECT
from fitness.data import DATA
from fitness.data.torchvision_sets import TORCHVISION_SETS
from fitness.options import FITNESS_IMAGES
from search_spaces.errors import OptionError, UnknownNameError

_N_SEED_BITS = 32

OptionsT = TypeVar("OptionsT", bound=Options)


def resolve_options(kind: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Return validated options of ``kind``; a ``seed`` of None or none at all is drawn.

    Raises:
        BudgetError: The budget is malformed.
        OptionError: Any other option breaks its rule, or is unknown; the message names all that do.
    """
    given = dict(values)
    if "seed" in kind.model_fields and given.get("seed") is None:
        given["seed"] = draw_seed()
    mode = given.get("mode", "global")
    if "budget" in kind.model_fields and given.get("budget") is None:
        given["budget"] = MODES[mode].default_budget if isinstance(mode, str) and mode in MODES else None
    _refuse_unknown_names(given)
    try:
        options = kind.model_validate(given)
    except ValidationError as error:
        problems = [_described(kind, problem) for problem in error.errors(include_url=False)]
        raise OptionError("; ".join(dict.fromkeys(problems))) from None
    if isinstance(options, NetworkOptions):
        _check_data_root(options)
    if isinstance(options, SearchOptions):
        _check_mode(options)
        _check_latency_table(options)
    return options


def draw_seed() -> int:
    """Return a fresh master seed, for a user who gave none; it is recorded, so that the run can be repeated."""
    return secrets.randbits(_N_SEED_BITS)


def with_absolute_paths(options: SearchOptions) -> SearchOptions:
    """Return ``options`` with every path made absolute, so that a run can be continued from another folder."""
    changes: dict[str, Any] = {
        name: path.expanduser().absolute()
        for name in ("weights", "data_root", "latency_table")
        if (path := getattr(options, name)) is not None
    }
    kind, _, path = options.data.partition(":")
    if path and f"{kind}:PATH" in DATA:
        changes["data"] = f"{kind}:{Path(path).expanduser().absolute()}"
    return options.model_copy(update=changes)


def _refuse_unknown_names(given: Mapping[str, Any]) -> None:
    """Check names and budgets whose errors are of a kind of their own, which a validation error would hide.

    Values of a wrong type are left to the validation.

    Raises:
        UnknownNameError: A name is unknown.
        BudgetError: A budget is malformed.
    """
    for kind, option, valid in (
        ("mode", "mode", MODES),
        ("fitness", "fitness", FITNESSES),
        ("comparison", "compare", COMPARISONS),
        ("metric", "metric", METRICS),
        ("kind of fitness images", "fitness_images", ("auto", *FITNESS_IMAGES)),
    ):
        name = given.get(option)
        if isinstance(name, str) and name not in valid:
            raise UnknownNameError(kind, name, valid)
    texts, metric = budget_texts(given.get("budget")), given.get("metric")
    if isinstance(texts, tuple) and isinstance(metric, str | None):
        parse_budgets(texts, metric)
    for option, learned in (("seed_with", ()), ("prior", LEARNED)):
        criteria = given.get(option)
        if isinstance(criteria, str):
            parse_criteria(criteria, learned)


def _check_data_root(options: NetworkOptions) -> None:
    """Check that a folder of downloads is given only with images that are downloaded.

    Raises:
        OptionError: Nothing would be read from it, or written to it.
    """
    kind = options.data.partition(":")[0]
    is_known = kind in DATA or f"{kind}:PATH" in DATA or options.data.startswith(OBJECT)
    if options.data_root is not None and is_known and kind not in TORCHVISION_SETS:
        raise OptionError(
            f"`data_root` is the folder that {', '.join(TORCHVISION_SETS)} are downloaded to, but got "
            f"data_root={str(options.data_root)!r} with data={options.data!r}; leave it out"
        )


def _check_mode(options: SearchOptions) -> None:
    """Refuse options that the mode would not read.

    Raises:
        OptionError: There is one.
    """
    for name, mode in MODES.items():
        for option in mode.options:
            if getattr(options, option) is not None and option not in MODES[options.mode].options:
                raise OptionError(
                    f"`{option}` is read in mode {name!r} only, but the mode is {options.mode!r}; leave one of them out"
                )
    if options.compare is not None and not MODES[options.mode].is_informed:
        raise OptionError(
            f"`compare` sets random search beside a search, but the mode {options.mode!r} is a baseline itself; leave "
            "it out, or choose another mode"
        )
    if options.compare is not None and options.n_layer_distillation_steps:
        raise OptionError(
            "`compare` judges random cuts of the dense network, but with `n_layer_distillation_steps` candidates are "
            "cuts of networks that were distilled in between, which random ones are not; leave one of them out"
        )
    budgets = parse_budgets(options.budget, options.metric)
    if options.cost_weight is not None and any(not b.is_fraction or b.value < 1 for b in budgets):
        raise OptionError(
            f"`cost_weight` decides the ratio where there is no budget, but got cost_weight={options.cost_weight} and "
            f"the budget {', '.join(options.budget)}; leave one of them out"
        )


def _check_latency_table(options: SearchOptions) -> None:
    """Check that there is no latency table where latency is not budgeted.

    Raises:
        OptionError: There is one that nothing asks for.
    """
    is_budgeted = LATENCY in [budget.metric for budget in parse_budgets(options.budget, options.metric)]
    if options.latency_table is not None and not is_budgeted:
        raise OptionError(
            f"a latency table serves a budget of latency, but got {str(options.latency_table)!r} and budgets "
            f"{', '.join(options.budget)}; add for instance `--budget latency=0.5`, or leave the table out"
        )


def _described(kind: type[Options], problem: Any) -> str:
    if not problem["loc"]:  # a rule about several options, whose message names them
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"unknown option `{name}`; valid: {', '.join(sorted(kind.model_fields))}"
    field = kind.model_fields.get(name)
    rule = problem["msg"].removeprefix("Value error, ")
    purpose = f" ({name} = {field.description})" if field is not None and field.description else ""
    return f"`{name}`: {rule[:1].lower()}{rule[1:]}, but got {problem['input']!r}{purpose}"
