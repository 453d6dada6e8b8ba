"""From ``--fitness`` to a ladder: which rungs a search uses, what for, and how many candidates pass each."""

from __future__ import annotations

from collections.abc import Mapping

from evoprune.knowledge import MIXTURE, NONE
from evoprune.modes import MODES
from evoprune.options import SearchOptions
from evoprune.search.config import LadderPlan
from fitness.distillation import DISTILLATION_RUNG
from fitness.ladder import SHIPPED_RUNG, fewer_images_rung, needs_modules
from fitness.network import NETWORK_RUNG
from fitness.two_step import E1_RUNG, E2_RUNG
from fitness.wavelet import WAVELET_RUNG
from search_spaces.errors import OptionError, UnknownNameError

FITNESSES: Mapping[str, str] = {
    "two-step": "E1 screens, E2 judges: layer errors from Gram matrices, no image is passed forward",
    "wavelet": "wavelet aggregation (GWCS) judges, no image is passed forward",
    "network": "the sliced, compensated network judges; --halvings screen on fewer images first",
    "distill": "the network after a short finetuning by distillation judges; dear",
    "ladder": "E2 screens, the compensated network judges, elites are judged as they would be shipped",
}
_DEFAULTS = {"screen_factor": 2, "n_elites": 2}
#: Options that only some fitnesses read; given to another one they are refused, not ignored.
_READERS: Mapping[str, tuple[str, ...]] = {
    "screen_factor": ("two-step", "network", "ladder"),
    "n_halvings": ("network", "ladder"),
    "n_elites": ("ladder",),
    "n_elite_images": ("ladder",),
    "n_distillation_steps": ("distill",),
}
_USUAL_OBJECTIVE = SearchOptions.model_fields["objective"].default
#: Options that only modes read which ask criteria.
_OF_CRITERIA = ("seed_with", "prior", "seed_share", "random_share", "prior_temperature")
#: Options that only searches read in which some rung compares predictions.
_OF_FITNESS_IMAGES = ("n_fitness_images", "fitness_images")
_WITHOUT_IMAGES = (E1_RUNG, E2_RUNG, WAVELET_RUNG)


def ladder_plan(options: SearchOptions, n_fitness_images: int | None = None) -> LadderPlan:
    """Return which rung does what in the search that ``options`` describe.

    Args:
        options: Resolved options.
        n_fitness_images: How many there are, where the data has fewer than were asked for.

    Raises:
        UnknownNameError: There is no such fitness.
        OptionError: An option is given that the fitness does not read, or there are too few images to halve.
    """
    name = options.fitness
    if name not in FITNESSES:
        raise UnknownNameError("fitness", name, FITNESSES)
    for option, readers in _READERS.items():
        if getattr(options, option) is not None and name not in readers:
            raise OptionError(
                f"`{option}` is read by the fitness {', '.join(readers)} only, but the fitness is {name!r}; "
                "leave one of them out"
            )
    screen_factor, n_elites = (_given(options, option) for option in ("screen_factor", "n_elites"))
    n_halvings = options.n_halvings or 0
    if name == "network" and options.screen_factor is not None and not n_halvings:
        raise OptionError("`screen_factor` needs a rung that screens, but 'network' has none without halvings")
    halving = _halving(n_halvings, min(n_fitness_images or options.n_fitness_images, options.n_fitness_images))
    judge = {"two-step": E2_RUNG, "wavelet": WAVELET_RUNG, "distill": DISTILLATION_RUNG}.get(name, NETWORK_RUNG)
    if judge in _WITHOUT_IMAGES and options.objective != _USUAL_OBJECTIVE:
        raise OptionError(
            f"the fitness {name!r} passes no images forward, but got objective={options.objective!r}; leave the "
            "objective out, or choose another fitness"
        )
    screen = {"two-step": E1_RUNG, "ladder": E2_RUNG}.get(name)
    if screen_factor == 1 and n_halvings:
        raise OptionError(
            f"`n_halvings` needs offspring to choose from, but got n_halvings={n_halvings} with screen_factor=1; leave "
            "one of them out"
        )
    if n_elites == 0 and options.n_elite_images is not None:
        raise OptionError(
            f"`n_elite_images` needs elites to judge, but got n_elite_images={options.n_elite_images} with n_elites=0; "
            "leave one of them out"
        )
    if screen_factor == 1:
        screen = None
    return LadderPlan(
        judge=judge,
        screen=screen,
        halving=halving,
        elite=SHIPPED_RUNG if name == "ladder" and n_elites else None,
        screen_factor=screen_factor,
        n_elites=max(n_elites, 1),
    )


