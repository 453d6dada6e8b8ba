"""The functions behind the commands, where Python offers more than the command line: objects instead of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import evoprune
from evoprune.artefact import ArtefactError
from evoprune.evaluation_store import EvaluationStore
from evoprune.observer import SilentObserver
from evoprune.options import SearchOptions
from evoprune.preparation import resolve_device
from evoprune.resolving import resolve_options
from evoprune.run_paths import default_run_path, free_path
from search_spaces.errors import BudgetError, OptionError, RunDirectoryError, WeightsError
from search_spaces.models import hash_weights
from tests.evoprune.tiny_data import bars, small_network

QUICK = {"budget": 0.6, "seed": 0, "population_size": 4, "n_generations": 1, "n_fitness_images": 16}


class Network(nn.Module):
    """A network of the user's, with an attribute that cannot be rebuilt from a name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def finished(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> evoprune.SearchResult:
    return evoprune.search(network, bars(), out=tmp_path_factory.mktemp("api") / "RUN", **QUICK)


def test_a_network_and_images_of_the_users(network: nn.Module, finished: evoprune.SearchResult) -> None:
    assert finished.model == "Network"
    assert finished.data == "bars"
    assert finished.weights == "given"
    assert finished.macs <= 0.6 * finished.macs_dense
    assert finished.objective.fitness_images == "mixture"  # its training may have seen these images
    small = evoprune.load(finished.best_path, model=network)
    assert sum(p.numel() for p in small.parameters()) == finished.n_params
    assert isinstance(small, Network)


def test_the_users_network_is_untouched(tmp_path: Path) -> None:
    network = Network().train()
    before = hash_weights(network)
    evoprune.search(network, bars(), out=tmp_path / "RUN", **QUICK)
    assert network.training
    assert hash_weights(network) == before
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("mode", ["global", "layerwise", "pareto"])
def test_what_was_judged_statically_is_handed_back_solved(mode: str, network: nn.Module, tmp_path: Path) -> None:
    results = [
        evoprune.search(network, bars(), mode=mode, compensation=compensation, out=tmp_path / compensation, **QUICK)
        for compensation in ("static", "sequential")
    ]
    assert {result.adaptation for result in results} == {"sequential"}
    judged = []
    for result in results:
        with EvaluationStore(result.run / "evaluations.sqlite", read_only=True) as store:
            rows = [record.evaluation for record in store.records("network")]
        judged.append({row.digest: row.objective for row in rows})
    both = judged[0].keys() & judged[1].keys()
    assert both
    assert all(judged[0][digest] != judged[1][digest] for digest in both)
    assert results[0].macs <= 0.6 * results[0].macs_dense
    tensors = evoprune.load(results[0].best_path, model=network).state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_objects_are_needed_again(network: nn.Module, finished: evoprune.SearchResult, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="given as a Python object"):
        evoprune.load(finished.best_path)
    (finished.run / "result.json").rename(tmp_path / "result.json")
    try:
        with pytest.raises(OptionError, match=r"started with a model given as a Python object.*pass `model=\.\.\.`"):
            evoprune.resume(finished.run)
        with pytest.raises(OptionError, match="started with images given as a Python object"):
            evoprune.resume(finished.run, model=network)
        with pytest.raises(RunDirectoryError, match=r"these differ: weights \(recorded"):
            evoprune.resume(finished.run, model=Network(), data=bars())
        with pytest.raises(RunDirectoryError, match=r"these differ: data \(recorded"):
            evoprune.resume(finished.run, model=network, data=bars(seed=1))
        again = evoprune.resume(finished.run, model=network, data=bars())
    finally:
        (tmp_path / "result.json").rename(finished.run / "result.json")
    assert again.genome_digest == finished.genome_digest
    assert again.test_accuracy == finished.test_accuracy


def test_evaluating_and_finetuning_objects(network: nn.Module, finished: evoprune.SearchResult, tmp_path: Path) -> None:
    report = evoprune.evaluate(finished.run, model=network, data=bars())
    assert report.test_accuracy == finished.test_accuracy
    with pytest.raises(OptionError, match="pass `data`"):
        evoprune.evaluate(finished.run, model=network)
    finetuned = evoprune.finetune(finished.run, model=network, data=bars(), out=tmp_path / "fine", epochs=3)
    assert finetuned.seed == finished.seed
    assert finetuned.macs == finished.macs
    assert evoprune.evaluate(tmp_path / "fine", model=network, data=bars()).test_accuracy == finetuned.test_accuracy


