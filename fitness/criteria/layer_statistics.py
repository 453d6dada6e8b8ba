"""Criteria that need nothing but statistics which the fitness package gathers anyway: two-step and wavelet."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from fitness.statistics import StatisticsOptions
from fitness.statistics_cache import cached_two_step
from fitness.wavelet import WaveletAggregation
from fitness.wavelet_transform import WaveletOptions

#: Covariances beyond it are not kept; the widest layers are then ordered by E1, which takes seconds and not a minute.
MAX_COVARIANCE_BYTES = 1 << 26


@dataclass(frozen=True)
class TwoStepElimination:
    """Greedy backward elimination on the channel Gram matrix, remaining weights updated after every removal.

    A channel's score is its marginal: the error that its removal adds once those less wanted are gone.

    Attributes:
        max_bytes: Of all covariances; layers beyond it are eliminated without update (E1).
        damping: Of the update.
    """

    max_bytes: int = MAX_COVARIANCE_BYTES
    damping: float = 1e-2

    name = "two-step"
    summary = "greedy elimination on the channel Gram matrix with optimal updates (E2), E1 where memory ends"
    roles = frozenset({"scores"})
    reference = (
        "GA two-step, arXiv 1805.11394 (our reading), with the optimal brain surgeon's elimination (Hassibi 1993) on "
        "blocks of columns"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return marginal errors, larger = more wanted, comparable over the network."""
        options = StatisticsOptions(max_bytes=self.max_bytes)
        data = data.on_processor()
        scores = cached_two_step(data.program, data.inputs, options, damping=self.damping).scores()
        known = {index: scores[group.start : group.stop] for index, group in data.groups}
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(known), is_global=True)


@dataclass(frozen=True)
class WaveletEnergy:
    """Share of a channel's energy in its detail sub-bands, times the Fisher ratio of its sub-band energies.

    ``w_c = E_b[energy(LH + HL + HH) / energy] * between-class / within-class scatter``; without a second class the
    share alone.

    Attributes:
        options: Of the transform.
    """

    options: WaveletOptions = field(default_factory=WaveletOptions)

    name = "wavelet"
    summary = "detail share of sub-band energy times Fisher ratio of the classes"
    roles = frozenset({"scores"})
    reference = (
        "Genetic wavelet channel search, Front. Comput. Neurosci. 15:760554, 2021: the formula is our reconstruction; "
        "by predictions where there are no labels"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted, comparable within a group: maps of the group's first consumer count."""
        inputs = data.inputs.to(torch.float32)
        scores = WaveletAggregation(data.program, inputs, data.target_labels, self.options).scores()
        return ChannelKnowledge(
            data.sizes,
            scores=data.gather_scores({index: scores[group.start : group.stop] for index, group in data.groups}),
        )
