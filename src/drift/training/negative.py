"""A bound on negative weights: nothing else keeps the loss from falling without end where w < 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_sum


def bounded(weights_N: Floats, index_N: Indices, share: float) -> tuple[Floats, dict[str, Any]]:
    """Scale each prompt's negative weights so that ``Σ|w⁻| ≤ share · Σw⁺``; positive ones stay as they are.

    ``w⁻ ← w⁻ · min(1, share · Σw⁺ / Σ|w⁻|)``. A prompt without positive weights loses its negative ones: it would only
    push away from what the policy does, towards nothing in particular.

    Args:
        weights_N: ``(N,)`` weights of either sign.
        index_N: ``(N,)`` prompt of each, 0…G−1.
        share: 0 leaves no negative weight; 1 lets them balance the positive ones, as Swift's do.

    Returns:
        ``(N,)`` weights, and for the manifest: ``negative_weights`` as given, ``bounded_groups``, and the
        ``negative_share`` Σ|w⁻| / Σw⁺ of all of them before (null without positive weights).

    Raises:
        ConfigError: ``share`` is negative.
    """
    factor_N, report = bounding_factors(weights_N, np.zeros(len(weights_N)), index_N, share)
    return np.where(weights_N < 0, weights_N * factor_N, weights_N), report


def bounding_factors(
    weights_N: Floats, pushed_N: Floats, index_N: Indices, share: float
) -> tuple[Floats, dict[str, Any]]:
    """What each prompt's negative weights are to be multiplied by, where rejected replies have some too.

    A conversation's negative weight is ``max(−w, 0) + pushed · |w|``: its own, and that of each reply in it that is
    pushed away on its own account (``rejected`` of the training settings). Positive weight is ``max(w, 0)``.

    Args:
        weights_N: ``(N,)`` weights of either sign.
        pushed_N: ``(N,)`` sum over a conversation's rejected replies of their negative weight for each unit of ``|w|``.
        index_N: ``(N,)`` prompt of each, 0…G−1.
        share: as for ``bounded``.

    Returns:
        ``(N,)`` factors, the same for all of a prompt, in [0, 1]; and the report of ``bounded``.
    """
    require(share >= 0, "share", share, "a number ≥ 0")
    groups = int(index_N.max()) + 1 if len(index_N) else 0
    down_N = np.maximum(-weights_N, 0.0) + pushed_N * np.abs(weights_N)
    up_G, down_G = (group_sum(side, index_N, groups) for side in (np.maximum(weights_N, 0.0), down_N))
    # The first test is for sums that rounding leaves a little apart: Swift's at share 1.
    over_G = (down_G > share * up_G * (1 + 1e-12)) & (down_G > 0)
    factor_G = np.divide(share * up_G, down_G, out=np.ones(groups), where=over_G)
    up, down = float(up_G.sum()), float(down_G.sum())
    report = {
        "negative_weights": int((weights_N < 0).sum()),
        "bounded_groups": int(over_G.sum()),
        "negative_share": down / up if up > 0 else None,
    }
    return factor_G[index_N], report
