"""Weightings that are exponentials of the return: DRIFT, BOLT, reward- and advantage-weighted regression."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import require
from drift.weights.groups import Floats, Parts, group_max, group_mean, index_groups
from drift.weights.temperature import exponents


def drift_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float | Floats) -> Floats:
    """Importance weights toward the optimum of the KL-regularised objective (DRIFT Eq. 13).

    ``w_k = e^{R_k/β} / Ẑ`` with ``Ẑ = (1/K) Σ_j e^{R_j/β}`` over the K trajectories of the prompt, in log space.
    Group mean 1, largest possible value K, unchanged by a constant added to a group's returns.

    Fails quietly where a group has no success: its total weight is K all the same (see ``no_success``).

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        beta: temperature β > 0, in the units of R. An array ``(N,)`` of each trajectory's, the same within a prompt,
            may hold the limits 0 (the best alone) and ∞ (all alike); see ``temperature``.

    Returns:
        ``(N,)`` weights ≥ 0.
    """
    _check_beta(beta)
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    # The subtraction comes first: returns/β may overflow where their differences do not.
    with np.errstate(over="ignore"):
        gap_N = returns - group_max(returns, index_N, groups)[index_N]
    tilted_N = np.exp(exponents(gap_N, beta))
    weights: Floats = tilted_N / group_mean(tilted_N, index_N, groups)[index_N]
    return weights


def bolt_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float | Floats) -> Floats:
    """The prompt-normalised Boltzmann weight of single replies, ``e^{r(x,y_1)/β}/Ẑ(x)`` (BOLT, arXiv 2605.02469).

    It is DRIFT's weight of conversations that end after one reply. The returns must be those of the first replies
    alone (``SchemeInfo.first_turn`` sees to it), and the first replies alone are to be trained (``turns: first``).

    Args:
        returns_N: ``(N,)`` return of the first reply.
        group_N: ``(N,)`` which prompt each belongs to.
        beta: as of ``drift_weights``.
    """
    return drift_weights(returns_N, group_N, beta=beta)


def shrunken_weights(
    returns_N: ArrayLike,
    group_N: ArrayLike,
    *,
    beta: float | Floats,
    prior: float,
    normalizer: tuple[float, float] | None = None,
) -> Floats:
    """DRIFT's weights with the prompt's Ẑ shrunk toward that of all prompts.

    ``w_k = e^{R_k/β} / Ẑ⁺`` with ``Ẑ⁺ = (K Ẑ + m Z̄)/(K + m)``, ``Z̄`` the mean of ``e^{R/β}`` over the whole data set.
    A prompt whose rollouts are all worse than usual then weighs ``K Ẑ/Ẑ⁺ < K`` in all. m = 0 is ``drift_weights``,
    m → ∞ is ``rwr_weights``: this gives up that a constant added to one prompt's returns changes nothing.

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        beta: temperature β > 0, one for all prompts; or an array of one and the same, which may be 0 or ∞.
        prior: m ≥ 0, for how many rollouts the shared Z̄ counts.
        normalizer: what ``survey_rwr`` found in the whole data set, of which ``returns_N`` may then be a part.
    """
    _check_beta(beta)
    require(prior >= 0, "weights.shrink_prior", prior, "a number ≥ 0")
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    top, shared = normalizer or survey_rwr(lambda: [returns], beta=beta)["normalizer"]
    best_G = group_max(returns, index_N, groups)
    size_G = np.bincount(index_N, minlength=groups)
    # In units of e^{R/β} of the prompt's best: its own Ẑ is then at least 1/K, however far the others' returns are.
    with np.errstate(over="ignore"):
        tilted_N = np.exp(exponents(returns - best_G[index_N], beta))
        beta_G = beta if np.ndim(beta) == 0 else np.full(groups, np.ravel(beta)[0])
        others_G = prior * shared * np.exp(exponents(top - best_G, beta_G)) if prior > 0 else 0.0
    partition_G = (size_G * group_mean(tilted_N, index_N, groups) + others_G) / (size_G + prior)
    weights: Floats = tilted_N / partition_G[index_N]
    return weights


def rwr_weights(
    returns_N: ArrayLike, group_N: ArrayLike, *, beta: float, normalizer: tuple[float, float] | None = None
) -> Floats:
    """Reward-weighted regression: ``w ∝ e^{r/β}`` with one constant for the whole data set, here mean weight 1.

    Unlike ``drift`` it favours easy prompts, whose returns are high. ``normalizer`` is what ``survey_rwr`` found in
    the whole data set, of which ``returns_N`` may then be a part.
    """
    _check_beta(beta)
    returns = np.asarray(returns_N, float)
    top, mean = normalizer or survey_rwr(lambda: [returns], beta=beta)["normalizer"]
    with np.errstate(over="ignore"):
        weights: Floats = np.exp(exponents(returns - top, beta)) / mean
    return weights


def survey_rwr(parts: Parts, *, beta: float | Floats) -> dict[str, Any]:
    """The largest return R⁺ of all parts and the mean of ``e^{(r − R⁺)/β}``, correctly rounded in whatever order."""
    top = max((float(returns.max(initial=-np.inf)) for returns in parts()), default=-np.inf)
    count = 0

    def tilted() -> Iterator[float]:
        nonlocal count
        for returns in parts():
            count += len(returns)
            with np.errstate(over="ignore"):
                yield from np.exp(exponents(returns - top, beta)).tolist()

    total = math.fsum(tilted())
    return {"normalizer": (top, total / max(count, 1))}


def awr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float, w_max: float) -> Floats:
    """Advantage-weighted regression: ``w = min(e^{A/β}, w_max)``, ``A = r − μ̂`` of the prompt (arXiv 1910.00177)."""
    _check_beta(beta)
    require(w_max > 0, "weights.w_max", w_max, "a number > 0")
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    with np.errstate(over="ignore"):
        # Less the largest first: the mean of equal returns would differ from them in the last bit, and β may be small.
        gap_N = returns - group_max(returns, index_N, groups)[index_N]
        advantage_N = gap_N - group_mean(gap_N, index_N, groups)[index_N]
        weights: Floats = np.exp(np.minimum(advantage_N / beta, np.log(w_max)))
    return weights


def _check_beta(beta: float | Floats) -> None:
    if isinstance(beta, np.ndarray):
        require(bool((beta >= 0).all()), "weights.beta", beta, "numbers ≥ 0, or ∞")
    else:
        require(beta > 0, "weights.beta", beta, "a number > 0", "β divides the return; 0.1 is the published value.")
