from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from search_spaces import SearchSpace
from search_spaces.errors import OptionError, TraceError
from search_spaces.export import export_graph
from search_spaces.graph import NetworkGraph, Ref
from search_spaces.time_limit import time_limit
from search_spaces.verification import output_tensors, relative_difference
from tests.search_spaces.patterns import PATTERNS, build_pattern


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x if x.sum() > 0 else -x


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, _x: Tensor) -> Tensor:
        raise KeyError("no such thing")


class LoopOverBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.layer(image).mean((1, 2))) for image in x])


class OwnPrecision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.layer(x)
        return self.head(x.mean((2, 3)))


class EndlessLoop(nn.Module):
    def forward(self, _x: Tensor) -> Tensor:
        while True:
            time.sleep(0.01)


def test_operations_name_their_module_and_read_earlier_values() -> None:
    model, inputs = build_pattern("residual")
    graph = export_graph(model, inputs)
    known = {*graph.inputs, *graph.tensors, *graph.constants}
    for operation in graph.operations:
        assert set(operation.refs()) <= known
        known.add(operation.name)
    convolutions = [operation for operation in graph.operations if operation.op == "conv2d"]
    assert [operation.module for operation in convolutions] == ["stem.0", "inner.0", "outer.0"]
    assert convolutions[0].shape[1:] == (6, 8, 8)


def test_in_place_operators_become_functional() -> None:
    model, inputs = build_pattern("in-place operators")
    assert not any(operation.op.endswith("_") for operation in export_graph(model, inputs).operations)


def run(graph: NetworkGraph, model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what the operations of ``graph`` make of ``inputs``, one after the other."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values: dict[str, object] = {name: tensors[qualified] for name, qualified in graph.tensors.items()}
    values |= {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}

    def resolve(item: object) -> object:
        if isinstance(item, Ref):
            return values[item.name]
        return type(item)(resolve(part) for part in item) if isinstance(item, (list, tuple)) else item

    with torch.no_grad():
        for operation in graph.operations:
            keywords = {key: resolve(item) for key, item in operation.kwargs.items()}
            values[operation.name] = operation.target(*(resolve(item) for item in operation.args), **keywords)
    return [value for name in graph.outputs if isinstance(value := values[name], Tensor)]


@pytest.mark.parametrize("name", PATTERNS)
def test_the_graph_computes_what_the_network_computes(name: str) -> None:
    model, inputs = build_pattern(name)
    actual = run(export_graph(model, inputs), model, [value.clone() for value in inputs])
    with torch.no_grad():
        expected = output_tensors(model(*inputs))
    assert relative_difference(expected, actual) < 1e-12


def test_batch_size_is_open_where_the_code_allows_it() -> None:
    model, inputs = build_pattern("chain")
    assert export_graph(model, inputs).batch_is_dynamic


@pytest.mark.parametrize("n", [1, 2, 3])
def test_batch_size_is_the_examples_where_the_code_needs_a_number(n: int) -> None:
    images = torch.randn(n, 3, 4, 4)
    graph = export_graph(LoopOverBatch().eval(), images)
    assert not graph.batch_is_dynamic
    assert graph.input_shapes == (images.shape,)
    assert not vars(images)


def test_tied_weights_share_one_name() -> None:
    model, inputs = build_pattern("tied weights")
    assert "two.weight" not in export_graph(model, inputs).tensors.values()


def test_a_branch_on_values_is_one_error_that_names_the_place(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError, match=r"Branching could not be traced.*test_graph\.py.*in forward"):
        SearchSpace.trace(Branching(), torch.zeros(1, 3, 4, 4))
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_logging_is_as_before_after_a_failure() -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    with pytest.raises(TraceError):
        export_graph(Branching().eval(), torch.zeros(1, 3, 4, 4))
    assert logger.level == level


def test_a_region_with_a_graph_of_its_own_is_named() -> None:
    with pytest.raises(
        TraceError, match=r"one flat graph, but OwnPrecision holds wrap_with_autocast.*take torch\.autoc"
    ):
        SearchSpace.trace(OwnPrecision(), torch.zeros(2, 3, 4, 4))


def test_a_scripted_network_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated
        scripted = torch.jit.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4))
    with pytest.raises(
        TraceError, match="must be written in Python, but TopLevelTracedModule is compiled by TorchScript"
    ):
        SearchSpace.trace(scripted, torch.zeros(2, 3, 4, 4))


def test_an_error_of_the_network_is_shown() -> None:
    with pytest.raises(
        TraceError, match=r"Failing could not be traced with input \(1, 3, 4, 4\): KeyError.*no such thing"
    ):
        SearchSpace.trace(Failing(), torch.zeros(1, 3, 4, 4))


def test_an_input_of_the_wrong_shape_is_named() -> None:
    model, _ = build_pattern("chain")
    with pytest.raises(TraceError, match=r"input \(1, 5, 8, 8\).*to have 3 channels"):
        SearchSpace.trace(model, torch.zeros(1, 5, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("example", [torch.zeros(3), [torch.zeros(1, 3), "image"], torch.zeros(0, 3, 8, 8)])
def test_inputs_must_be_batches(example: object) -> None:
    with pytest.raises(TraceError, match="tensor with a batch dimension first"):
        SearchSpace.trace(nn.Identity(), example)  # type: ignore[arg-type]


def test_tracing_is_bounded_in_time() -> None:
    start = time.perf_counter()
    with pytest.raises(TraceError, match=r"tracing EndlessLoop must end within time_limit_s=0\.2 s"):
        SearchSpace.trace(EndlessLoop(), torch.zeros(1, 3, 8, 8), time_limit_s=0.2)
    assert time.perf_counter() - start < 10


def test_time_limit_lets_short_work_pass() -> None:
    with time_limit(5, "working"):
        value = 1
    assert value == 1


def test_deep_networks_do_not_overflow_the_stack() -> None:
    layers = [layer for _ in range(400) for layer in (nn.Conv2d(2, 2, 1), nn.ReLU())]
    space = SearchSpace.trace(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2)), torch.zeros(1, 2, 2, 2), verify=False
    )
    assert space.n_genes == 800


def test_a_network_that_cannot_be_copied_says_so() -> None:
    model = nn.Conv2d(3, 4, 1)
    model.generator = (x for x in ())  # type: ignore[assignment]
    with pytest.raises(TraceError, match="must be copyable"):
        SearchSpace.trace(model, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_positive(seconds: float) -> None:
    with pytest.raises(OptionError, match="`time_limit_s > 0` must hold"):
        SearchSpace.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4), time_limit_s=seconds)
