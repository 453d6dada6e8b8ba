from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from search_spaces import SearchSpace
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.groups import GroupRules
from tests.search_spaces.patterns import build_pattern
from tests.search_spaces.spaces import traced


def trace(name: str, **rules: object) -> SearchSpace:
    model, inputs = build_pattern(name)
    return SearchSpace.trace(model, inputs, **rules)  # type: ignore[arg-type]


def test_coupled_layers_share_one_group() -> None:
    _, _, space = traced("residual")
    stem, inner = space.groups
    assert (stem.name, stem.size, stem.layers) == ("stem.0", 6, ("stem.0", "outer.0"))
    assert (inner.name, inner.size, inner.layers) == ("inner.0", 4, ("inner.0",))


def test_option_a_shortcut_couples_positions_shifted_by_the_pad() -> None:
    _, _, space = traced("option-A shortcut")
    stem = space.slot_genes["stem.0.weight", 0]
    outer = space.slot_genes["outer.weight", 0]
    assert np.array_equal(outer[2:6], stem)
    assert len({*outer.tolist()}) == 8


def test_groups_of_a_grouped_convolution_stay_equal() -> None:
    _, _, space = traced("grouped")
    genes = space.slot_genes["layers.1.0.weight", 0].reshape(4, 3)
    assert (genes == genes[0]).all()
    assert next(group for group in space.groups if group.name == "layers.1.0").n_channels == 12


def test_protected_layers_are_frozen_with_the_pattern_as_reason() -> None:
    space = trace("residual", protect=["outer*"])
    assert [group.name for group in space.groups] == ["inner.0"]
    assert {frozen.name: frozen.reason for frozen in space.frozen}["stem.0"] == "protected by 'outer*'"


def test_only_leaves_the_matching_layers() -> None:
    space = trace("residual", only=["inner.*"])
    assert [group.name for group in space.groups] == ["inner.0"]
    assert any("not among only" in frozen.reason for frozen in space.frozen)


def test_a_pattern_that_matches_nothing_names_the_nearest_layer() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer pattern 'inner.1'; did you mean 'inner.0'\?"):
        trace("residual", protect=["inner.1"])


def test_min_channels_counts_channels() -> None:
    space = trace("residual", min_channels=3)
    assert [group.min_keep for group in space.groups] == [3, 3]


def test_min_channels_as_a_fraction_rounds_up() -> None:
    space = trace("residual", min_channels=0.4)
    assert [group.min_keep for group in space.groups] == [3, 2]


@pytest.mark.parametrize(
    ("value", "n_channels", "least"), [(0.07, 100, 7), (0.14, 50, 7), (0.141, 50, 8), (np.float32(0.5), 7, 4)]
)
def test_a_fraction_of_channels_is_the_number_that_people_mean(value: float, n_channels: int, least: int) -> None:
    assert GroupRules(min_channels=value).min_keep("layer", n_channels, 1) == (least, 1)


@pytest.mark.parametrize("value", [True, "8", None, float("nan"), 1.0])
def test_what_is_no_count_and_no_fraction_is_refused(value: object) -> None:
    with pytest.raises(OptionError, match="min_channels must be a count"):
        GroupRules(min_channels=value)  # type: ignore[arg-type]  # wrong on purpose


def test_min_channels_of_a_grouped_convolution_counts_channels_not_genes() -> None:
    space = trace("grouped", min_channels=0.4)
    assert {group.name: group.min_keep for group in space.groups} == {"layers.0.0": 1, "layers.1.0": 2, "layers.2.0": 2}


def test_min_channels_above_the_width_is_an_error_that_names_the_group() -> None:
    with pytest.raises(OptionError, match=r"'inner\.0'.*min_channels=5.*4"):
        trace("residual", min_channels=5)


def test_round_to_sets_the_step() -> None:
    space = trace("residual", round_to=2)
    assert [(group.step, group.min_keep) for group in space.groups] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("rules", [{"min_channels": 0}, {"min_channels": 1.5}, {"min_channels": -1}, {"round_to": 0}])
def test_malformed_limits(rules: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        trace("chain", **rules)


def test_one_channel_layers_are_frozen() -> None:
    _, _, space = traced("one channel")
    assert any(frozen.name == "layers.2" and frozen.n_channels == 1 for frozen in space.frozen)


def test_an_output_layer_is_frozen_and_says_why() -> None:
    _, _, space = traced("chain")
    assert [(f.name, f.n_channels, f.reason) for f in space.frozen] == [("head", 5, "is an output of the network")]


def test_a_network_without_parameters_has_an_empty_space() -> None:
    model, _, space = traced("no parameters")
    assert isinstance(model, nn.Module)
    assert (space.n_genes, space.groups, space.macs_dense, space.n_params_dense) == (0, (), 0, 0)
