from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import pytest

from search_spaces import SearchSpace
from search_spaces.drawing import draw_space
from search_spaces.summary import log10_size, summarise_space
from tests.search_spaces.patterns import PATTERNS, build_pattern
from tests.search_spaces.spaces import traced


def test_size_counts_the_allowed_genomes() -> None:
    model, inputs = build_pattern("residual")
    space = SearchSpace.trace(model, inputs, round_to=2)
    allowed = (math.comb(6, 2) + math.comb(6, 4) + 1) * (math.comb(4, 2) + 1)
    assert log10_size(space) == pytest.approx(math.log10(allowed))


def test_size_without_limits_is_all_but_the_empty_ones() -> None:
    _, _, space = traced("residual")
    assert log10_size(space) == pytest.approx(math.log10((2**6 - 1) * (2**4 - 1)))


@pytest.mark.parametrize("name", PATTERNS)
def test_summary_is_json_and_agrees_with_the_space(name: str) -> None:
    _, inputs, space = traced(name)
    summary = summarise_space(space, name, tuple(inputs[0].shape[1:]))
    document = json.loads(json.dumps(summary.to_json()))
    assert [group["name"] for group in document["groups"]] == [group.name for group in space.groups]
    assert document["macs_range"] == list(space.macs_range)
    assert all(0 < group["params_share"] <= 1 for group in document["groups"])
    assert 0 <= document["macs_share_prunable"] <= 1


@pytest.mark.parametrize("name", PATTERNS)
def test_drawing_is_one_svg_with_every_layer(name: str) -> None:
    _, _, space = traced(name)
    drawing = draw_space(space, f"<{name}> & more")
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert f"<{name}> & more" in words
    for layer in space.layers:
        assert layer.module in words


def test_coupled_layers_share_a_colour_and_frozen_ones_are_grey() -> None:
    _, _, space = traced("residual")
    colours = {}
    for box in ElementTree.fromstring(draw_space(space)).iter("{http://www.w3.org/2000/svg}g"):
        rect, text = box.find("{*}rect"), box.find("{*}text")
        if rect is not None and text is not None:
            colours[text.text] = rect.get("fill")
    assert colours["stem.0"] == colours["outer.0"] != colours["inner.0"]
    assert colours["head"] == "#d5d8dc"
