"""Every name that an option accepts, with one line for people: what ``evoprune list`` prints."""

from __future__ import annotations

from collections.abc import Mapping

from evoprune.budget import METRICS
from evoprune.comparison import COMPARISONS
from evoprune.exporting import FORMAT_DESCRIPTIONS
from evoprune.fitness_plan import FITNESSES
from evoprune.knowledge import LEARNED
from evoprune.loggers import LOGGERS
from evoprune.modes import MODES
from fitness.criteria import CRITERIA
from fitness.data import DATA
from fitness.ladder import RUNGS
from fitness.options import COMPENSATIONS, FITNESS_IMAGES, OBJECTIVES
from search_spaces.models import MODELS

_MODELS_FROM_ELSEWHERE = {
    "package.module:factory": "a function of yours that returns a network; --model-args are its keywords",
    "timm:<name>": "a network of timm (extra `timm`), without its weights",
    "torchvision:<name>": "a classification network of torchvision, without its weights",
}


def catalogue() -> dict[str, Mapping[str, str]]:
    """Return sections of names with their descriptions, each section sorted."""
    models = {name: spec.description for name, spec in MODELS.items()} | _MODELS_FROM_ELSEWHERE
    criteria = {name: criterion.summary for name, criterion in CRITERIA.items()}
    criteria |= {name: criterion.summary for name, criterion in LEARNED.items()}
    sections: dict[str, Mapping[str, str]] = {
        "models": models,
        "data": DATA,
        "criteria": criteria,
        "fitness": FITNESSES,
        "rungs": RUNGS,
        "objectives": OBJECTIVES,
        "fitness-images": FITNESS_IMAGES,
        "compensations": COMPENSATIONS,
        "metrics": {name: metric.purpose for name, metric in METRICS.items()},
        "modes": {name: mode.description for name, mode in MODES.items()},
        "comparisons": COMPARISONS,
        "formats": FORMAT_DESCRIPTIONS,
        "loggers": {name: logger.description for name, logger in LOGGERS.items()},
    }
    return {section: dict(sorted(names.items())) for section, names in sections.items()}
