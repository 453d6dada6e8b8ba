"""What a genome shares with the one judged before it: activations up to the first step in which they differ.

Every value of a network before the first step that reads a differing gene is the same for both. So a run pauses where
it left the path of the run before it, and keeps what is alive there; the next genome begins at the latest such place
that is still on its own path. In a search whose genomes agree on the first stages of the network this leads to a place
at the end of those, and stays there. Nothing is predicted and nothing computed twice: results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fitness.compensation import Prefix
from fitness.memory import count_bytes
from fitness.program import Program
from search_spaces.genome import BoolArray


@dataclass
class Pause:
    """A place in the network, and what is alive there for one path of genomes.

    Attributes:
        step: The first step that is not done.
        compensated: Activations of the calibration images, and the layers solved before; None without compensation.
        starts: Activations of the fitness images, by batch.
        last_use: When it was begun from or made, by a running number.
    """

    step: int
    compensated: Prefix | None
    starts: tuple[Mapping[str, Any], ...]
    last_use: int = 0
    n_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the bytes of the activations."""
        kept = [*self.starts, *([self.compensated.values] if self.compensated is not None else [])]
        self.n_bytes = count_bytes(kept)


class PauseStack:
    """The pauses on the path of the last genome, first step first.

    Args:
        program: The network.
        max_bytes: Bound on the activations kept; the pause that was not used for longest goes first.
    """

    def __init__(self, program: Program, max_bytes: int) -> None:
        self._program = program
        self._max_bytes = max_bytes
        self._genome: BoolArray | None = None
        self._pauses: list[Pause] = []
        self._time = 0
        self._n_layers = np.cumsum([0, *(step.layer is not None for step in program.steps)])

    def begin(self, genome: BoolArray) -> tuple[Pause | None, int | None]:
        """Return where a run of ``genome`` ``(n_genes,)`` may begin, and the step at which it should pause, if any."""
        n_steps, shared = len(self._program.steps), 0
        if self._genome is not None:
            shared = int(self._program.first_steps[genome != self._genome].min(initial=n_steps))
        self._genome = genome.copy()
        self._pauses = [pause for pause in self._pauses if pause.step <= shared]
        start = self._pauses[-1] if self._pauses else None
        self._time += 1
        if start is not None:
            start.last_use = self._time
        done = 0 if start is None else start.step
        is_worth_it = shared < n_steps and self._n_layers[shared] > self._n_layers[done]
        return start, shared if is_worth_it else None

    def keep(self, pause: Pause) -> None:
        """Add a pause of the run that was begun last, unless it alone takes more than the bound."""
        if pause.n_bytes > self._max_bytes:
            return
        pause.last_use = self._time
        while sum(other.n_bytes for other in self._pauses) + pause.n_bytes > self._max_bytes:
            self._pauses.remove(min(self._pauses, key=lambda other: other.last_use))
        self._pauses.append(pause)
