"""β without guessing: the temperature at which weights keep a wanted share of the conversations effective."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import (
    Floats,
    Indices,
    equal_returns,
    group_max,
    group_mean,
    group_min,
    group_sum,
    index_groups,
)

# Halvings of an interval of log β: what is left is below 1e-9 for any returns that floats can hold.
HALVINGS = 40
# e^-750 is 0, and 1e9 spans make weights that differ from 1 by less than a float shows.
_COLD, _HOT = 750.0, 1e9
_SMALLEST = float(np.finfo(float).smallest_subnormal)


def exponents(gap_N: Floats, beta: float | Floats) -> Floats:
    """``gap/β`` for gaps ≤ 0 to the largest return, with its limits: β = 0 gives 0 and −∞, β = ∞ gives 0."""
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        return np.where(gap_N == 0, 0.0, gap_N / beta)


def effective_shares(exponent_N: Floats, index_N: Indices, size_G: Floats) -> Floats:
    """``(G,)`` Kish's ``(Σw)²/Σw²`` over K of each prompt under weights ``∝ e^exponent``; the largest of each is 0."""
    groups = len(size_G)
    # What is below e^-300 of the largest changes no sum, and without it no number gets slow or loses digits.
    tilted_N = np.exp(np.maximum(exponent_N, -300.0))
    return group_sum(tilted_N, index_N, groups) ** 2 / group_sum(tilted_N**2, index_N, groups) / size_G


def temperature_of(
    returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike, target: float | str
) -> tuple[float, float | None]:
    """What ``beta: auto`` finds: β, and the share of conversations that was to stay effective.

    Args:
        returns_N: ``(N,)`` finite R.
        group_N: ``(N,)`` prompt of each.
        success_N: ``(N,)`` whether each succeeded.
        target: a share in (0, 1); or ``success``, the mean share of a prompt that succeeds, over prompts whose returns
            differ, so that as many count as rejection sampling would keep. Data without failures or without successes
            take the limits: ∞, all alike, or 0, the best alone.
    """
    returns, (index_N, groups) = np.asarray(returns_N, float), index_groups(group_N)
    if target != "success":
        return shared_temperature(returns, index_N, float(target)), float(target)
    shares_G = group_mean(np.asarray(success_N, float), index_N, groups)[~equal_returns(returns, index_N)]
    share = math.fsum(shares_G.tolist()) / len(shares_G) if len(shares_G) else None
    if share is None or share in (0, 1):
        return (0.0 if share == 0 else math.inf), share
    return shared_temperature(returns, index_N, share), share


def shared_temperature(returns_N: ArrayLike, group_N: ArrayLike, share: float) -> float:
    """One β for a whole data set, at which the mean effective share of its prompts is ``share``.

    The mean is over prompts whose returns differ; the others have weight 1 at any β. By bisection in log β: shares fall
    as β falls, from 1 to the share of conversations with a prompt's largest return. Unchanged by a constant added to
    the returns of a prompt, and β scales with them.

    Args:
        returns_N: ``(N,)`` finite R.
        group_N: ``(N,)`` prompt of each.
        share: of a prompt's K, in (0, 1).

    Returns:
        β: 0 where even the smallest leaves more than the share effective (conversations tie for the best), ∞ where no
        prompt has returns that differ.
    """
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    with np.errstate(over="ignore"):
        gap_N = returns - group_max(returns, index_N, groups)[index_N]
    differs_G = group_min(gap_N, index_N, groups) < 0
    if not differs_G.any():
        return math.inf
    kept_N = differs_G[index_N]
    gap_M, index_M = gap_N[kept_N], (np.cumsum(differs_G) - 1)[index_N[kept_N]]
    size_S = np.bincount(index_M).astype(float)

    def mean_share(beta: float) -> float:
        # Correctly rounded, so that β does not hang on how many prompts there are.
        return math.fsum(effective_shares(exponents(gap_M, beta), index_M, size_S).tolist()) / len(size_S)

    if mean_share(0.0) >= share:
        return 0.0
    finite = -gap_M[(gap_M < 0) & np.isfinite(gap_M)]
    low = math.log(max(float(finite.min(initial=math.inf)) / _COLD, _SMALLEST))
    high = math.log(float(finite.max(initial=0.0))) + math.log(_HOT)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_share(math.exp(min(middle, 709.0))) > share else (middle, high)
    return math.exp(min((low + high) / 2, 709.0))
