"""Every criterion by name: what options accept, `evoprune list criteria` prints, and the contract tests run over."""

from __future__ import annotations

from collections.abc import Mapping

from fitness.criteria.contract import Criterion
from fitness.criteria.exp import ExpectationClasses
from fitness.criteria.feature_maps import FeatureMapSimilarity, MapRank
from fitness.criteria.gates import FirstOrderTaylor, GroupFisher
from fitness.criteria.texture import DynamicThreshold, TextureAngle
from fitness.criteria.weights import BatchNormScale, FilterNorm, GeometricMedian, RandomScores

CRITERIA: Mapping[str, Criterion] = {
    "bn-gamma": BatchNormScale(),
    "cdp": TextureAngle(),
    "dtc": DynamicThreshold(),
    "exp": ExpectationClasses("B"),
    "exp-bn": ExpectationClasses("A"),
    "fpgm": GeometricMedian(),
    "group-fisher": GroupFisher(),
    "hrank": MapRank(),
    "l1": FilterNorm(1),
    "l2": FilterNorm(2),
    "qsfm-psnr": FeatureMapSimilarity("psnr"),
    "qsfm-ssim": FeatureMapSimilarity("ssim"),
    "random": RandomScores(),
    "taylor": FirstOrderTaylor(),
}
