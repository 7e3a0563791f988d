"""Which conversations weigh so little that computing them is a waste."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_sum


def negligible(weights_N: Floats, index_N: Indices, share: float) -> tuple[NDArray[np.bool_], Floats]:
    """Per group, the smallest weights in absolute value, as many as hold at most ``share`` of the group's.

    Leaving them out moves a group's gradient by at most ``share · Σ|w| · max‖∇ log p‖``, where the whole is of the
    order of ``Σ|w| · ‖∇ log p‖``. Weights of zero are always among them.

    Args:
        weights_N: ``(N,)`` weights of either sign.
        index_N: ``(N,)`` group of each, 0…G−1.
        share: 0 leaves out zeros alone.

    Returns:
        ``(N,)`` which can be left out, and ``(G,)`` the share of each group's ``Σ|w|`` that goes with them.

    Raises:
        ConfigError: ``share`` is not in [0, 1).
    """
    require(0 <= share < 1, "share", share, "a share of at least 0 and below 1")
    groups = int(index_N.max()) + 1 if len(index_N) else 0
    mass_N = np.abs(weights_N)
    total_G = group_sum(mass_N, index_N, groups)
    # Shares of the group, so that one running sum serves groups of any scale.
    share_N = np.divide(mass_N, total_G[index_N], out=np.zeros(len(mass_N)), where=total_G[index_N] > 0)
    order = np.lexsort((mass_N, index_N))
    running = np.cumsum(share_N[order])
    # What earlier groups hold is taken off; each group's first row is where its index changes.
    first = np.flatnonzero(np.diff(index_N[order], prepend=-1))
    before_G = np.zeros(groups)
    before_G[index_N[order][first]] = running[first] - share_N[order][first]
    mask_N = np.zeros(len(weights_N), bool)
    mask_N[order] = (running - before_G[index_N[order]] <= share) & (share > 0)
    mask_N |= weights_N == 0
    dropped_G = group_sum(np.where(mask_N, mass_N, 0.0), index_N, groups)
    return mask_N, np.divide(dropped_G, total_G, out=np.zeros(groups), where=total_G > 0)