def check_fitness(options: SearchOptions, *, is_object: bool) -> None:
    """Check what can be checked before anything is prepared.

    Args:
        options: Resolved options.
        is_object: Whether the network was given as a Python object.

    Raises:
        UnknownNameError: There is no such fitness, objective, compensation or kind of images.
        OptionError: Options contradict each other.
    """
    options.fitness_options(is_trained_here=True)
    plan = ladder_plan(options)
    mode = MODES[options.mode]
    for used, names, what in (
        (mode.uses_screens, ("screen_factor", "n_halvings"), "lets no rung screen"),
        (mode.uses_elites, ("n_elites", "n_elite_images"), "judges no elites"),
    ):
        given = [name for name in names if getattr(options, name)]
        if given and not used:
            raise OptionError(f"the mode {options.mode!r} {what}, but `{given[0]}` is given; leave it out")
    given = [name for name in _READERS if getattr(options, name) is not None and name != "n_distillation_steps"]
    if given and mode.own_ladder is not None:
        raise OptionError(f"the mode {options.mode!r} has a ladder of its own, but `{given[0]}` is given; leave it out")
    usual: dict[str, tuple[object, ...]] = {
        name: (field.default,) for name, field in type(options).model_fields.items() if name in _OF_CRITERIA
    }
    usual |= dict.fromkeys(("seed_with", "prior"), (MIXTURE, NONE))
    asked = [name for name in _OF_CRITERIA if getattr(options, name) not in usual[name]]
    if asked and not mode.is_informed:
        raise OptionError(
            f"the mode {options.mode!r} asks no criteria, but got {asked[0]}={getattr(options, asked[0])!r}; leave it "
            "out"
        )
    given = [name for name in _OF_FITNESS_IMAGES if getattr(options, name) != type(options).model_fields[name].default]
    if given and not judges_images(options):
        raise OptionError(
            f"`{given[0]}` is of the images that predictions are compared on, but nothing compares any with "
            f"fitness={options.fitness!r} in mode {options.mode!r}; leave it out"
        )
    _check_criteria(options)
    if is_object and options.workers and needs_modules(plan.rungs):
        raise OptionError(
            "distillation finetunes the network's own modules, which workers must be able to build from a name, but "
            f"the network was given as a Python object and workers={options.workers}; leave the workers out, or name "
            "its factory as package.module:factory"
        )


def _check_criteria(options: SearchOptions) -> None:
    """Check that shares and temperature of criteria are given only where some criterion is asked.

    Raises:
        OptionError: One is given that nothing reads.
    """
    for option, criteria in (
        ("seed_share", ("seed_with",)),
        ("prior_temperature", ("prior",)),
        ("random_share", ("seed_with", "prior")),
    ):
        value, usual = getattr(options, option), SearchOptions.model_fields[option].default
        if value != usual and all(getattr(options, name).strip() == NONE for name in criteria):
            raise OptionError(
                f"`{option}` is read where criteria are asked, but got {option}={value} with "
                f"{' and '.join(f'{name}={NONE}' for name in criteria)}; leave it out, or name criteria"
            )


def judges_images(options: SearchOptions) -> bool:
    """Return whether any rung of the search that ``options`` describe compares predictions for images."""
    return any(rung not in _WITHOUT_IMAGES for rung in MODES[options.mode].plan(ladder_plan(options)).rungs)


def objective_name(rung: str, objective: str) -> str:
    """Return what the numbers of ``rung`` are: the ``objective``, or the rung's own figure."""
    return rung if rung in _WITHOUT_IMAGES else objective


def _given(options: SearchOptions, option: str) -> int:
    value = getattr(options, option)
    return _DEFAULTS[option] if value is None else int(value)


def _halving(n_halvings: int, n_images: int) -> tuple[str, ...]:
    """Return the rungs on ``n_images`` halved again and again, cheapest first."""
    fewest = n_images >> n_halvings
    if n_halvings and fewest < 2:
        raise OptionError(
            f"`n_halvings` must leave at least 2 of the fitness images, but {n_images} halved {n_halvings} times are "
            f"{fewest}; halve less often"
        )
    return tuple(fewer_images_rung(n_images >> power) for power in range(n_halvings, 0, -1))
