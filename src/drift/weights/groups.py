"""Arithmetic within groups of conversations that share a prompt, without a Python loop over groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Bools = NDArray[np.bool_]


def index_groups(group_N: ArrayLike) -> tuple[Indices, int]:
    """``(N,)`` group labels of any kind to ``(N,)`` indices in 0…G−1, and G."""
    given_N = np.asarray(group_N)
    # Indices that were made already come back as they are: sorting them is most of the cost of a scheme.
    if given_N.dtype == np.intp and given_N.size and given_N.min() >= 0 and given_N.max() < given_N.size:
        counts = np.bincount(given_N)
        if counts.all():
            return given_N, len(counts)
    labels, index_N = np.unique(given_N, return_inverse=True)
    return index_N.reshape(-1), len(labels)


def group_sum(values_N: Floats, index_N: Indices, groups: int) -> Floats:
    """``(G,)`` sums per group."""
    return np.bincount(index_N, weights=values_N, minlength=groups).astype(float)


def group_mean(values_N: Floats, index_N: Indices, groups: int) -> Floats:
    """``(G,)`` means per group."""
    return group_sum(values_N, index_N, groups) / np.bincount(index_N, minlength=groups)


def group_max(values_N: Floats, index_N: Indices, groups: int) -> Floats:
    """``(G,)`` maxima per group."""
    top_G = np.full(groups, -np.inf)
    np.maximum.at(top_G, index_N, values_N)
    return top_G


def group_min(values_N: Floats, index_N: Indices, groups: int) -> Floats:
    """``(G,)`` minima per group."""
    return -group_max(-values_N, index_N, groups)


def equal_returns(returns_N: ArrayLike, group_N: ArrayLike) -> Bools:
    """``(G,)`` whether all returns of a prompt are the same."""
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    equal_G: Bools = group_max(returns, index_N, groups) == group_min(returns, index_N, groups)
    return equal_G
