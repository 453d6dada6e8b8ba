"""Costs of whole populations in closed form: sums of products of two linear forms of the genes.

A layer's MACs are ``positions * n_out * n_in``, a parameter's size is ``rest * n_0 * n_1`` and a layer's output takes
``places * n_out`` elements, where each count is linear in the genome. Since all genes of a group weigh the same, only
the kept *counts per group* matter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.groups import KEPT, Genes
from search_spaces.provenance import LayerRecord

#: Activations are counted as float32, whatever the type that a device computes in.
BYTES_PER_ACTIVATION = 4


#: Relative error of a share that was divided out of two whole numbers, or parsed, several times over.
_SHARE_ROUNDING = 1e-14


def whole_limit(share: float, cost_dense: float) -> int:
    """Return the largest whole cost that is at most ``share`` of ``cost_dense``; what floats round away counts as kept.

    So 0.29 of 100 is 29, and a whole cost divided by ``cost_dense`` comes back as itself, up to 1e13.
    """
    return min(math.floor(share * cost_dense * (1 + _SHARE_ROUNDING)), math.floor(cost_dense))


class Cost(Protocol):
    """What networks cost, as a function of how many genes of each group they keep.

    Costs are whole numbers, so that sums and differences are exact, and never fall when a count rises.
    """

    @property
    def unit(self) -> str:
        """What is counted."""

    def __call__(self, counts: IntArray) -> IntArray:
        """Return the cost ``(n,)`` for kept ``counts`` ``(n, n_groups)``."""

    def marginals(self, counts: IntArray, steps: IntArray) -> FloatArray:
        """Return by how much the cost rises, ``(n, n_groups)``, when each group alone gains ``steps`` genes."""

    def gene_prices(self, sizes: IntArray, least: IntArray, steps: IntArray) -> FloatArray:
        """Return what one gene of each group costs in the dense network, ``(n_groups,)``; no price is negative.

        Args:
            sizes: ``(n_groups,)`` genes per group.
            least: ``(n_groups,)`` fewest genes that stay.
            steps: ``(n_groups,)`` genes that come and go together.
        """


@dataclass(frozen=True)
class CountForms:
    """Linear forms ``constant + weights.T @ counts``: how many slices of each slot are kept.

    Attributes:
        weights: ``(n_groups, n_forms)``.
        constant: ``(n_forms,)``; form 0 is the constant 1.
    """

    weights: FloatArray
    constant: FloatArray

    def __call__(self, counts: IntArray) -> FloatArray:
        """Return the value of every form, ``(n, n_forms)``, for ``counts`` ``(n, n_groups)``."""
        return np.asarray(counts.astype(np.float64) @ self.weights + self.constant)


@dataclass(frozen=True)
class _Quadratic:
    """A cost ``constant + linear @ x + x @ pairs @ x / 2`` of the kept counts ``x`` of some groups; whole numbers.

    Attributes:
        groups: ``(n_used,)`` indices of those groups.
        pairs: ``(n_used, n_used)``, symmetric.
        linear: ``(n_used,)``.
        constant: What remains when all counts are zero.
    """

    groups: IntArray
    pairs: FloatArray
    linear: FloatArray
    constant: float

    def value(self, kept: FloatArray) -> FloatArray:
        """Return the cost ``(n,)`` for ``kept`` ``(n, n_used)``."""
        return np.asarray(self.constant + kept @ self.linear + ((kept @ self.pairs) * kept).sum(axis=1) / 2)

    def rise(self, kept: FloatArray, gains: FloatArray) -> FloatArray:
        """Return by how much the cost rises, ``(n, n_used)``, when each group alone gains ``gains`` ``(n, n_used)``."""
        return np.asarray(gains * (self.linear + kept @ self.pairs + gains * self.pairs.diagonal() / 2))


@dataclass(frozen=True)
class ProductCost:
    """A cost ``constant + sum_t coefficient_t * form_left_t * form_right_t * block_t``.

    Attributes:
        forms: Shared by all costs of a space.
        coefficient: ``(n_terms,)``.
        left: ``(n_terms,)`` indices of forms.
        right: ``(n_terms,)`` likewise.
        block: ``(n_terms,)`` index of the group whose single gene switches the term, or -1.
        constant: What no genome changes.
        unit: ``macs``, ``parameters`` or ``bytes``.
    """

    forms: CountForms
    coefficient: FloatArray
    left: IntArray
    right: IntArray
    block: IntArray
    constant: int
    unit: str

    @functools.cached_property
    def _always(self) -> _Quadratic:
        """The part of the cost that no block switches, multiplied out."""
        return self._multiplied_out(self.block < 0, np.arange(len(self.forms.weights)))

    @functools.cached_property
    def _switched(self) -> list[tuple[int, _Quadratic]]:
        """Per block group, the part of the cost that goes with it."""
        parts = []
        for group in np.unique(self.block[self.block >= 0]).tolist():
            terms = self.block == group
            used = (self.forms.weights[:, self.left[terms]] != 0) | (self.forms.weights[:, self.right[terms]] != 0)
            parts.append((group, self._multiplied_out(terms, np.flatnonzero(used.any(axis=1)))))
        return parts

    def _multiplied_out(self, terms: BoolArray, groups: IntArray) -> _Quadratic:
        left, right = self.left[terms], self.right[terms]
        weights, constant = self.forms.weights[groups], self.forms.constant
        weighted = weights[:, left] * self.coefficient[terms]
        product = weighted @ weights[:, right].T
        return _Quadratic(
            groups=groups,
            pairs=product + product.T,
            linear=weighted @ constant[right] + weights[:, right] @ (self.coefficient[terms] * constant[left]),
            constant=float((self.coefficient[terms] * constant[left]) @ constant[right]),
        )

    def __call__(self, counts: IntArray) -> IntArray:
        """Return the exact cost ``(n,)`` for kept ``counts`` ``(n, n_groups)``; exact below 2**52."""
        kept = counts.astype(np.float64)
        total = self._always.value(kept)
        for group, part in self._switched:
            total += kept[:, group] * part.value(kept[:, part.groups])
        return np.rint(total).astype(np.int64) + self.constant

    def marginals(self, counts: IntArray, steps: IntArray) -> FloatArray:
        """Return by how much the cost rises, ``(n, n_groups)``, when each group alone gains ``steps`` genes.

        Args:
            counts: ``(n, n_groups)`` kept counts.
            steps: ``(n_groups,)`` or ``(n, n_groups)`` non-negative gains; negative values give the fall.
        """
        kept = counts.astype(np.float64)
        gains = np.broadcast_to(steps, counts.shape).astype(np.float64)
        rise = self._always.rise(kept, gains)
        for group, part in self._switched:
            inside = kept[:, part.groups]
            rise[:, part.groups] += kept[:, [group]] * part.rise(inside, gains[:, part.groups])
            rise[:, group] += gains[:, group] * part.value(inside)
        return rise

    def gene_prices(self, sizes: IntArray, least: IntArray, steps: IntArray) -> FloatArray:  # noqa: ARG002 - protocol
        """Return the cost that falls with the first step away from the dense network, per gene; ``(n_groups,)``."""
        n_dropped = np.minimum(steps, sizes)
        return np.asarray(self.marginals(sizes[None], -n_dropped)[0] / -n_dropped)

    def group_share(self, counts: IntArray) -> FloatArray:
        """Return the share of the cost ``(n_groups,)`` that lies in terms which read or make a group's channels."""
        forms = self.forms(counts[None])[0]
        terms = self.coefficient * forms[self.left] * forms[self.right]
        touches = (self.forms.weights[:, self.left] > 0) | (self.forms.weights[:, self.right] > 0)
        touches |= np.arange(len(counts))[:, None] == self.block
        total = float(self(counts[None])[0])
        return np.asarray((touches * terms).sum(axis=1) / total if total else np.zeros(len(counts)))

    def prunable_share(self, counts: IntArray) -> float:
        """Return the share of the cost in [0, 1] that lies in terms which at least one gene changes."""
        forms = self.forms(counts[None])[0]
        terms = self.coefficient * forms[self.left] * forms[self.right]
        touched = (self.forms.weights[:, self.left] > 0).any(axis=0) | (self.forms.weights[:, self.right] > 0).any(
            axis=0
        )
        total = float(self(counts[None])[0])
        return float(terms[touched | (self.block >= 0)].sum() / total) if total else 0.0


