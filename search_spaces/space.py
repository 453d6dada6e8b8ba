"""The search space of a network: which channels a genome may remove, what that costs, and how to stay feasible."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from search_spaces.blocks import ResidualBlock, remove_block, silenced
from search_spaces.cost import Cost, Costs, ProductCost, whole_limit
from search_spaces.errors import BudgetError, GenomeShapeError, OptionError, UnknownNameError, check_rules
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.graph import NetworkGraph, as_inputs
from search_spaces.groups import ChannelGroup, FrozenChannels, Genes, GroupRules
from search_spaces.provenance import LayerRecord
from search_spaces.repair import Lattice, Limit, check_reachable, count_kept, draw_genomes, repair
from search_spaces.time_limit import time_limit
from search_spaces.tracing import SpaceParts, TracedNetwork, build_parts, private_copy


@dataclass(frozen=True)
class SearchSpace:
    """Which channels of one network may be removed, and at what gain. Made by :meth:`trace`; immutable.

    Attributes:
        graph: The network as a flat list of operations.
        layers: Every convolution and linear call, in order of execution.
        genes: Groups, frozen channels and the gene of every slice of every tensor.
        consumer_slots: ``(tensor, axis)`` pairs whose slices read channels.
        counted: The costs that need no measurement.
        lattice: Allowed kept counts per group.
        blocks: Residual blocks that the last genes remove, in the order of their genes.
        measured: Further costs by metric, such as a latency; see :meth:`with_cost`.
    """

    graph: NetworkGraph
    layers: tuple[LayerRecord, ...]
    genes: Genes
    consumer_slots: tuple[tuple[str, int], ...]
    counted: Costs
    lattice: Lattice
    blocks: tuple[ResidualBlock, ...] = ()
    measured: Mapping[str, Cost] = field(default_factory=dict)

    # ------------------------------------------------------------------ construction

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example_input: Tensor | Sequence[Tensor],
        *,
        protect: Sequence[str] = (),
        only: Sequence[str] = (),
        min_channels: int | float = 1,
        round_to: int = 1,
        block_genes: bool = False,
        verify: bool = True,
        time_limit_s: float = 120.0,
    ) -> SearchSpace:
        """Return the search space of ``model``; whatever cannot be cut safely is frozen with its reason.

        The network is traced as a copy, so the caller's one stays as it is, also when its forward raises.

        Args:
            model: Any network that ``torch.export`` accepts in evaluation mode.
            example_input: ``(batch, ...)`` tensor or a sequence of such, on the device of ``model``.
            protect: Glob patterns on layer paths; groups with a matching layer are frozen.
            only: Glob patterns; when given, all other groups are frozen.
            min_channels: Fewest channels that a group keeps: a count, or a fraction in (0, 1).
            round_to: Kept channels per group are a multiple of it, or all of them.
            block_genes: Add one gene per residual block that can be removed as a whole, behind the channel genes.
            verify: Slice and run random genomes, and freeze the groups that fail. Switch off only for a network whose
                space was verified before.
            time_limit_s: Bound on tracing and verification together.

        Raises:
            TraceError: The network cannot be traced, or not in time.
            OptionError: A limit or pattern is malformed or matches nothing.
        """
        check_rules([("time_limit_s > 0", time_limit_s > 0, time_limit_s)])
        rules = GroupRules(tuple(protect), tuple(only), min_channels, round_to)
        inputs = as_inputs(example_input)
        twin = private_copy(model)
        with time_limit(time_limit_s, f"tracing {type(model).__name__}"):
            network = TracedNetwork.of(twin, inputs)

            def make(parts: SpaceParts) -> SearchSpace:
                return cls(
                    graph=network.graph,
                    layers=tuple(network.provenance.layers),
                    genes=parts.genes,
                    consumer_slots=tuple(network.provenance.consumer_slots),
                    counted=parts.counted,
                    lattice=parts.lattice,
                    blocks=parts.blocks,
                )

            return make(build_parts(make, network, rules, verify=verify, block_genes=block_genes))

    # ------------------------------------------------------------------ what it holds

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return self.genes.n_genes

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The channel groups, in order of their first gene."""
        return self.genes.groups

    @property
    def frozen(self) -> tuple[FrozenChannels, ...]:
        """Channels that no genome removes, with the reason."""
        return self.genes.frozen

    @property
    def slot_genes(self) -> Mapping[tuple[str, int], IntArray]:
        """``(tensor, axis)`` to the gene of each slice, -1 where it always stays."""
        return self.genes.slot_genes

    @property
    def view_genes(self) -> Mapping[str, IntArray]:
        """Reshaping operation to the gene of each element of its result; size 1 where they do not vary."""
        return self.genes.view_genes

    @property
    def pad_genes(self) -> Mapping[str, IntArray]:
        """Module path of each shrinkable pad to the gene of each of its output channels."""
        return self.genes.pad_genes

    @property
    def fingerprint(self) -> str:
        """Identity of the space: equal for two networks whose genomes mean the same at the same cost."""
        digest = hashlib.blake2b(digest_size=16)
        for group in self.groups:
            digest.update(repr(group).encode())
        for slot, genes in sorted(self.slot_genes.items()):
            digest.update(repr(slot).encode() + genes.tobytes())
        dense = self.lattice.sizes[None]
        digest.update(f"{self.macs_cost(dense)[0]},{self.params_cost(dense)[0]}".encode())
        return digest.hexdigest()

    def all_ones(self, n: int = 1) -> BoolArray:
        """Return ``n`` genomes that keep everything, ``(n, n_genes)``."""
        return np.ones((n, self.n_genes), np.bool_)

    def check_genomes(self, genomes: BoolArray) -> None:
        """Raise unless ``genomes`` is a boolean ``(n, n_genes)`` array.

        Raises:
            GenomeShapeError: Shape or dtype differ.
        """
        if genomes.ndim != 2 or genomes.shape[1] != self.n_genes or genomes.dtype != np.bool_:
            raise GenomeShapeError(
                f"genomes must be a boolean array of shape (n, {self.n_genes}), but got shape {genomes.shape} of "
                f"{genomes.dtype}; they belong to another search space"
            )

    def kept_counts(self, genomes: BoolArray) -> IntArray:
        """Return how many genes of each group are kept, ``(n, n_groups)``."""
        self.check_genomes(genomes)
        return count_kept(genomes, self.lattice)

    def is_valid(self, genomes: BoolArray) -> BoolArray:
        """Return, per genome, whether every group keeps at least ``min_keep`` genes; ``(n,)``."""
        return np.asarray((self.kept_counts(genomes) >= self.lattice.min_keep).all(axis=1))

    def empty_groups(self, genome: BoolArray) -> list[str]:
        """Return the names of the groups in which ``genome`` keeps too few genes."""
        counts = self.kept_counts(genome[None])[0]
        return [group.name for group, count in zip(self.groups, counts, strict=True) if count < group.min_keep]

    # ------------------------------------------------------------------ cost

    @property
    def macs_cost(self) -> ProductCost:
        """MACs as a function of the kept counts."""
        return self.counted.macs

    @property
    def params_cost(self) -> ProductCost:
        """Parameters as a function of the kept counts."""
        return self.counted.params

    @property
    def costs(self) -> Mapping[str, Cost]:
        """Every cost that may be budgeted, by metric: ``macs``, ``params``, ``activation-bytes`` and measured ones."""
        counted = self.counted
        return {
            "macs": counted.macs,
            "params": counted.params,
            "activation-bytes": counted.activation_bytes,
            **self.measured,
        }

    def with_cost(self, metric: str, cost: Cost) -> SearchSpace:
        """Return the same space with one more cost; its genomes, and so its fingerprint, stay as they are.

        Raises:
            OptionError: The space counts ``metric`` itself.
        """
        if metric in self.costs and metric not in self.measured:
            raise OptionError(
                f"a further cost needs a name of its own, but {metric!r} is counted already; choose another"
            )
        return replace(self, measured={**self.measured, metric: cost})

    def cost(self, metric: str, genomes: BoolArray) -> IntArray:
        """Return what ``genomes`` ``(n, n_genes)`` cost in whole units of ``metric``, ``(n,)``.

        Raises:
            UnknownNameError: The space has no such cost.
        """
        return self._cost(metric)(self.kept_counts(genomes))

    def cost_range(self, metric: str) -> tuple[int, int]:
        """Return what the smallest and the whole network cost, in whole units of ``metric``.

        Raises:
            UnknownNameError: The space has no such cost.
        """
        cost = self._cost(metric)
        return int(cost(self.lattice.min_keep[None])[0]), int(cost(self.lattice.sizes[None])[0])

    def _cost(self, metric: str) -> Cost:
        if metric not in self.costs:
            raise UnknownNameError("metric", metric, self.costs)
        return self.costs[metric]

    def macs(self, genomes: BoolArray) -> IntArray:
        """Return the exact MACs per sample, ``(n,)``; one MAC is one multiply-add."""
        return self.macs_cost(self.kept_counts(genomes))

    def n_params(self, genomes: BoolArray) -> IntArray:
        """Return the exact number of parameters, ``(n,)``; buffers are not counted."""
        return self.params_cost(self.kept_counts(genomes))

    @property
    def macs_dense(self) -> int:
        """MACs per sample of the whole network."""
        return int(self.macs_cost(self.lattice.sizes[None])[0])

    @property
    def n_params_dense(self) -> int:
        """Parameters of the whole network."""
        return int(self.params_cost(self.lattice.sizes[None])[0])

    @property
    def macs_range(self) -> tuple[int, int]:
        """Fewest and most MACs that a genome can have."""
        return self.cost_range("macs")

    @property
    def n_params_range(self) -> tuple[int, int]:
        """Fewest and most parameters that a genome can have."""
        return self.cost_range("params")

    def limits(self, budgets: Mapping[str, float]) -> tuple[Limit, ...]:
        """Return budgets, as fractions in (0, 1] of the dense network by metric, as absolute limits, rounded down.

        Raises:
            BudgetError: A budget is no number in (0, 1], or lies under the reachable minimum.
            UnknownNameError: The space has no cost of that name.
        """
        limits: list[Limit] = []
        for metric, budget in budgets.items():
            cost = self._cost(metric)
            if not 0 < budget <= 1:
                raise BudgetError(
                    f"a {cost.unit} budget must be a fraction in (0, 1] of the dense network, but got {budget!r}; "
                    "pass for instance 0.5"
                )
            limits.append(Limit(cost, whole_limit(budget, float(cost(self.lattice.sizes[None])[0]))))
        check_reachable(self.lattice, limits)
        return tuple(limits)

    # ------------------------------------------------------------------ feasible genomes

    def repair(
        self,
        genomes: BoolArray,
        *,
        rng: np.random.Generator,
        macs_budget: float | None = None,
        params_budget: float | None = None,
        budgets: Mapping[str, float] | None = None,
        scores: FloatArray | None = None,
    ) -> BoolArray:
        """Return feasible genomes near ``genomes``: too dear ones lose genes, slack is refilled. Idempotent.

        All budgets hold, and no group can be given a further step without breaking one.

        Args:
            genomes: ``(n, n_genes)``.
            rng: Breaks ties and, without ``scores``, picks the genes.
            macs_budget: Fraction in (0, 1] of the dense MACs; never exceeded.
            params_budget: Fraction in (0, 1] of the dense parameters; never exceeded.
            budgets: Fractions in (0, 1] of the dense costs by metric, a name of :attr:`costs`; never exceeded.
            scores: ``(n_genes,)`` or ``(n, n_genes)``, larger = more wanted; least score per cost goes first.

        Raises:
            BudgetError: A budget is malformed, unreachable or given twice.
            GenomeShapeError: An array does not fit the space.
            UnknownNameError: The space has no cost of that name.
        """
        self.check_genomes(genomes)
        limits = self.limits(_all_budgets(macs_budget, params_budget, budgets))
        return repair(genomes, self.lattice, limits, rng=rng, scores=scores)

    def sample(
        self,
        *,
        rng: np.random.Generator,
        n: int,
        macs_budget: float | None = None,
        params_budget: float | None = None,
        budgets: Mapping[str, float] | None = None,
    ) -> BoolArray:
        """Return ``n`` random feasible genomes, ``(n, n_genes)``, diverse in their widths.

        Every individual draws a keep ratio and every group deviates from it; the budgets, given as for :meth:`repair`,
        are then met by it.

        Raises:
            BudgetError: A budget is malformed, unreachable or given twice.
            UnknownNameError: The space has no cost of that name.
        """
        budgets = _all_budgets(macs_budget, params_budget, budgets)
        return self.repair(draw_genomes(self.lattice, n, rng=rng), rng=rng, budgets=budgets)

    # ------------------------------------------------------------------ residual blocks

    def remove_blocks(self, small: nn.Module, genome: BoolArray) -> None:
        """Replace the residual branches that ``genome`` switches off inside the sliced network ``small``."""
        for block in self.removed_blocks(genome):
            remove_block(small, block)

    def removed_blocks(self, genome: BoolArray) -> list[ResidualBlock]:
        """Return the residual blocks that ``genome`` removes."""
        kept = genome[len(genome) - len(self.blocks) :]
        return [block for block, keep in zip(self.blocks, kept, strict=True) if not keep]

    @contextlib.contextmanager
    def silenced_blocks(self, model: nn.Module, genome: BoolArray) -> Iterator[None]:
        """Make the residual branches that ``genome`` switches off return zero while the block lasts."""
        with silenced(model, self.removed_blocks(genome)):
            yield


def _all_budgets(
    macs_budget: float | None, params_budget: float | None, budgets: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the budgets by metric, however they were given."""
    merged = dict(budgets or {})
    for metric, budget in (("macs", macs_budget), ("params", params_budget)):
        if budget is None:
            continue
        if metric in merged:
            raise BudgetError(
                f"every metric has one budget, but {metric} has two, {budget} and {merged[metric]}; leave one out"
            )
        merged[metric] = budget
    return merged
