"""Schemes that push away from failures, on purpose: for losses whose push ends (``tapered``), or with an offset."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import require
from drift.weights.groups import Floats, group_mean, group_sum, index_groups


def topr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike, failures: float = 0.3) -> Floats:
    """Successes +1, failures of solved prompts −c, for the loss ``tapered`` (TOPR, arXiv 2503.14286).

    ``c = f/(1 − f) · n⁺/n⁻`` with n⁺ successes, n⁻ failures of prompts that have a success, and f = ``failures``, so
    that failures hold the share f of ``Σ|w|`` and, under the plan ``drawn``, of the rows of a step. The paper sets that
    share by a baseline. Failures of prompts without success get 0: nothing says what to do instead.

    With the loss ``nll`` nothing bounds the push, and the same weights destroy a policy (docs/LOG.md).

    Args:
        returns_N: ``(N,)`` R, which is not used.
        group_N: ``(N,)`` which prompt each belongs to.
        success_N: ``(N,)`` whether each succeeded.
        failures: f, in [0, 1).

    Returns:
        ``(N,)`` weights of both signs; none below 0 where there is no failure of a solved prompt.

    Raises:
        ConfigError: f is not in [0, 1).
    """
    require(0 <= failures < 1, "weights.scheme.topr.failures", failures, "a share of at least 0 and below 1")
    success_N = np.asarray(success_N, bool)
    index_N, groups = index_groups(group_N)
    failed_N = ~success_N & (group_sum(success_N.astype(float), index_N, groups) > 0)[index_N]
    push = failures / (1 - failures) * success_N.sum() / max(1, failed_N.sum())
    return np.where(success_N, 1.0, np.where(failed_N, -push, 0.0))


def asymre_weights(returns_N: ArrayLike, group_N: ArrayLike, *, delta: float = 0.1) -> Floats:
    """The return less a baseline below its prompt's mean: ``w = r − (μ̂ − δ)`` (AsymRE, arXiv 2506.20520).

    δ > 0 lets what is good lead: ``Σ w = K δ`` of each prompt, where with δ ≤ 0 the published analysis finds a policy
    that collapses onto few replies. A prompt of equal returns weighs δ throughout: plain fine-tuning.

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        delta: δ, in the units of R.

    Returns:
        ``(N,)`` weights of both signs.

    Raises:
        ConfigError: δ is negative.
    """
    require(delta >= 0, "weights.scheme.asymre.delta", delta, "a number ≥ 0", "0 is the scheme group_relative.")
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    # The mean of the differences: equal returns of any size then differ from it by nothing.
    gap_N = returns - returns[np.unique(index_N, return_index=True)[1]][index_N]
    weights: Floats = gap_N - group_mean(gap_N, index_N, groups)[index_N] + delta
    return weights
