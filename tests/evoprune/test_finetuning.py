from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evoprune.finetuning import FinetuningRecipe, finetune, peak_learning_rate
from evoprune.optimisation import TrainingError, accuracy
from evoprune.options import FinetuneOptions
from evoprune.training import TrainingRecipe, train_dense
from fitness.gradients import distillation_loss
from search_spaces.errors import OptionError
from search_spaces.models import hash_weights
from tests.evoprune.tiny_data import bars, small_network

RECIPE = FinetuningRecipe(epochs=1, batch_size=48)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return train_dense(
        "tests.evoprune.tiny_data:small_network",
        bars(),
        seed=0,
        recipe=TrainingRecipe(epochs=20, batch_size=16, learning_rate=0.1),
        cache_folder=tmp_path_factory.mktemp("cache"),
    ).model


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_distillation_loss_follows_the_formula(temperature: float, alpha: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher_logits = rng.normal(0, 3, (2, 7, 5))
    labels = rng.integers(0, 5, 7)
    p, q = softmax(teacher_logits / temperature), softmax(student / temperature)
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    cross_entropy = -np.log(softmax(student)[np.arange(7), labels]).mean()
    loss = distillation_loss(
        torch.from_numpy(student),
        torch.from_numpy(teacher_logits),
        torch.from_numpy(labels),
        temperature=temperature,
        alpha=alpha,
    )
    assert loss.item() == pytest.approx(alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy)


def test_a_trained_network_lies_in_memory_as_a_loaded_one_does(teacher: nn.Module) -> None:
    finetuned = finetune(small_network(n_channels=6), teacher, bars(), seed=0, recipe=RECIPE).model
    for network in (teacher, finetuned):
        assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_student_learns_from_the_teacher_and_both_stay_as_they_were(teacher: nn.Module) -> None:
    torch.manual_seed(0)
    student, data, cpu = small_network(n_channels=6).train(), bars(), torch.device("cpu")
    before = hash_weights(student), hash_weights(teacher)
    recipe = FinetuningRecipe(epochs=15, batch_size=16, learning_rate=0.1)
    result = finetune(student, teacher, data, seed=0, recipe=recipe)
    assert (hash_weights(student), hash_weights(teacher)) == before
    assert student.training
    assert not teacher.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert not result.model.training
    assert accuracy(result.model, data.test, data, device=cpu) > 0.9
    assert len(result.history.val_accuracy) == 15
    assert result.history.train_loss[-1] < result.history.train_loss[0]
    assert result.history.val_accuracy[-1] == accuracy(result.model, data.val, data, device=cpu)


def test_few_epochs_take_small_steps_unless_the_user_says_otherwise() -> None:
    def peak(**options: float) -> float:
        return FinetuneOptions.model_validate({"seed": 0} | options).recipe().learning_rate

    assert [peak_learning_rate(epochs) for epochs in (1, 2, 4, 100)] == pytest.approx([0.005, 0.01, 0.02, 0.02])
    assert peak(epochs=1) == peak_learning_rate(1)
    assert peak(epochs=1, learning_rate=0.3) == 0.3
    assert peak() == FinetuningRecipe().learning_rate


def test_equal_seeds_give_equal_networks(teacher: nn.Module) -> None:
    student = small_network(n_channels=4)
    first, again, other = (finetune(student, teacher, bars(), seed=seed, recipe=RECIPE) for seed in (0, 0, 1))
    assert hash_weights(first.model) == hash_weights(again.model) != hash_weights(other.model)
    assert first.history == again.history


def test_augmentation_can_be_left_out(teacher: nn.Module) -> None:
    student = small_network(n_channels=4)
    with_it, without = (finetune(student, teacher, bars(), seed=0, recipe=RECIPE, augment=a) for a in (True, False))
    assert hash_weights(with_it.model) != hash_weights(without.model)


def test_time_limit(teacher: nn.Module) -> None:
    result = finetune(small_network(), teacher, bars(), seed=0, recipe=RECIPE, max_time_s=1e-9)
    assert result.history.timed_out
    assert result.history.n_steps == 1


def test_loss_that_is_not_finite_leaves_the_network_alone(teacher: nn.Module) -> None:
    student = small_network()
    with torch.no_grad():
        student[6].bias.fill_(float("inf"))
    before = hash_weights(student)
    with pytest.raises(TrainingError, match="the loss must be finite"):
        finetune(student, teacher, bars(), seed=0, recipe=RECIPE)
    assert hash_weights(student) == before


def test_teacher_with_other_classes(teacher: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"must have one shape, but got \(48, 3\) and \(48, 2\)"):
        finetune(small_network(n_classes=3), teacher, bars(), seed=0, recipe=RECIPE)


def test_options_are_checked(teacher: nn.Module) -> None:
    with pytest.raises(OptionError, match="`max_time_s > 0` must hold, but got 0"):
        finetune(small_network(), teacher, bars(), seed=0, max_time_s=0)
    with pytest.raises(OptionError, match="`0 < temperature < inf` must hold, but got 0"):
        FinetuningRecipe(temperature=0)
    with pytest.raises(OptionError, match="`0 <= alpha <= 1` must hold, but got 2"):
        FinetuningRecipe(alpha=2)