def test_other_images_than_the_network_was_made_for(network: nn.Module, finished: evoprune.SearchResult) -> None:
    with pytest.raises(OptionError, match=r"\(3, 8, 8\) and 2, but digits has .* and 10"):
        evoprune.evaluate(finished.run, model=network, data="digits")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "w.safetensors"}, OptionError, "brings its weights"),
        ({"model_args": {"width": 0.5}}, OptionError, "brings its arguments, but got `model_args` too; leave it out"),
        ({"train_epochs": 8}, OptionError, "brings its training, but got `train_epochs` too"),
        ({"mean": (0.5, 0.5, 0.5)}, OptionError, r"bring their mean and std, .* but got `mean` too; leave it out"),
        ({"budget": 0.0}, BudgetError, "a share in"),
        ({"budget": 1e-6}, BudgetError, "reachable range"),
        ({"protect": ["*"]}, OptionError, "at least one group"),
        ({"populaton_size": 8}, OptionError, "unknown option `populaton_size`"),
    ],
)
def test_wrong_use_leaves_nothing(
    network: nn.Module, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evoprune.search(network, bars(), out=tmp_path / "RUN", **{**QUICK, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, r"`model` must be a name of `evoprune list models` or a torch\.nn\.Module, but got None"),
        ({"model": 3}, "`model` must be a name .* but got 3"),
        ({"data": np.zeros(3)}, "`data` must be a name of `evoprune list data` or .*ImageData, but got array"),
        ({"data": Path("images.npz")}, "`data` must be a name .* but got PosixPath"),
        ({"observer": 3}, "`observer` must be an object with the methods on_note, .* but got 3"),
        ({"callbacks": 3}, r"`callbacks` must be a sequence of evoprune\.Callback objects, or None, but got 3"),
        ({"callbacks": [print]}, "`callbacks` must be a sequence"),
    ],
)
def test_objects_of_another_kind_are_refused_first(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        evoprune.search(**{"model": small_network(), "data": bars(), "out": tmp_path / "RUN", **QUICK, **arguments})
    assert not list(tmp_path.iterdir())


def test_no_callbacks_are_none_and_a_users_folder_stays(network: nn.Module, tmp_path: Path) -> None:
    result = evoprune.search(network, bars(), out=tmp_path, callbacks=None, **QUICK)
    assert result.run == tmp_path
    assert evoprune.resume(tmp_path, callbacks=None).genome_digest == result.genome_digest
    assert evoprune.pick(tmp_path, 0.6, model=network, data=bars()).artefact.is_dir()


def test_objects_of_another_kind_than_a_run_needs(network: nn.Module, finished: evoprune.SearchResult) -> None:
    with pytest.raises(OptionError, match=r"`data` must be .* but got 3"):
        evoprune.evaluate(finished.run, model=network, data=3)  # type: ignore[arg-type]  # the wrong kind is the point
    with pytest.raises(OptionError, match=r"`model` must be the dense network, .* but got 'vgg16'"):
        evoprune.load(finished.best_path, "vgg16")  # type: ignore[arg-type]  # the wrong kind is the point
    with pytest.raises(OptionError, match="`n_classes >= 1` must hold, but got 'a'"):
        evoprune.inspect("resnet20", n_classes="a")  # type: ignore[arg-type]  # the wrong kind is the point


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -3}, "`workers`: .* but got -3"),
        ({"workers": "x"}, "`workers`: .* but got 'x'"),
        ({"address": "foo"}, "`address` joins a Ray cluster"),
        ({"model": 3}, "`model` must be the dense"),
        ({"n_elites": None}, "limits only, but got n_elites"),
    ],
)
def test_options_are_checked_where_a_finished_run_is_resumed(
    finished: evoprune.SearchResult, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        evoprune.resume(finished.run, **arguments)


def test_a_network_that_cannot_be_copied(tmp_path: Path) -> None:
    network = Network()
    network.stream = Path(__file__).open()  # noqa: SIM115 - a thing that cannot be copied
    try:
        with pytest.raises(OptionError, match=r"copy\.deepcopy raised TypeError"):
            evoprune.search(network, bars(), out=tmp_path / "RUN", **QUICK)
    finally:
        network.stream.close()


class Scaled(nn.Module):
    """A network whose input is multiplied by a buffer."""

    factor: torch.Tensor

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.layers = small_network()
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.layers(x * self.factor)
        return value


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small_network().bfloat16(), "parameter '0.weight' of Sequential is bfloat16"),
        (small_network().half(), "parameter '0.weight' of Sequential is float16"),
        (small_network().double(), "parameter '0.weight' of Sequential is float64"),
        (nn.Sequential(small_network(), nn.Linear(2, 2).double()), r"parameter '1\.weight' of Sequential is float64"),
        (Scaled(torch.tensor(1.0).bfloat16()), "buffer 'factor' of Scaled is bfloat16"),
    ],
)
def test_networks_that_are_not_float32_are_refused(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"searched in float32, but {message}; pass `model\.float\(\)`"):
        evoprune.search(model, bars(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16])
