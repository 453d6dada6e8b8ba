"""Any network that is put together from the supported wirings can be cut, at exactly the predicted cost."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from search_spaces import SearchSpace
from search_spaces.verification import randomise
from tests.properties.random_networks import RandomNetwork, Recipe, recipes
from tests.search_spaces.spaces import assert_cut_is_right, random_genomes

#: Found by the same examples on every run; raise ``max_examples`` to search further.
THOROUGH = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@THOROUGH
@given(recipe=recipes(), round_to=st.sampled_from([1, 1, 1, 2, 4]), seed=st.integers(0, 99))
def test_masked_equals_cut_and_budgets_hold(recipe: Recipe, round_to: int, seed: int) -> None:
    model = RandomNetwork(recipe)
    randomise(model, seed)
    model = model.double().eval()
    inputs = model.example()
    space = SearchSpace.trace(model, inputs, round_to=round_to)
    event(f"{len(space.groups)} groups")
    assert not any("not followed" in frozen.reason for frozen in space.frozen)
    assert_cut_is_right(model, inputs, space, random_genomes(space, 3, seed))

    rng = np.random.default_rng(seed)
    for cost, name in ((space.macs_cost, "macs_budget"), (space.params_cost, "params_budget")):
        least, most = (int(cost(bound[None])[0]) for bound in (space.lattice.min_keep, space.lattice.sizes))
        budget = rng.uniform(least, most) / most if most > least else 1.0
        limit = max(int(budget * most), least)
        genomes = rng.random((4, space.n_genes)) < 0.7
        fixed = space.repair(genomes, rng=rng, **{name: min(1.0, (limit + 0.5) / most)})
        counts = space.kept_counts(fixed)
        assert (cost(counts) <= limit).all()
        assert (counts >= np.maximum(space.lattice.min_keep, 1)).all()
        again = space.repair(fixed, rng=rng, **{name: min(1.0, (limit + 0.5) / most)})
        assert np.array_equal(fixed, again)
