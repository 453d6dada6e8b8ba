"""The examples of the documentation run as they are written, and do what the text around them says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evoprune

DOCS = Path(__file__).parents[2] / "docs"


def _examples(name: str) -> list[tuple[str, bool]]:
    """Return the code of each example and whether it goes on from the one before."""
    blocks = re.findall(
        r"^<!-- test: python(, goes on)? -->\n```python\n(.*?)^```", (DOCS / name).read_text(), re.S | re.M
    )
    return [(code, bool(goes_on)) for goes_on, code in blocks]


@pytest.fixture(scope="module")
def ask_tell() -> list[dict[str, Any]]:
    """What every example of the page has defined, in order."""
    defined: list[dict[str, Any]] = []
    for number, (code, goes_on) in enumerate(_examples("ask_tell.md")):
        names = dict(defined[-1]) if goes_on else {}
        exec(compile(code, f"ask_tell.md, example {number}", "exec"), names)
        defined.append(names)
    return defined


def test_every_python_block_is_an_example_that_runs() -> None:
    assert len(_examples("ask_tell.md")) == (DOCS / "ask_tell.md").read_text().count("```python") == 3


def test_ask_and_tell_find_a_network_within_the_budget(ask_tell: list[dict[str, Any]]) -> None:
    names = ask_tell[0]
    search, space, small = names["search"], names["space"], names["small"]
    assert search.generation == 3
    assert space.macs(search.best.genome[None])[0] <= 0.5 * space.macs_dense
    assert search.best.objective == names["evaluate"](search.best.genome, search.best.digest, "logits").objective
    assert sum(p.numel() for p in small.parameters()) == space.n_params(search.best.genome[None])[0]
    assert search.best.objective == min(search.logbook.select("min"))


def test_a_restored_search_knows_the_best(ask_tell: list[dict[str, Any]]) -> None:
    names = ask_tell[1]
    assert names["problems"] == ()
    assert names["again"].best.digest == names["search"].best.digest


def test_replaced_and_added_operators_are_used(ask_tell: list[dict[str, Any]]) -> None:
    names = ask_tell[2]
    search, config, space = names["search"], names["config"], names["space"]
    assert search.toolbox.mutate_swap.func is names["shuffle"]
    assert search.toolbox.mutate_shuffle.func is names["shuffle"]
    rng = np.random.default_rng(0)
    genomes = space.sample(rng=rng, n=3, macs_budget=0.5)
    shuffled = search.toolbox.mutate_shuffle(genomes, rates=np.full(3, 0.1), rng=rng)
    assert (shuffled != genomes).any()
    for group in space.groups:
        block = slice(group.start, group.stop)
        np.testing.assert_array_equal(shuffled[:, block].sum(axis=1), genomes[:, block].sum(axis=1))
    other = evoprune.Search(space, config, seed=0)
    other.toolbox.register("mutate_shuffle", search.toolbox.mutate_swap.func)
    for each in (search, other):
        while each.generation < 2:
            request = each.ask()
            each.tell(
                [names["evaluate"](g, d, request.rung) for g, d in zip(request.genomes, request.digests, strict=True)]
            )
    # The same seed, the operators alone differ: evoprune's own swap in place of the replacement.
    assert [i.digest for i in search.population] != [i.digest for i in other.population]


def test_the_function_and_the_class_of_a_search_are_told_apart() -> None:
    assert callable(evoprune.search)
    assert isinstance(evoprune.Search, type)
    assert set(evoprune.__all__) <= set(dir(evoprune))
