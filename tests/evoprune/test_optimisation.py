from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evoprune.optimisation import GradientRecipe, TrainingError, accuracy, fit, reproducible
from fitness.data import ImageBatch
from fitness.gradients import learning_rate_factor
from search_spaces.errors import OptionError
from search_spaces.models import hash_weights
from tests.evoprune.tiny_data import bars, small_network

CPU = torch.device("cpu")
RECIPE = GradientRecipe(epochs=2, batch_size=32, learning_rate=0.1)


def fitted(seed: int = 0, recipe: GradientRecipe = RECIPE, **keywords: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(5)
    model = small_network(dropout=0.2)
    torch.manual_seed(int(keywords.pop("callers_seed", 0)))

    def batch_loss(inputs: Tensor, batch: ImageBatch) -> Tensor:
        return functional.cross_entropy(model(inputs), batch.labels)

    rng = np.random.default_rng(seed)
    return model, fit(model, bars(), recipe, batch_loss, rng=rng, device=CPU, **keywords)


def test_accuracy_of_a_network_with_several_outputs_is_that_of_the_first() -> None:
    class TwoOutputs(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            logits = torch.tensor([1.0, 0.0]).expand(len(images), 2)
            return logits, -logits

    expected = (bars().test.labels == 0).float().mean().item()
    assert accuracy(TwoOutputs(), bars().test, bars(), device=CPU) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "warm_up", "expected"),
    [
        (0.0, 0.0, 1.0),
        (0.5, 0.0, 0.5),
        (1.0, 0.0, 0.0),
        (0.05, 0.2, 0.25),
        (0.2, 0.2, 1.0),
        (0.6, 0.2, 0.5),
        (0.4, 0.2, (1 + math.cos(math.pi / 4)) / 2),
    ],
)
def test_learning_rate_warms_up_and_falls_as_a_cosine(progress: float, warm_up: float, expected: float) -> None:
    assert learning_rate_factor(progress, warm_up) == pytest.approx(expected, abs=1e-12)


def test_equal_seeds_give_equal_weights_whatever_the_callers_generator() -> None:
    (first, history), (again, history_again), (other, _) = (
        fitted(0, callers_seed=1),
        fitted(0, callers_seed=2),
        fitted(1),
    )
    assert hash_weights(first) == hash_weights(again) != hash_weights(other)
    assert history == history_again
    assert not first.training


def test_callers_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    small_network(dropout=0.2)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    fitted(callers_seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_history_and_progress_count_every_step() -> None:
    heard: list[tuple[int, int, int, int]] = []
    _, history = fitted(on_progress=lambda *args: heard.append(args[:4]))
    assert heard == [(step // 3, 2, step + 1, 6) for step in range(6)]
    assert history.n_steps == 6
    assert len(history.train_loss) == len(history.val_accuracy) == 2
    assert not history.timed_out


def test_time_limit_ends_after_one_step_at_the_earliest() -> None:
    _, history = fitted(max_time_s=1e-9)
    assert history.timed_out
    assert history.n_steps == 1
    assert len(history.val_accuracy) == 1


def test_loss_that_is_not_finite() -> None:
    model = small_network()
    with pytest.raises(TrainingError, match=r"must be finite, but it is nan in step 1 of 6; lower the learning rate"):
        fit(
            model,
            bars(),
            RECIPE,
            lambda inputs, _: model(inputs).sum() * float("nan"),
            rng=np.random.default_rng(0),
            device=CPU,
        )


def test_accuracy_counts_right_answers() -> None:
    data = bars()

    class AlwaysZero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    expected = (data.test.labels == 0).float().mean().item()
    assert accuracy(AlwaysZero(), data.test, data, device=CPU) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs >= 1` must hold, but got 0"),
        ({"batch_size": 1}, "`batch_size >= 2` must hold, but got 1"),
        ({"learning_rate": 0.0}, "`0 < learning_rate < inf` must hold"),
        ({"learning_rate": float("nan")}, "`0 < learning_rate < inf` must hold"),
        ({"momentum": 1.0}, "`0 <= momentum < 1` must hold"),
        ({"warm_up_share": 1.0}, "`0 <= warm_up_share < 1` must hold"),
    ],
)
def test_recipe_rules(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GradientRecipe(**({"epochs": 1, "batch_size": 8, "learning_rate": 0.1} | changes))


def test_deterministic_kernels_leave_cudnn_as_it_was() -> None:
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32
    with reproducible(torch.device("cpu"), seed=0):
        assert (torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32) == before
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic
