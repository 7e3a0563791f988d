"""Arithmetic within groups of conversations that share a prompt, without a Python loop over groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Ints = NDArray[np.signedinteger[Any]]
Bools = NDArray[np.bool_]
Level = tuple[Indices, Indices, Indices]


def index_groups(group_N: ArrayLike) -> Indices:
    """``(N,)`` group labels of any kind to ``(N,)`` indices in 0…G−1, each of which is there."""
    given_N = np.asarray(group_N)
    # Indices that were made already come back as they are: sorting them is most of the cost of a scheme.
    made = given_N.dtype == np.intp and given_N.size and given_N.min() >= 0 and given_N.max() < given_N.size
    made = made and np.bincount(given_N).all()
    return given_N if made else np.unique(given_N, return_inverse=True)[1].reshape(-1)


def group_sum(values_N: ArrayLike, index_N: Indices) -> Floats:
    """``(G,)`` sums per group."""
    return np.bincount(index_N, weights=values_N).astype(float, copy=False)


def group_mean(values_N: ArrayLike, index_N: Indices) -> Floats:
    """``(G,)`` means per group."""
    return group_sum(values_N, index_N) / np.bincount(index_N)


def group_max(values_N: Floats, index_N: Indices) -> Floats:
    """``(G,)`` maxima per group."""
    top_G = np.full(int(index_N.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(top_G, index_N, values_N)
    return top_G


def group_min(values_N: Floats, index_N: Indices) -> Floats:
    """``(G,)`` minima per group."""
    return -group_max(-values_N, index_N)


def others_mean(values_N: Floats, index_N: Indices, alone_N: float | Floats) -> Floats:
    """``(N,)`` the mean over the others of a group; ``alone_N`` where there are none."""
    sum_N = group_sum(values_N, index_N)[index_N] - values_N
    return quotients(sum_N, np.bincount(index_N)[index_N] - 1, alone_N)


def quotients(top: Floats, bottom: Floats | Indices, otherwise: float | Floats = 0.0) -> Floats:
    """``top / bottom`` where that is above 0, else ``otherwise``."""
    given: Floats = np.broadcast_to(otherwise, top.shape).astype(float)
    return np.divide(top, bottom, out=given, where=np.greater(bottom, 0))


def tree_levels(index_N: Indices, turns_N: Ints, reply_T: Ints, feedback_T: Ints) -> list[Level]:
    """The trees of all prompts' conversations, in which those that begin alike share nodes.

    By keys ``(T,)`` of replies and of what the environment said to each. Returns, turn by turn, three arrays ``(M,)``:
    which conversations have one, and at which node each is before and after its reply.
    """
    at = np.cumsum(turns_N, dtype=np.intp) - turns_N
    rows, history = np.arange(len(index_N)), index_N
    levels: list[Level] = []
    while len(rows):
        reply = _next_nodes(history, reply_T[at])
        levels.append((rows, history, reply))
        on = turns_N[rows] > len(levels)
        history = _next_nodes(reply[on], feedback_T[at[on]])
        rows, at = rows[on], at[on] + 1
    return levels


def _next_nodes(node_M: Indices, key_M: Ints) -> Indices:
    """``(M,)`` numbers 0… of the pairs of a node and the key that follows it."""
    _, next_M = np.unique(key_M, return_inverse=True)
    return index_groups(node_M * (len(next_M) + 1) + next_M)
