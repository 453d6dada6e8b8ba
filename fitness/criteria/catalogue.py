"""Every criterion by name: what options accept, `evoprune list criteria` prints, and the contract tests run over."""

from __future__ import annotations

from collections.abc import Mapping

from fitness.criteria.contract import Criterion
from fitness.criteria.weights import BatchNormScale, FilterNorm, GeometricMedian, RandomScores

CRITERIA: Mapping[str, Criterion] = {
    "bn-gamma": BatchNormScale(),
    "fpgm": GeometricMedian(),
    "l1": FilterNorm(1),
    "l2": FilterNorm(2),
    "random": RandomScores(),
}
