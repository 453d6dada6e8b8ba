"""Random generators derived from the master seed: one per stream and generation, so that no state has to be saved."""

from __future__ import annotations

import numpy as np

#: Every use of randomness in a search has its own stream; numbers are part of the run's identity and never reused.
STREAMS = {
    "initialisation": 0,
    "variation": 1,
    "immigration": 2,
    "baseline": 3,
    "knowledge": 4,
    "stages": 5,
    "restart": 6,
    "order": 7,
    "comparison": 8,
}


def make_generator(seed: int, stream: str, generation: int = 0) -> np.random.Generator:
    """Return the generator of ``stream`` in ``generation`` for the master ``seed``; equal arguments, equal numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS[stream], generation)))