class _FormTable:
    """Collects distinct linear forms and hands out their indices."""

    def __init__(self, genes: Genes) -> None:
        self.genes = genes
        self.group_of_gene = np.repeat(np.arange(len(genes.groups)), [g.size for g in genes.groups]).astype(np.int64)
        self.size_of_group = np.array([g.size for g in genes.groups], np.int64)
        self.known: dict[bytes, int] = {}
        self.rows: list[FloatArray] = []
        self.constants: list[float] = []
        self.add(np.zeros(len(genes.groups)), 1.0)

    def add(self, weights: FloatArray, constant: float) -> int:
        key = weights.tobytes() + np.float64(constant).tobytes()
        if key not in self.known:
            self.known[key] = len(self.rows)
            self.rows.append(weights)
            self.constants.append(constant)
        return self.known[key]

    def slot(self, slot: tuple[str, int], size: int) -> int:
        """Return the form that counts the kept slices of ``slot``."""
        genes = self.genes.slot_genes.get(slot)
        if genes is None:
            return self.add(np.zeros(len(self.size_of_group)), float(size))
        removable = genes[genes != KEPT]
        counts = np.bincount(self.group_of_gene[removable], minlength=len(self.size_of_group))
        return self.add(counts / np.maximum(self.size_of_group, 1), float(size - len(removable)))

    def forms(self) -> CountForms:
        return CountForms(np.stack(self.rows, axis=1), np.array(self.constants))


