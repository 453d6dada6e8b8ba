"""The wavelet score against loops over Haar blocks, the two-step score against single removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fitness.criteria import CriterionInput
from fitness.criteria.contract import Criterion
from fitness.criteria.entropic import EntropicSparsification
from fitness.criteria.layer_statistics import TwoStepElimination, WaveletEnergy
from fitness.program import Program
from fitness.statistics import StatisticsOptions, collect_statistics
from fitness.two_step import TwoStep
from search_spaces.genome import FloatArray
from tests.fitness.criteria.networks import maps_of
from tests.fitness.networks import program_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))


def haar_energies(image: FloatArray) -> list[float]:
    """Return the energy of LL, LH, HL and HH of one map with even sides, block by block."""
    energies = [0.0] * 4
    for row in range(0, image.shape[0], 2):
        for column in range(0, image.shape[1], 2):
            a, b, c, d = image[row : row + 2, column : column + 2].flatten().tolist()
            for band, value in enumerate((a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)):
                energies[band] += (value / 2) ** 2
    return energies


@pytest.mark.parametrize("name", ["convolution", "coupled, several readers", "grouped"])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_wavelet_score_is_detail_share_times_fisher_ratio(name: str, n_classes: int) -> None:
    _, program, inputs = program_of(name)
    labels = torch.arange(len(inputs)) % n_classes
    data = CriterionInput(program, inputs, labels, batch_size=7)
    scores = WaveletEnergy().compute(data).scores
    assert scores is not None
    read_by_convolutions = np.concatenate(
        [layer.in_genes for layer in program.layers.values() if layer.kernel and layer.in_genes is not None]
    )
    checked = [(index, group) for index, group in data.groups if group.start in read_by_convolutions]
    assert checked
    for index, group in checked:  # what a linear layer reads behind a global average has one pixel, and no details
        maps = maps_of(data, index)[0][:, :, 0].double().numpy()
        for gene in range(group.size):
            energies = np.array([haar_energies(image) for image in maps[:, gene]])
            share = np.mean([e[1:].sum() / e.sum() if e.sum() > 0 else 0.0 for e in energies])
            between = within = 0.0
            for label in range(n_classes):
                members = energies[labels.numpy() == label]
                between += len(members) * float(((members.mean(axis=0) - energies.mean(axis=0)) ** 2).sum())
                within += float(((members - members.mean(axis=0)) ** 2).sum())
            fisher = between / within if n_classes > 1 and within > 0 else 1.0 if n_classes == 1 else 0.0
            assert scores[group.start + gene] == pytest.approx(share * fisher, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["convolution", "grouped", "coupled, several readers"])
def test_the_least_two_step_score_is_the_cheapest_single_removal(name: str) -> None:
    _, program, inputs = program_of(name)
    data = CriterionInput(program, inputs)
    knowledge = TwoStepElimination(damping=1e-7).compute(data)
    assert knowledge.scores is not None
    assert knowledge.is_global
    two_step = TwoStep(program, collect_statistics(program, inputs, StatisticsOptions()), damping=1e-7)
    for _, group in data.groups:
        singles = np.repeat(program.space.all_ones(), group.size, axis=0)
        singles[np.arange(group.size), group.start + np.arange(group.size)] = False
        errors = two_step.e2(singles)
        scores = knowledge.scores[group.start : group.stop]
        if not errors.any():  # nothing measured reads the group
            continue
        assert scores.argmin() == errors.argmin()
        assert scores.min() == pytest.approx(errors.min(), rel=1e-3, abs=1e-9)


def test_without_memory_scores_are_those_of_the_gram_matrix() -> None:
    _, program, inputs = program_of("convolution")
    scores = TwoStepElimination(max_bytes=0).compute(CriterionInput(program, inputs)).scores
    two_step = TwoStep(program, collect_statistics(program, inputs, StatisticsOptions(max_bytes=0)))
    group = program.space.groups[0]
    left = list(range(group.size))
    assert scores is not None
    genome = program.space.all_ones()[0]
    while left:  # greedy by the marginals of E1
        marginals = two_step.flip_marginals(genome)[: group.size]
        gone = min(left, key=lambda gene: float(marginals[gene]))
        assert scores[gone] == scores[left].min()
        genome[gone] = False
        left.remove(gone)


class Elsewhere(CriterionInput):
    """Its program holds no numbers; what is moved to the processor does."""

    def on_processor(self) -> CriterionInput:
        return CriterionInput(program_of("convolution")[1], self.inputs)


@pytest.mark.parametrize("criterion", [TwoStepElimination(), EntropicSparsification()])
def test_small_matrices_are_solved_on_the_processor(
    criterion: Criterion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    _, program, inputs = program_of("convolution")
    nowhere = Program(program.space, {name: tensor.to("meta") for name, tensor in program.raw_tensors.items()})
    found, expected = (
        criterion.compute(data) for data in (Elsewhere(nowhere, inputs), CriterionInput(program, inputs))
    )
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("criterion", [TwoStepElimination(), EntropicSparsification()])
def test_tensors_may_lie_on_another_device(
    criterion: Criterion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPRUNE_CACHE", str(tmp_path))
    _, program, inputs = program_of("convolution")
    there = Program(program.space, {name: tensor.cuda() for name, tensor in program.raw_tensors.items()})
    found, expected = (criterion.compute(CriterionInput(*pair)) for pair in ((there, inputs.cuda()), (program, inputs)))
    np.testing.assert_array_equal(found.scores, expected.scores)
