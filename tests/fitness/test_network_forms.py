"""Every form of network that a search space is found for can be judged, and what is handed back is what was judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.compensation import SequentialCompensation, shortcut_partners
from fitness.merging import MergeCompensation
from fitness.precision import candidate_dtype
from fitness.program import Program, SlicedTensors
from fitness.recalibration import Recalibration
from fitness.static_compensation import StaticCompensation
from fitness.statistics import StatisticsOptions, collect_statistics
from fitness.two_step import TwoStep
from fitness.writeback import compensated_model
from search_spaces import SearchSpace, prune_model, stages_of
from search_spaces.genome import BoolArray
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise, relative_difference
from tests.search_spaces.patterns import PATTERNS


class Stem(nn.Module):
    """A convolution, a middle part that differs, and a head."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 8, 3, stride=2), middle, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.head(self.middle(functional.relu(self.stem(x))).mean((2, 3)))
        return value


class ContextBlock(nn.Module):
    """One number per channel is added to the map that it was made from."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        context: Tensor = self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x + context


class Offset(nn.Module):
    """A parameter is added to what a layer makes."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.layer, self.offset = nn.Conv2d(8, 8, 3), nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.layer(x) + self.offset)


class FunctionalNorm(nn.Module):
    """A batch norm that no module stands for."""

    mean: Tensor
    power: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(8, 6, 3, bias=False), nn.Conv2d(6, 8, 1)
        self.scale, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.register_buffer("mean", torch.randn(6) * 0.1)
        self.register_buffer("power", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(self.layer(x), self.mean, self.power, self.scale, self.shift)
        value: Tensor = self.last(functional.relu(y))
        return value


class SharedNorm(nn.Module):
    """One batch norm behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.second(functional.relu(self.norm(self.first(x))))))


class BatchStatistics(nn.Module):
    """A norm by the batch at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.layer(x)))


class FunctionalBatchStatistics(FunctionalNorm):
    """A function that normalises by the batch at hand, whatever the mode; it has statistics to update, or copies."""

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        mean, power = (self.mean.clone(), self.power.clone()) if self.copies else (self.mean, self.power)
        y = functional.batch_norm(self.layer(x), mean, power, self.scale, self.shift, training=True)
        value: Tensor = self.last(functional.relu(y))
        return value


class ComputedNorm(FunctionalNorm):
    """A batch norm by statistics that are computed from the network's own."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(self.layer(x), self.mean, self.power.abs(), self.scale * 2, self.shift)
        value: Tensor = self.last(functional.relu(y))
        return value


class Tokens(nn.Module):
    """Linear layers over tokens, on a residual stream."""

    def __init__(self, *, is_flat: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.is_flat = is_flat

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2) if self.is_flat else x.permute(0, 2, 3, 1)
        y = y + self.down(functional.gelu(self.up(self.norm(y))))
        return y.transpose(1, 2).unflatten(2, x.shape[2:]) if self.is_flat else y.permute(0, 3, 1, 2)


class OwnConstant(nn.Module):
    """Images are normalised by numbers in the code; one weight belongs to the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight, self.head = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(6, 8, 1, 1)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)))
        value: Tensor = self.head(functional.relu(functional.conv2d(x, self.weight)).mean((2, 3)))
        return value


class ViewBesideActivation(nn.Module):
    """A view of what a layer makes is read after the layer's activation, which comes last to read the layer itself."""

    def __init__(self, *, is_split: bool) -> None:
        super().__init__()
        self.layer, self.gate, self.is_split = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), is_split

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        views = y.chunk(2, 1) if self.is_split else (y.flatten(2),)
        gates = self.gate(functional.relu(y)).flatten(2).chunk(len(views), 1)
        sums = [view.flatten(2) + gate for view, gate in zip(views, gates, strict=True)]
        return torch.cat(sums, 1).unsqueeze(3)


class ExpandedGate(nn.Module):
    """One number per channel is written out over the map by sizes that the code asks for."""

    def __init__(self, *, names_batch: bool) -> None:
        super().__init__()
        self.squeeze, self.excite, self.names_batch = nn.Linear(8, 6), nn.Linear(6, 8), names_batch

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.size()
        gate = self.excite(functional.relu(self.squeeze(x.mean((2, 3))))).sigmoid().view(n, channels, 1, 1)
        return x * gate.expand(n if self.names_batch else -1, channels, height, width)


