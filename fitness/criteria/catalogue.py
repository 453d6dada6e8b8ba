"""Every criterion by name: what options accept, `evoprune list criteria` prints, and the contract tests run over."""

from __future__ import annotations

from collections.abc import Mapping

from fitness.criteria.contract import Criterion
from fitness.criteria.correlation import MapCorrelation
from fitness.criteria.entropic import EntropicSparsification
from fitness.criteria.exp import ExpectationClasses
from fitness.criteria.feature_maps import FeatureMapSimilarity, MapRank
from fitness.criteria.gates import FirstOrderTaylor, GroupFisher
from fitness.criteria.hashing import HashBuckets
from fitness.criteria.information import Information
from fitness.criteria.layer_statistics import TwoStepElimination, WaveletEnergy
from fitness.criteria.texture import DynamicThreshold, TextureAngle
from fitness.criteria.trained_gates import PruneNet, Scop
from fitness.criteria.weights import BatchNormScale, FilterNorm, GeometricMedian, RandomScores

CRITERIA: Mapping[str, Criterion] = {
    "bn-gamma": BatchNormScale(),
    "ccm": MapCorrelation(),
    "cdp": TextureAngle(),
    "dtc": DynamicThreshold(),
    "entropic": EntropicSparsification(),
    "exp": ExpectationClasses("B"),
    "exp-bn": ExpectationClasses("A"),
    "fpgm": GeometricMedian(),
    "group-fisher": GroupFisher(),
    "hrank": MapRank(),
    "info": Information(),
    "l1": FilterNorm(1),
    "l2": FilterNorm(2),
    "lsh": HashBuckets(),
    "prunenet": PruneNet(),
    "qsfm-psnr": FeatureMapSimilarity("psnr"),
    "qsfm-ssim": FeatureMapSimilarity("ssim"),
    "random": RandomScores(),
    "scop": Scop(),
    "taylor": FirstOrderTaylor(),
    "two-step": TwoStepElimination(),
    "wavelet": WaveletEnergy(),
}
