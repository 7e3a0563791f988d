"""What adaptive sampling does to a mean over a prompt's rollouts, and the factors that undo it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import Floats, Indices, group_sum


def stopping_factors(success_N: ArrayLike, first_N: ArrayLike, index_N: Indices) -> Floats:
    """Factors c with which ``(1/k) Σ_i c_i g(τ_i)`` is unbiased for ``E[g(τ)]`` of every prompt, for any g.

    Prompts whose first k rollouts agree get no more; the others get K in all. The plain mean of what there is then is
    biased, because whether there is more hangs on the outcomes: of a prompt that is rarely solved it keeps the
    first successes among many more failures, or none. The mean of the first k alone is unbiased, and so is what is
    expected of it given all K outcomes in whatever order (Rao–Blackwell), which also uses the others: with s
    successes among K, j of the first k being successes, ``c = E[j | 0 < j < k] / s`` for a success and
    ``E[k − j | 0 < j < k] / (K − s)`` for a failure, j being hypergeometric. Its variance is never larger than that of
    the first k alone.

    Each prompt's factors sum to k, so that prompts count alike however many rollouts they have.

    Args:
        success_N: ``(N,)`` the outcome that decided.
        first_N: ``(N,)`` whether it was among the first.
        index_N: ``(N,)`` group of each, 0…G−1.

    Returns:
        ``(N,)`` c > 0; 1 where a prompt got no more than its first rollouts.
    """
    success = np.asarray(success_N, bool)
    groups = int(index_N.max(initial=-1)) + 1
    columns = (np.ones(len(success)), success.astype(float), np.asarray(first_N, float))
    triples_G = np.stack([group_sum(column, index_N, groups).astype(np.int64) for column in columns], axis=1)
    triples, place_G = np.unique(triples_G, axis=0, return_inverse=True)
    pairs = np.array([_factors(*map(int, triple)) for triple in triples]).reshape(-1, 2)
    factors: Floats = pairs[place_G.reshape(-1)[index_N], success.astype(np.intp)]
    return factors


def _factors(size: int, solved: int, first: int) -> tuple[float, float]:
    """The factor of a failure and of a success."""
    # All there are came first; or nothing first is left, or all agree, as where some failed in the environment.
    if size == first or first == 0 or solved in (0, size):
        share = first / size if first else 1.0
        return share, share
    all_right, none_right = math.comb(solved, first), math.comb(size - solved, first)
    mixed = math.comb(size, first) - all_right - none_right
    if mixed == 0:
        return first / size, first / size
    # Σ_j j·C(s, j)·C(K−s, k−j) = s·C(K−1, k−1), of which j = k goes.
    successes = (solved * math.comb(size - 1, first - 1) - first * all_right) / mixed
    return (first - successes) / (size - solved), successes / solved