class ShapedOffset(nn.Module):
    """A parameter of one number per channel is brought into the shape of the map by sizes that the code asks for."""

    def __init__(self, *, is_written_out: bool) -> None:
        super().__init__()
        self.layer, self.offset, self.is_written_out = nn.Conv2d(8, 8, 3), nn.Parameter(torch.ones(8)), is_written_out

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        n, channels, height, width = x.shape
        offset = self.offset.view(1, channels, 1, 1)
        return functional.relu(x + (offset.expand(n, channels, height, width) if self.is_written_out else offset))


class OtherNumbers(nn.Module):
    """Buffers that are not float32, and a ramp that the code makes, meet maps and a norm of its own."""

    mask: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.last = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.register_buffer("mask", torch.arange(25).view(1, 1, 5, 5) % 3 > 0)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8, dtype=torch.float64).view(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(functional.relu(self.layer(x)) * self.mask.float())
        y = y * self.scale.to(y.dtype) + torch.linspace(0, 1, 5)
        return functional.relu(self.last(y))


FORMS: Mapping[str, Callable[[], nn.Module]] = {
    "context block": lambda: Stem(ContextBlock()),
    "scalar offset": lambda: Stem(Offset(1)),
    "offset per channel": lambda: Stem(Offset(1, 8, 1, 1)),
    "functional norm": lambda: Stem(FunctionalNorm()),
    "functional batch statistics": lambda: Stem(FunctionalBatchStatistics(copies=False)),
    "functional batch statistics, copied": lambda: Stem(FunctionalBatchStatistics(copies=True)),
    "computed norm": lambda: Stem(ComputedNorm()),
    "shared norm": lambda: Stem(SharedNorm()),
    "batch statistics": lambda: Stem(BatchStatistics()),
    "tokens": lambda: Stem(Tokens(is_flat=True)),
    "channels last": lambda: Stem(Tokens(is_flat=False)),
    "own constant": OwnConstant,
    "expanded gate": lambda: Stem(ExpandedGate(names_batch=True)),
    "expanded gate, open batch": lambda: Stem(ExpandedGate(names_batch=False)),
    "viewed offset": lambda: Stem(ShapedOffset(is_written_out=False)),
    "expanded offset": lambda: Stem(ShapedOffset(is_written_out=True)),
    "other numbers": lambda: Stem(OtherNumbers()),
    "view beside activation": lambda: Stem(ViewBesideActivation(is_split=False)),
    "parts beside activation": lambda: Stem(ViewBesideActivation(is_split=True)),
}
COMPENSATIONS: Mapping[str, Callable[[Program, Tensor], Callable[[BoolArray], SlicedTensors]]] = {
    "sliced": lambda program, _: program.slice,
    "static": lambda program, inputs: StaticCompensation(program, collect_statistics(program, inputs)),
    "sequential": SequentialCompensation,
    "merged": MergeCompensation,
    "recalibrated": Recalibration,
}


@cache
def prepared(name: str) -> tuple[nn.Module, Program, Tensor, BoolArray]:
    """Return network, program, images and a genome; patterns of the search spaces are forms, too."""
    torch.manual_seed(0)
    shape: tuple[int, ...] = (3, 12, 12)
    if name in FORMS:
        model = FORMS[name]()
    else:
        model, shape = PATTERNS[name].build(), tuple(PATTERNS[name].inputs()[0].shape[1:])
    randomise(model, seed=3)
    model = model.float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    space = SearchSpace.trace(model, torch.randn(2, *shape, generator=generator))
    inputs = torch.randn(16 if space.graph.batch_is_dynamic else 2, *shape, generator=generator)
    genome = space.sample(rng=np.random.default_rng(0), n=1)[0]
    return model, Program(space, named_tensors(model)), inputs, genome


SEARCHABLE = [*FORMS, *(name for name, pattern in PATTERNS.items() if pattern.n_genes and len(pattern.inputs()) == 1)]


def first(output: Any) -> Tensor:
    """Return the first of the outputs of a network."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


@pytest.mark.parametrize("name", SEARCHABLE)
def test_the_program_is_the_sliced_network(name: str) -> None:
    model, program, inputs, genome = prepared(name)
    expected = first(prune_model(model, program.space, genome)(inputs))
    assert relative_difference(expected, program.run(program.slice(genome), [inputs])[program.outputs[0]]) < 1e-4


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("name", SEARCHABLE)
def test_what_is_handed_back_is_what_was_judged(name: str, compensation: str) -> None:
    model, program, inputs, genome = prepared(name)
    tensors = COMPENSATIONS[compensation](program, inputs)(genome)
    judged = program.run(tensors, [inputs])[program.outputs[0]]
    assert torch.isfinite(judged).all()
    assert relative_difference(judged, first(compensated_model(model, program, tensors)(inputs))) < 1e-3


@pytest.mark.parametrize("max_bytes", [0, 1 << 26])
@pytest.mark.parametrize("name", SEARCHABLE)
def test_errors_of_layers_are_finite_and_an_update_never_adds_to_them(name: str, max_bytes: int) -> None:
    _, program, inputs, genome = prepared(name)
    two_step = TwoStep(program, collect_statistics(program, inputs, StatisticsOptions(max_bytes=max_bytes)))
    without, after = two_step.e1(genome[None]), two_step.e2(genome[None])
    assert np.isfinite(without).all()
    assert (after <= without * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("staging", ["resolution", "blocks"])
@pytest.mark.parametrize("name", FORMS)
def test_every_group_is_in_a_stage(name: str, staging: str) -> None:
    _, program, _, _ = prepared(name)
    groups = np.concatenate([stage.groups for stage in stages_of(program.space, staging)])
    assert sorted(groups.tolist()) == list(range(len(program.space.groups)))


@pytest.mark.parametrize("name", ["context block", "scalar offset", "offset per channel"])
def test_what_is_broadcast_is_no_shortcut(name: str) -> None:
    assert not shortcut_partners(prepared(name)[1])


@pytest.mark.parametrize("name", ["tokens", "channels last"])
def test_linear_layers_over_tokens_are_solved(name: str) -> None:
    """Compensation has to come nearer to the dense network than the slice is."""
    _, program, inputs, genome = prepared(name)
    (_, (total, _)) = next(iter(shortcut_partners(program).items()))
    assert total
    compensate = SequentialCompensation(program, inputs)
    dense = program.slice(program.space.all_ones()[0])
    outputs = [program.run(t, [inputs])[program.outputs[0]] for t in (dense, program.slice(genome), compensate(genome))]
    assert (outputs[2] - outputs[0]).square().sum() < 0.9 * (outputs[1] - outputs[0]).square().sum()


@pytest.mark.parametrize("name", ["tokens", "channels last"])
def test_the_energy_of_a_sum_over_tokens_is_the_variance_of_its_features(name: str) -> None:
    _, program, inputs, _ = prepared(name)
    ((layer, (total, _)),) = shortcut_partners(program).items()
    statistics = collect_statistics(program, inputs, StatisticsOptions(n_positions=10_000))
    dense = program.slice(program.space.all_ones()[0])
    value = program.run(dense, [inputs], keep=[total])[total]
    expected = value.flatten(0, -2).double().var(dim=0, correction=0).sum()
    (found,) = (consumer.energy for consumer in statistics.consumers if consumer.layer == layer)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_targets_are_what_the_layer_puts_out_and_not_what_its_activation_leaves() -> None:
    """In float32 a linear layer's output is overwritten by the ReLU behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)
    ).eval()
    inputs = torch.randn(40, 3, 4, 4)
    program = Program(SearchSpace.trace(model, inputs[:2]), named_tensors(model))
    dense = program.slice(program.space.all_ones()[0])
    values = program.run(dense, [inputs], keep=list(program.layers))
    targets = SequentialCompensation(program, inputs).targets
    assert len(targets) >= 2
    for name, target in targets.items():
        assert torch.equal(target.rows, values[name])
        assert name == "linear_2" or target.rows.min() < 0


