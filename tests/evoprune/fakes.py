"""A small space and evaluators with known answers, importable by workers in other processes."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fitness.evaluation import LOWER_BOUND, Evaluation
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, genome_digest


@dataclass
class CountingEvaluator:
    """The objective is the mean squared distance to a target, through float32 torch operations; calls are counted."""

    target: npt.NDArray[np.float32]
    raise_on: frozenset[str] = frozenset()
    exit_on: frozenset[str] = frozenset()
    nan_on: frozenset[str] = frozenset()
    rungs: Sequence[str] = ("cheap", "network", "dear")
    seen: list[tuple[str, str]] = field(default_factory=list)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        return [self._evaluate(genome, rung) for genome in genomes]

    def _evaluate(self, genome: BoolArray, rung: str) -> Evaluation:
        digest = genome_digest(genome)
        self.seen.append((digest, rung))
        if digest in self.exit_on:
            os._exit(1)
        if digest in self.raise_on:
            raise ArithmeticError("this genome is not to be evaluated")
        if digest in self.nan_on:
            return Evaluation(digest, rung, 8, math.nan)
        target = torch.tensor(self.target)
        bits = torch.from_numpy(genome.astype(np.float32))
        scale = {"cheap": 100.0, "network": 1.0, "dear": 0.01}[rung]
        weights = torch.sin(torch.arange(len(bits)) * (2.0 if rung == "cheap" else 1.0)) + 1.5
        error = float(((bits - target) ** 2 * weights).mean()) * scale
        return Evaluation(digest, rung, 8, error, {"accuracy": 1 - error, "n_threads": float(torch.get_num_threads())})


@dataclass
class StoppingFake(CountingEvaluator):
    """Sees half of the images of a genome that exceeds the limit, and takes its objective for a tenth more."""

    limits: list[float] = field(default_factory=list)

    def evaluate_up_to(self, genomes: BoolArray, rung: str, limit: float) -> list[Evaluation]:
        self.limits.append(limit)
        return [
            whole if whole.objective <= limit else self._stopped(whole, limit) for whole in self.evaluate(genomes, rung)
        ]

    def _stopped(self, whole: Evaluation, limit: float) -> Evaluation:
        bound = (whole.objective + limit) / 2
        return replace(whole, n_images=4, objective=1.1 * whole.objective, metrics={LOWER_BOUND: bound})


@dataclass(frozen=True)
class FakeRecipe:
    """Builds a :class:`CountingEvaluator`."""

    arrays: Mapping[str, npt.NDArray[Any]]
    raise_on: frozenset[str] = frozenset()
    exit_on: frozenset[str] = frozenset()
    broken: bool = False
    stops: bool = False

    def with_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> FakeRecipe:
        return replace(self, arrays=dict(arrays))

    def build(self) -> CountingEvaluator:
        if self.broken:
            raise ValueError("no evaluator can be built from this recipe")
        evaluator = StoppingFake if self.stops else CountingEvaluator
        return evaluator(self.arrays["target"], self.raise_on, self.exit_on)


def make_target(n_genes: int) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(7).random(n_genes) < 0.4).astype(np.float32)


class TinyNet(nn.Module):
    """Three convolutions, two of them coupled by a residual sum, and a classifier: three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 17, 1)
        self.classifier = nn.Linear(17, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.classifier(torch.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def tiny_space() -> SearchSpace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about its own parts
        return SearchSpace.trace(TinyNet(), torch.zeros(2, 3, 8, 8))