@dataclass(frozen=True)
class Costs:
    """The costs of one network that need no measurement.

    Attributes:
        macs: Multiply-adds of one sample.
        params: Parameters.
        activation_bytes: Bytes of the outputs of all convolutions and linear layers for one sample in float32.
        sides: ``(n_layers, 3)`` form of the kept slices of each layer's weight along its first and its second axis, and
            the block group that removes the layer, or -1.
    """

    macs: ProductCost
    params: ProductCost
    activation_bytes: ProductCost
    sides: IntArray


def build_costs(
    genes: Genes,
    layers: tuple[LayerRecord, ...],
    parameter_shapes: Mapping[str, tuple[int, ...]],
    output_sizes: Mapping[str, int],
    n_written_always: int,
    macs_dense: int | None,
    block_of_tensor: Mapping[str, int],
) -> Costs:
    """Return MACs, parameters and activations of a network as functions of a genome.

    One MAC is one multiply-add of a convolution, linear layer or matrix product; biases, norms and activations are
    free. Activations are what convolutions and linear layers write, counted once per call (Radosavovic 2020, Designing
    network design spaces, Sec. 3.3, there without the linear layers); what norms, non-linearities and sums write has
    the shape of one of these and may share its memory, and is not counted.

    Args:
        genes: Genes and groups.
        layers: Every convolution and linear call.
        parameter_shapes: Shapes of all parameters (buffers excluded) by qualified name.
        output_sizes: Elements that each call writes for one sample of the dense network, by the operation's name.
        n_written_always: Elements that calls write for one sample whose weights no genome slices.
        macs_dense: Independent count for the dense network; what the layers do not explain becomes a constant.
        block_of_tensor: Group index of the block gene that removes a parameter, where there is one.
    """
    table = _FormTable(genes)
    mac_terms: dict[tuple[int, int, int], float] = {}
    byte_terms: dict[tuple[int, int, int], float] = {}
    sides_of_layers = []
    for layer in layers:
        assert layer.weight is not None
        shape = parameter_shapes[layer.weight]
        key = (
            table.slot((layer.weight, 0), shape[0]),
            table.slot((layer.weight, 1), shape[1]),
            block_of_tensor.get(layer.weight, -1),
        )
        sides_of_layers.append(key)
        mac_terms[key] = mac_terms.get(key, 0.0) + layer.positions
        axis = made_axis(layer)
        made = (key[axis], 0, key[2])
        n_bytes = BYTES_PER_ACTIVATION * output_sizes[layer.operation] / shape[axis]
        byte_terms[made] = byte_terms.get(made, 0.0) + n_bytes
    parameter_terms: dict[tuple[int, int, int], float] = {}
    for name, shape in parameter_shapes.items():
        sliced = [axis for axis in range(len(shape)) if (name, axis) in genes.slot_genes]
        assert len(sliced) <= 2, f"parameter {name} is sliced along {sliced}"
        sides = [table.slot((name, axis), shape[axis]) for axis in sliced] + [0] * (2 - len(sliced))
        rest = float(np.prod([size for axis, size in enumerate(shape) if axis not in sliced], dtype=np.float64))
        key = (sides[0], sides[1], block_of_tensor.get(name, -1))
        parameter_terms[key] = parameter_terms.get(key, 0.0) + rest
    forms = table.forms()
    dense = np.array([[group.size for group in genes.groups]], np.int64)
    macs = _product_cost(forms, mac_terms, 0, "macs")
    if macs_dense is not None:
        macs = _product_cost(forms, mac_terms, macs_dense - int(macs(dense)[0]), "macs")
    return Costs(
        macs,
        _product_cost(forms, parameter_terms, 0, "parameters"),
        _product_cost(forms, byte_terms, BYTES_PER_ACTIVATION * n_written_always, "bytes"),
        np.array(sides_of_layers or np.empty((0, 3)), np.int64).reshape(-1, 3),
    )


def made_axis(layer: LayerRecord) -> int:
    """Return the axis of a layer's weight along which its output channels lie.

    A transposed convolution has them second, but for a depthwise one, which has as many groups as input channels.
    """
    return 1 if layer.is_transposed and not layer.is_depthwise else 0


def _product_cost(
    forms: CountForms, terms: Mapping[tuple[int, int, int], float], constant: int, unit: str
) -> ProductCost:
    keys = np.array(list(terms) or np.empty((0, 3)), np.int64).reshape(-1, 3)
    return ProductCost(
        forms, np.array(list(terms.values()), np.float64), keys[:, 0], keys[:, 1], keys[:, 2], constant, unit
    )