def test_buffers_of_other_types_may_be_there(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Scaled(torch.tensor(1, dtype=dtype))
    found = evoprune.search(model, bars(), out=tmp_path / "run", budget=0.6, population_size=4, n_generations=0)
    assert found.macs <= 0.6 * found.macs_dense


def test_inspecting_an_object(network: nn.Module) -> None:
    summary = evoprune.inspect(network, input_shape=(3, 8, 8))
    assert summary.model == "Network"
    assert [group.name for group in summary.groups] == ["body.0"]
    assert summary.groups[0].macs_share == 1.0
    assert summary.macs_range[1] == summary.macs_dense == 8 * 27 * 64 + 8 * 2


def test_inspecting_with_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(WeightsError):
        evoprune.inspect("resnet20", weights=tmp_path / "w.pt")


def test_run_paths_are_free_and_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = resolve_options(SearchOptions, {"model": "torchvision:resnet18", "data": "npz:/a/b.npz", "seed": 4})
    assert default_run_path(options) == Path("runs/torchvision-resnet18-npz-4")
    Path("x").mkdir()
    Path("x-2").mkdir()
    assert free_path(Path("x")) == Path("x-3")


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(OptionError, match="must exist, but this machine has"):
        resolve_device("cuda:123")
    with pytest.raises(OptionError, match="but got 'meta'"):
        resolve_device("meta")


def test_the_observer_hears_of_every_stage(network: nn.Module, tmp_path: Path) -> None:
    stages: list[str] = []

    class Listening(SilentObserver):
        def on_stage(self, name: str, n_steps: int | None) -> None:  # noqa: ARG002
            stages.append(name)

    evoprune.search(network, bars(), out=tmp_path / "RUN", observer=Listening(), **QUICK)
    assert stages == [
        "tracing the network",
        "preparing the evaluation",
        "generations",
        "adapting and testing the networks",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w.safetensors"}, "brings its weights, but got `weights` too"),
        ({"model_args": {"width": 0.5}}, "brings its arguments, but got `model_args` too"),
        ({"train_epochs": 3}, "trains nothing, but got train_epochs=3; leave it out"),
        ({"data": "digits"}, "reads no images and trains nothing, but got data='digits'"),
        ({"std": (0.5, 0.5, 0.5)}, "reads no images"),
    ],
)
def test_a_network_that_is_looked_at_alone_takes_no_options_of_others(
    network: nn.Module, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        evoprune.inspect(network, input_shape=(3, 8, 8), **options)
    with pytest.raises(OptionError, match=message):
        evoprune.latency(network, input_shape=(3, 8, 8), out=tmp_path / "latency.json", **options)


def test_paths_and_formats_of_another_kind(finished: evoprune.SearchResult, tmp_path: Path) -> None:
    given: Any = 3
    with pytest.raises(OptionError, match=r"`path` must be a path, a str or a pathlib\.Path, but got 3"):
        evoprune.load(given)
    for function in (evoprune.evaluate, evoprune.resume, evoprune.finetune):
        with pytest.raises(OptionError, match="`run` must be a path"):
            function(given)
    with pytest.raises(OptionError, match="`out` must be a path"):
        evoprune.search("resnet20", out=given)
    for formats in ("onnx", ()):
        with pytest.raises(OptionError, match="`formats` must be a sequence of one or more names"):
            evoprune.export(finished.run, tmp_path / "x", formats)
    assert not list(tmp_path.iterdir())
