from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fitness.program import Program
from fitness.recalibration import Recalibration, recalibrate
from search_spaces import SearchSpace, prune_model
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise
from tests.fitness.networks import images
from tests.search_spaces.patterns import Chain, conv, conv_bn


def network() -> nn.Module:
    torch.manual_seed(0)
    return Chain(conv_bn(3, 6), nn.Dropout(0.5), conv(6, 4), nn.BatchNorm2d(4, track_running_stats=False), width=4)


@pytest.mark.parametrize("training", [False, True])
def test_statistics_are_the_mean_over_batches(training: bool) -> None:
    model = network().train(training)
    norm: Any = model.get_submodule("layers.0.1")
    norm.momentum = 0.3
    batches = [images(8, seed=1), images(4, seed=2)]
    assert recalibrate(model, batches) == 1
    with torch.no_grad():
        outputs = [model.layers[0][0](batch) for batch in batches]  # type: ignore[index]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variance = torch.stack([out.transpose(0, 1).flatten(1).var(1) for out in outputs]).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    assert torch.allclose(norm.running_var, variance, atol=1e-6)
    assert norm.momentum == 0.3
    assert all(module.training == training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_modes_and_momenta_come_back_when_the_forward_raises() -> None:
    class Failing(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise RuntimeError("no forward")

    model = nn.Sequential(conv_bn(3, 6), Failing()).eval()
    model[0][2].train()
    modes = [module.training for module in model.modules()]
    model[0][1].momentum = 0.2
    with pytest.raises(RuntimeError, match="no forward"):
        recalibrate(model, [images(4)])
    assert [module.training for module in model.modules()] == modes
    assert model[0][1].momentum == 0.2


def with_a_lost_image(inputs: Tensor) -> Tensor:
    """Return ``inputs`` and one image more, of which nothing is finite."""
    return torch.cat([inputs[:3], torch.full_like(inputs[:1], torch.nan), inputs[3:]])


def test_an_image_that_is_not_finite_counts_in_no_statistics() -> None:
    found, expected = (Chain(conv_bn(3, 6), conv_bn(6, 4), width=4).eval() for _ in range(2))
    found.load_state_dict(expected.state_dict())
    recalibrate(found, [with_a_lost_image(images(8)), images(4, seed=2)])
    recalibrate(expected, [images(8), images(4, seed=2)])
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor, atol=1e-6), name
    assert not any("forward" in vars(module) for module in found.modules())

    space = SearchSpace.trace(expected, images(2))
    program = Program(space, named_tensors(expected))
    genome = space.sample(rng=np.random.default_rng(0), n=1)[0]
    lost, plain = (Recalibration(program, inputs)(genome) for inputs in (with_a_lost_image(images(8)), images(8)))
    for name in program.layers:
        assert torch.allclose(lost.weights[name], plain.weights[name], atol=1e-6)
        assert torch.allclose(lost.biases[name], plain.biases[name], atol=1e-6)


def test_network_without_norms_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    assert recalibrate(model, [images(4)]) == 0


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "densenet40", "vgg16"])
def test_the_folded_program_is_recalibrated_as_the_module_is(name: str) -> None:
    """Norms behind layers, behind depthwise layers, and in front of layers."""
    model = build_model(name, model_args={"width": 0.125}).eval().requires_grad_(False)
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 16, 16), verify=False)
    program = Program(space, named_tensors(model))
    dense = {key: tensor.clone() for key, tensor in program.slice(space.all_ones()[0]).others.items()}
    inputs = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    genome = space.sample(rng=np.random.default_rng(0), n=1, macs_budget=0.6)[0]
    small = prune_model(model, space, genome)
    assert recalibrate(small, [inputs]) > 0
    tensors = Recalibration(program, inputs)(genome)
    with torch.inference_mode():
        expected = small(inputs)
        found = program.run(tensors, [inputs])[program.outputs[0]]
        plain = program.run(program.slice(genome), [inputs])[program.outputs[0]]
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    assert float((plain - expected).abs().max()) > 0.1 * float(expected.abs().max())
    for key, tensor in program.slice(space.all_ones()[0]).others.items():
        assert torch.equal(tensor, dense[key])  # the dense network is not touched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_gamma_beside_a_large_beta_is_not_taken_for_a_silent_channel(dtype: torch.dtype) -> None:
    """The dense network was recalibrated on the same images, so that nothing is left to scale."""
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 8), conv_bn(8, 8), width=8).eval().requires_grad_(False)
    inputs = images(64)
    recalibrate(model, [inputs])
    norm: Any = model.get_submodule("layers.0.1")
    norm.weight.copy_(torch.tensor([1, 1, 1, 3e-4, 2e-4, 3e-4, 1e-4, 1]))
    norm.bias.copy_(torch.tensor([0, 0, 0, 0.9, 0.5, 0.3, 0.25, 0]))
    recalibrate(model, [inputs])
    space = SearchSpace.trace(model, inputs[:2], verify=False)
    program = Program(space, named_tensors(model))
    tensors = Recalibration(program, inputs.to(dtype))(space.all_ones()[0])
    first = next(program.layer_order())
    ratios = tensors.weights[first.name].flatten(1).norm(dim=1) / first.weight.flatten(1).norm(dim=1)
    assert ratios.tolist() == pytest.approx([1.0] * 8, rel=0.01)
    shifts = tensors.biases[first.name] - first.bias
    assert float((shifts / norm.weight).abs().max()) < 0.05  # in standard deviations of the channel
