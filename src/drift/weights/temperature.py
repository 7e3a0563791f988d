"""``e^{R/β}`` in log space, and β without guessing: that which keeps a wanted share of the conversations effective."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import Floats, Indices, group_max, group_mean, group_min, group_sum, index_groups

# Halvings of an interval of log β: what is left is below 1e-9 for any returns that floats can hold.
HALVINGS = 40
# e^-750 is 0, and 1e9 spans make weights that differ from 1 by less than a float shows; nor has e^709.8 a float.
_COLD, _HOT, _LARGEST = 750.0, 1e9, 709.0
_SMALLEST = float(np.finfo(float).smallest_subnormal)


def exponents(gap_N: Floats, beta: float | Floats) -> Floats:
    """``gap/β`` for gaps ≤ 0 to the largest return, with its limits: β = 0 gives 0 and −∞, β = ∞ gives 0."""
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        return np.where(gap_N == 0, 0.0, gap_N / beta)


def tilted(returns_N: float | Floats, best_N: float | Floats, beta: float | Floats) -> Floats:
    """``e^{(R − R⁺)/β}`` with R⁺ the largest return; at most 1, whatever the size of the returns."""
    # The subtraction comes first: returns/β may overflow where their differences do not.
    with np.errstate(over="ignore"):
        return np.exp(exponents(np.subtract(returns_N, best_N), beta))


def shared_partition(returns_N: Floats, beta: float | Floats) -> tuple[float, float]:
    """The largest return R⁺ of all, and the mean over all of ``e^{(r − R⁺)/β}``, correctly rounded."""
    top = float(returns_N.max(initial=-np.inf))
    return top, _mean(tilted(returns_N, top, beta))


def effective_shares(exponent_N: Floats, index_N: Indices) -> Floats:
    """``(G,)`` Kish's ``(Σw)²/Σw²`` over K of each prompt under weights ``∝ e^exponent``; the largest of each is 0."""
    # What is below e^-300 of the largest changes no sum, and without it no number gets slow or loses digits.
    tilted_N = np.exp(np.maximum(exponent_N, -300.0))
    return group_sum(tilted_N, index_N) ** 2 / group_sum(tilted_N**2, index_N) / np.bincount(index_N)


def temperature_of(
    returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike, target: float | str
) -> tuple[float, float | None]:
    """What ``beta: auto`` finds: one β for a whole data set, and the share of conversations that stays effective.

    The mean of ``effective_shares`` over prompts whose returns differ falls with β, so that β is found by bisection
    where it is ``target``: a share of K in (0, 1), or ``success``, the mean share of conversations that succeed. Ours.

    Returns:
        β, and the share that was wanted. β is 0, the best alone, where no conversation of such prompts succeeds or too
        many tie for the best; ∞, all alike, where all succeed or no prompt has returns that differ (then there is no
        mean share of success: ``None``).
    """
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    with np.errstate(over="ignore"):
        gap_N = returns - group_max(returns, index_N)[index_N]
    differs_G = group_min(gap_N, index_N) < 0
    share = None if target == "success" else float(target)
    if share is None and differs_G.any():
        share = _mean(group_mean(success_N, index_N)[differs_G])
    if share == 0:
        return 0.0, share
    if share in (None, 1) or not differs_G.any():
        return math.inf, share
    kept_N = differs_G[index_N]
    return _temperature(gap_N[kept_N], (np.cumsum(differs_G) - 1)[index_N[kept_N]], share), share


def _mean(values_N: Floats) -> float:
    """Correctly rounded, so that it does not hang on the order or the parts in which values come."""
    parts = (values_N[at : at + 65_536].tolist() for at in range(0, len(values_N), 65_536))
    return math.fsum(value for part in parts for value in part) / max(len(values_N), 1)


def _temperature(gap_M: Floats, index_M: Indices, share: float) -> float:
    def mean_share(beta: float) -> float:
        return _mean(effective_shares(exponents(gap_M, beta), index_M))

    if mean_share(0.0) >= share:
        return 0.0
    finite = -gap_M[(gap_M < 0) & np.isfinite(gap_M)]
    low = math.log(max(float(finite.min(initial=math.inf)) / _COLD, _SMALLEST))
    high = math.log(float(finite.max(initial=0.0))) + math.log(_HOT)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_share(math.exp(min(middle, _LARGEST))) > share else (middle, high)
    return math.exp(min((low + high) / 2, _LARGEST))
