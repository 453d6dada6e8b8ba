"""Mode ``layerwise`` with distillation between the layers: the dense network changes while the search goes on.

Once a layer is closed, the network as it is then, cut and compensated, is finetuned by distillation. What comes out is
put back into the dense shapes, zeros where channels are gone (:func:`search_spaces.surgery.embed_model`), and takes
the dense network's place: the next layer's candidates are cut from it, compensated towards its activations, and their
layer errors are those of its layers. The teacher is the dense network all along, and so is what predictions are
compared with.

Each of these networks is a function of the options, the images and the winners so far, computed by this process alone
with one thread. A run that was killed, or that has other workers, therefore goes on with the same weights.

References:
    After the GA two-step paper, arXiv 1805.11394, which distils between its layers; lengths, weights and temperature
    are not readable there and ours.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evoprune.execution import EvaluatedChunk, Executor
from evoprune.execution.protocol import collect
from evoprune.modes.layerwise import LayerwiseSearch
from evoprune.run_directory import RunDirectory
from evoprune.threads import one_thread
from fitness.disk_cache import cached_entry
from fitness.distillation import DistillationEvaluator, DivergedError
from fitness.evaluation import Evaluation
from fitness.recipe import EvaluatorRecipe
from search_spaces.errors import ExecutionError
from search_spaces.genome import BoolArray, genome_digest
from search_spaces.surgery import embed_model, named_tensors

FOLDER = "distilled"


class DistilledNetworks:
    """The dense network, and what takes its place after each closed layer.

    Args:
        run: The newest network is kept there; one that is missing or damaged is computed anew.
        recipe: Of ``model``; its one rung distils.
        model: The dense network, on the CPU; not changed.
        n_steps: Gradient steps of each distillation, positive.
    """

    def __init__(self, run: RunDirectory, recipe: EvaluatorRecipe, model: nn.Module, n_steps: int) -> None:
        self._run = run
        self._recipe = replace(recipe, options=replace(recipe.options, n_distillation_steps=n_steps))
        self._dense = model
        self._newest: tuple[str, nn.Module] = ("", model)

    def after(self, winners: Sequence[BoolArray]) -> nn.Module:
        """Return the network that the layer after ``winners`` is searched in: dense shapes, on the CPU, in eval mode.

        Args:
            winners: ``(n_genes,)`` each: the genome after the first closed layer, after the second, and so on; none
                for the dense network.

        Raises:
            ExecutionError: A distillation diverged.
        """
        if not winners:
            return self._dense
        name = f"{len(winners)}-{genome_digest(winners[-1])}"
        if name != self._newest[0]:
            path = self._run.path / FOLDER / f"{name}.safetensors"
            network = cached_entry(path, lambda: self._distilled(winners), _pack, self._unpack)
            self._newest = (name, network)
            for older in set(path.parent.glob("*.safetensors")) - {path}:
                older.unlink(missing_ok=True)
        return self._newest[1]

    def _distilled(self, winners: Sequence[BoolArray]) -> nn.Module:
        """Return what the last of ``winners`` leaves of the network before it, finetuned, in the dense shapes."""
        before, genome = self.after(winners[:-1]), winners[-1]
        started = time.perf_counter()
        with one_thread():
            evaluator = self._recipe.with_network(before).build(before)
            assert isinstance(evaluator, DistillationEvaluator)
            try:
                small = evaluator.finetuned(genome)
            except DivergedError as error:
                raise ExecutionError(
                    f"the network must be distilled after its {len(winners)}. layer, but {error}; take another number "
                    "of steps, or leave `--layer-distill-steps` out"
                ) from error
        seconds = round(time.perf_counter() - started, 3)
        self._run.append_log("distilled", n_layers=len(winners), n_steps=evaluator.options.n_steps, seconds=seconds)
        return embed_model(small.cpu(), self._dense, self._recipe.space, genome)

    def _unpack(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> nn.Module:
        del facts
        network = copy.deepcopy(self._dense)
        expected = named_tensors(network)
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in expected.items()}:
            raise ValueError("its tensors are not those of the dense network")
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.detach().copy_(tensors[name])
        return network


class FollowingExecutor:
    """Evaluates candidates as cuts of the network that the search has come to; another executor does the work.

    Args:
        search: Says which layers are closed.
        networks: What takes the dense network's place.
        place: Returns an executor for a network; gets the one before it, or None, which it may use again or close.
    """

    def __init__(
        self,
        search: LayerwiseSearch,
        networks: DistilledNetworks,
        place: Callable[[nn.Module, Executor | None], Executor],
    ) -> None:
        self._search = search
        self._networks = networks
        self._place = place
        self._executor: Executor | None = None
        self._n_closed = -1

    @property
    def network(self) -> nn.Module:
        """What the candidates of the present layer are cut from, in dense shapes."""
        return self._networks.after(self._search.winners)

    @property
    def n_workers(self) -> int:
        """How many genomes are evaluated at the same time."""
        return self._followed().n_workers

    def stream(self, genomes: BoolArray, rung: str, limit: float = math.inf) -> Generator[EvaluatedChunk, None, None]:
        """Yield evaluations of ``genomes`` ``(n, n_genes)`` in chunks as they finish; see :class:`Executor`.

        Raises:
            ExecutionError: Workers cannot be had, or a distillation diverged.
        """
        yield from self._followed().stream(genomes, rung, limit)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes``, in order."""
        return collect(self.stream(genomes, rung), len(genomes))

    def close(self) -> None:
        """Give all workers back; may be called twice."""
        if self._executor is not None:
            self._executor.close()

    def _followed(self) -> Executor:
        winners = self._search.winners
        if self._executor is None or len(winners) != self._n_closed:
            self._executor = self._place(self.network, self._executor)
            self._n_closed = len(winners)
        return self._executor


def _pack(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {name: tensor.detach() for name, tensor in named_tensors(network).items()}, {}
