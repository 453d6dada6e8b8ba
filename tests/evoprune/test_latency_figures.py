"""Predicted and measured latencies of the networks of a run: on the table's machine, on another, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evoprune.budget import LATENCY
from evoprune.cli.tables import latency_lines
from evoprune.latency_figures import compare_latency
from evoprune.result import LatencyFigures, NetworkLatency
from search_spaces import prune_model
from search_spaces.latency import Conditions
from search_spaces.latency_measurement import device_name
from tests.search_spaces.spaces import random_genomes, traced
from tests.search_spaces.test_latency import expected_ns, table_of

NAMES = ("dense", "evolved", "baseline_uniform_l1")
HERE = Conditions("net", "cpu", device_name(torch.device("cpu")), str(torch.__version__), 1, 2, "float32", 2)


def figures_under(conditions: Conditions) -> LatencyFigures:
    """Return the figures of three networks by a table of ``conditions``; the predictions are those of the formula."""
    model, _, space = traced("residual")
    table = replace(table_of(space), conditions=conditions)
    space = space.with_cost(LATENCY, table.cost(space))
    genomes = [space.all_ones()[0], *random_genomes(space, 2)]
    networks = {name: (prune_model(model, space, genome), genome) for name, genome in zip(NAMES, genomes, strict=True)}
    figures = compare_latency(table, space, networks)
    for name, genome in zip(NAMES, genomes, strict=True):
        expected = expected_ns(model, space, genome)
        assert getattr(figures, name).predicted_ns == pytest.approx(expected, abs=len(table.tables))
    return figures


def measured(figures: LatencyFigures) -> list[int | None]:
    return [getattr(figures, name).measured_ns for name in NAMES]


def test_networks_are_measured_as_the_table_was() -> None:
    traced("residual")  # draws weights
    n_threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    figures = figures_under(HERE)
    assert torch.get_num_threads() == n_threads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (figures.n_threads, figures.batch_size, figures.dtype) == (1, 2, "float32")
    assert figures.differences == ()
    assert all(time is not None and time > 0 for time in measured(figures))


def test_another_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evoprune.latency_figures.n_usable_cores", lambda: 1)
    figures = figures_under(replace(HERE, device_name="a processor", torch_version="1.0", n_threads=2))
    device, version, threads = figures.differences
    assert device == f"the table speaks for a processor, this is {HERE.device_name}"
    assert version == f"the table was measured with torch 1.0, this is {HERE.torch_version}"
    assert threads == "the table speaks for 2 threads, this process may use 1"
    assert all(time is not None and time > 0 for time in measured(figures))


def test_nothing_is_measured_on_a_device_that_is_not_here() -> None:
    figures = figures_under(replace(HERE, device="cuda:99", device_name="an accelerator"))
    assert measured(figures) == [None, None, None]
    assert figures.differences == ("the table speaks for cuda:99 (an accelerator), which this machine has not",)


@pytest.mark.parametrize(
    ("measured_ns", "line"),
    [
        (2_200_000, "latency: 2 ms predicted, 2.2 ms measured (+10.0%) with 1 threads, batch size 2, float32"),
        (1_500_000, "latency: 2 ms predicted, 1.5 ms measured (-25.0%) with 1 threads, batch size 2, float32"),
        (None, "latency: 2 ms predicted with 1 threads, batch size 2, float32; not measured"),
    ],
)
def test_latency_in_words(measured_ns: int | None, line: str) -> None:
    network = NetworkLatency(predicted_ns=2_000_000, measured_ns=measured_ns)
    figures = LatencyFigures(
        **dict.fromkeys(NAMES, network),
        device="cpu",
        device_name="a processor",
        n_threads=1,
        batch_size=2,
        dtype="float32",
        differences=("it rains",),
    )
    assert latency_lines(figures) == [line, "beware: it rains"]
