"""A stage evaluator shares what its genomes share, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fitness.compensation import CompensationOptions
from fitness.network import NETWORK_RUNG, NetworkEvaluator, StageEvaluator
from fitness.options import FitnessOptions
from fitness.program import Program
from search_spaces import SearchSpace
from search_spaces.errors import GenomeShapeError
from search_spaces.genome import BoolArray, IntArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise


def _setting(name: str, compensation: str) -> tuple[SearchSpace, NetworkEvaluator]:
    model = build_model(name, model_args={"width": 0.25}).eval()
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 32, 32), verify=False)
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.nn.functional.one_hot(torch.arange(6) % 10, 10).float()
    options = FitnessOptions(
        compensation=compensation,  # type: ignore[arg-type]
        batch_size=4,
        solve=CompensationOptions(n_positions=8),
    )
    evaluator = NetworkEvaluator(Program(space, named_tensors(model)), images[:6], labels, images[6:], options)
    return space, evaluator


def _stage(space: SearchSpace, *, share: float) -> tuple[BoolArray, IntArray, BoolArray]:
    """Return a base genome, open genes in the last groups, and genomes that differ there."""
    rng = np.random.default_rng(3)
    base = space.sample(rng=rng, n=1, macs_budget=0.6)[0]
    first = space.groups[int(len(space.groups) * share)].start
    genomes = np.repeat(base[None], 3, axis=0)
    for group in space.groups:
        if group.start >= first:
            for genome in genomes:
                genome[group.start : group.stop] = True
                genome[group.start + rng.integers(group.size)] = False
    return base, np.arange(first, space.n_genes), genomes


@pytest.mark.parametrize("compensation", ["none", "sequential", "static", "merge", "recalibrate"])
@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_a_stage_judges_as_the_whole_does(name: str, compensation: str) -> None:
    space, whole = _setting(name, compensation)
    base, open_genes, genomes = _stage(space, share=0.7)
    stage = StageEvaluator(whole, base, open_genes)
    assert stage.prefix_bytes > 0
    assert stage.evaluate(genomes, NETWORK_RUNG) == whole.evaluate(genomes, NETWORK_RUNG)


def test_without_memory_nothing_is_shared_and_nothing_changes() -> None:
    space, whole = _setting("vgg16", "sequential")
    base, open_genes, genomes = _stage(space, share=0.7)
    stage = StageEvaluator(whole, base, open_genes, max_bytes=0)
    assert stage.evaluate(genomes, NETWORK_RUNG) == whole.evaluate(genomes, NETWORK_RUNG)


def test_a_genome_of_another_stage_is_refused() -> None:
    space, whole = _setting("vgg16", "none")
    base, open_genes, genomes = _stage(space, share=0.7)
    stage = StageEvaluator(whole, base, open_genes)
    genomes[0, 0] = ~base[0]
    with pytest.raises(GenomeShapeError, match="agree outside its open genes"):
        stage.evaluate(genomes, NETWORK_RUNG)
