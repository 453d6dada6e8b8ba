"""Where genomes are evaluated: in this process, or on the workers of a Ray cluster.

The Ray executor lives in ``evoprune.execution.ray_executor`` and is imported from there by whoever wants it, so that
importing this package does not import Ray.
"""

from __future__ import annotations

from evoprune.execution.in_process import InProcessExecutor
from evoprune.execution.protocol import EvaluatedChunk, Executor, Recipe

__all__ = ["EvaluatedChunk", "Executor", "InProcessExecutor", "Recipe"]
