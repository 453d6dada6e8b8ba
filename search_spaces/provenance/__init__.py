"""Channel provenance: which channel every element of every value comes from.

The flat graph is walked once. Beside each value goes an integer *id tensor* of the same shape that says which channel
produced the element; id 0 is :data:`FIXED`, an element that is always present. Data movement runs the very same
operator on the id tensor, so any reshape, concatenation or padding is right by construction. Element-wise operators on
two values couple the ids that meet; whatever is not understood freezes the ids that enter it, with a reason.

A further operator is supported by one entry in the mapping of its family (``elementwise``, ``movement``, ``layers``).

Sources: the idea of dependency groups is Fang et al. 2023, DepGraph; the id tensors are ours.
"""

from search_spaces.provenance.layers import WEIGHTED
from search_spaces.provenance.records import FIXED, LayerRecord, Provenance
from search_spaces.provenance.walk import trace_provenance

__all__ = ["FIXED", "WEIGHTED", "LayerRecord", "Provenance", "trace_provenance"]
