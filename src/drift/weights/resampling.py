"""Fewer conversations for the same expected gradient: some drawn by weight, instead of all."""

from __future__ import annotations

import numpy as np

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_max, group_sum


def systematic_resampling(weights_N: Floats, index_N: Indices, share: float, seed: int) -> Floats:
    """Weights after each group's conversations were drawn with probabilities proportional to ``|w|``.

    In a group of K with ``S = Σ|w|``, m = max(1, round(share · K)) equidistant points, all shifted by one uniform
    number, fall on the conversations laid end to end with lengths ``|w|``. One that n points fall on gets the weight
    ``sign(w) · n · S/m``, whose expectation is ``w``: unbiased. n differs from its expectation by less than 1, so this
    varies less than drawing one by one (systematic resampling, as in particle filters).

    Args:
        weights_N: ``(N,)`` weights of either sign.
        index_N: ``(N,)`` group of each, 0…G−1.
        share: points per conversation of a group, in (0, 1].
        seed: of the shifts; the shift of group g is the g-th number drawn.

    Returns:
        ``(N,)`` weights, 0 for what was not drawn; each group's ``Σ|w|`` is what it was.

    Raises:
        ConfigError: ``share`` is not in (0, 1].
    """
    require(0 < share <= 1, "share", share, "a share above 0 and at most 1")
    sizes_G = np.bincount(index_N)
    groups = len(sizes_G)
    points_G = np.maximum(1, np.rint(share * sizes_G))
    # Shares of the largest, so that no sum and no quotient leaves what floats hold.
    top_G = group_max(np.abs(weights_N), index_N, groups)
    share_N = np.divide(np.abs(weights_N), top_G[index_N], out=np.zeros(len(weights_N)), where=top_G[index_N] > 0)
    total_G = group_sum(share_N, index_N, groups)
    order = np.argsort(index_N, kind="stable")
    group_N = index_N[order]
    # Lengths in units of the distance between points, and where each one ends within its group.
    unit_G = np.divide(points_G, total_G, out=np.zeros(groups), where=total_G > 0)
    length_N = share_N[order] * unit_G[group_N]
    running_N = np.cumsum(length_N)
    first_G = np.cumsum(sizes_G) - sizes_G
    end_N = running_N - (running_N[first_G] - length_N[first_G])[group_N]
    # Rounding must not lose or add a point: the last conversation that has a length ends where the group does.
    last_G = np.maximum.reduceat(np.where(length_N > 0, np.arange(len(order)), -1), first_G)
    end_N[np.arange(len(order)) >= last_G[group_N]] = np.inf
    end_N = np.minimum(end_N, np.where(total_G > 0, points_G, 0.0)[group_N])
    shift_N = np.random.default_rng(seed).random(groups)[group_N]
    # Points lie at shift + 0, 1, 2, …; so many lie before each end.
    before_N = np.ceil(end_N - shift_N)
    drawn_N = np.diff(before_N, prepend=0.0)
    drawn_N[first_G] = before_N[first_G]
    found_N = np.zeros(len(weights_N))
    found_N[order] = np.sign(weights_N[order]) * drawn_N * (total_G / points_G * top_G)[group_N]
    return found_N