def test_a_norm_by_the_batch_at_hand_updates_nothing() -> None:
    _, program, inputs, _ = prepared("functional batch statistics")
    before = {name: tensor.clone() for name, tensor in program.raw_tensors.items()}
    program.run(program.slice(program.space.all_ones()[0]), [inputs])
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.raw_tensors.items())


@pytest.mark.parametrize("name", [name for name in SEARCHABLE if name != "three dimensions"])  # pools without kernels
def test_candidates_run_in_bfloat16(name: str) -> None:
    _, program, inputs, genome = prepared(name)
    exact = program.run(program.slice(genome), [inputs])[program.outputs[0]]
    short = program.run(program.slice(genome).cast(torch.bfloat16), [inputs.bfloat16()])[program.outputs[0]]
    assert short.dtype == torch.bfloat16
    assert relative_difference(exact, short.float()) < 0.1


def test_networks_whose_operators_do_not_know_bfloat16_run_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("not implemented for 'BFloat16'")  # what torch raises where it has no kernel

    model, program, *_ = prepared("own constant")
    monkeypatch.setattr("fitness.precision.gains_by_bfloat16", lambda _: True)
    assert candidate_dtype(model, program.space, "cpu") == torch.bfloat16
    monkeypatch.setattr(Program, "run", refuse)
    assert candidate_dtype(model, program.space, "cpu") == torch.float32
