"""What a search's own evaluations say about single channels."""

from __future__ import annotations

import numpy as np

from search_spaces.errors import GenomeShapeError
from search_spaces.genome import BoolArray, FloatArray


def shapley_values(genomes: BoolArray, objectives: FloatArray) -> FloatArray:
    """Return what each gene is worth by the genomes that a search has evaluated: ``(n_genes,)``, larger = more wanted.

    ``phi_c = mean fitness of the genomes that keep c - mean fitness of those that drop it``, fitness being minus the
    objective. It costs no evaluation, and may be asked for at any time. For an additive fitness and genes drawn
    independently it estimates the Shapley value, in general the Banzhaf value of the distribution that the genomes come
    from; a search's genomes are no independent draws, so genes that go together share what they cause.

    Args:
        genomes: ``(n, n_genes)``, True = keep.
        objectives: ``(n,)`` minimised. NaN and infinity (failed evaluations) are left out.

    Returns:
        0 for a gene that no counted genome drops, or none keeps: nothing is known for or against it.

    Raises:
        GenomeShapeError: The arrays do not belong together.

    References:
        Information-theoretic pruning, arXiv 2408.16772 (Shapley values of channels; how they are estimated is ours).
    """
    if genomes.ndim != 2 or genomes.dtype != np.bool_ or objectives.shape != (len(genomes),):
        raise GenomeShapeError(
            "genomes must be boolean of shape (n, n_genes) with one objective each, but got "
            f"{genomes.shape} of {genomes.dtype} and objectives of shape {objectives.shape}"
        )
    counted = np.isfinite(objectives)
    kept, fitness = genomes[counted].astype(np.float64), -np.asarray(objectives, np.float64)[counted]
    if not len(fitness):
        return np.zeros(genomes.shape[1])
    fitness = fitness - fitness.mean()
    n_kept = kept.sum(axis=0)
    n_dropped = len(fitness) - n_kept
    sum_kept = np.einsum("n,ng->g", fitness, kept)
    sum_dropped = fitness.sum() - sum_kept
    known = (n_kept > 0) & (n_dropped > 0)
    value = sum_kept / np.maximum(n_kept, 1) - sum_dropped / np.maximum(n_dropped, 1)
    return np.where(known, value, 0.0)
