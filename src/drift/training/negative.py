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
    require(share >= 0, "share", share, "a number ≥ 0")
    groups = int(index_N.max()) + 1 if len(index_N) else 0
    up_G, down_G = (group_sum(np.maximum(side, 0.0), index_N, groups) for side in (weights_N, -weights_N))
    # The first test is for sums that rounding leaves a little apart: Swift's at share 1.
    over_G = (down_G > share * up_G * (1 + 1e-12)) & (down_G > 0)
    factor_G = np.divide(share * up_G, down_G, out=np.ones(groups), where=over_G)
    up, down = float(up_G.sum()), float(down_G.sum())
    report = {
        "negative_weights": int((weights_N < 0).sum()),
        "bounded_groups": int(over_G.sum()),
        "negative_share": down / up if up > 0 else None,
    }
    return np.where(weights_N < 0, weights_N * factor_G[index_N], weights_N), report
