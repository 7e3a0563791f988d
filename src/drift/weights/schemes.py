"""Schemes: what a conversation weighs, one pure function each, returns in, weights out.

They take ``returns_N``, ``(N,)`` R, and ``group_N``, ``(N,)`` which prompt each belongs to, and give ``(N,)`` weights.
Keyword-only arguments that end in ``_N`` or ``_T`` are data, filled by name from ``drift.weights.turns.Conversations``,
the others settings, refused with ``ConfigError`` where they make no sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import ConfigError, require
from drift.registry import Registry, path_of
from drift.weights.groups import Floats, Ints, group_max, group_mean, group_min, index_groups, quotients, tree_levels

# Standard deviations below this share of a prompt's largest return are rounding noise of equal returns.
FLAT = 1e-12
PUBLISHED = "β divides the return; 0.1 is the published value."


def drift_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float = 0.1) -> Floats:
    """Importance weights toward the optimum of the KL-regularised objective (DRIFT Eq. 13).

    ``w_k = e^{R_k/β} / Ẑ`` with ``Ẑ = (1/K) Σ_j e^{R_j/β}`` over the K conversations of the prompt, in log space: their
    mean is 1, the largest at most K, whatever constant is added to R. Fails quietly where a prompt has no success: its
    total weight is K all the same (see ``drop_unsolved``). Of first replies, which alone are then trained, it is the
    scheme ``bolt``, ``e^{r(x,y_1)/β}/Ẑ(x)`` (BOLT, arXiv 2605.02469). β is in the units of R; its limits are 0, the
    best alone, and ∞, all alike.
    """
    require(beta >= 0, "weights.beta", str(beta), "a number > 0, or its limits", PUBLISHED)
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    tilted_N = tilted(returns, group_max(returns, index_N)[index_N], beta)
    return tilted_N / group_mean(tilted_N, index_N)[index_N]


def averaged_weights(
    returns_N: ArrayLike, group_N: ArrayLike, *, turns_N: Ints, reply_T: Ints, feedback_T: Ints, beta: float = 0.1
) -> Floats:
    """DRIFT's weights with luck averaged: toward the optimum of Eq. 3 where the environment's answers are chance.

    With x the history and y the reply, on the tree of a prompt's conversations (``tree_levels``)::

        w(τ) = Π_t e^{(Q(x_t, y_t) − V(x_t))/β}      Q = mean over what followed of R, or of V(x_{t+1})
                                                     V = β log mean over replies of e^{Q/β}

    Their mean is 1. Where no reply was followed by two things it is ``drift_weights``. Ours; why: docs/method.md.
    """
    require(beta > 0, "weights.beta", beta, "a number > 0", PUBLISHED)
    worth_N, index_N = np.array(returns_N, float), index_groups(group_N)
    log_N = np.zeros(len(worth_N))
    for rows_M, history_M, reply_M in reversed(tree_levels(index_N, turns_N, reply_T, feedback_T)):
        # What ended is worth its return; what went on lies in one history or in several.
        q_M = group_mean(worth_N[rows_M], reply_M)[reply_M]
        best_H = group_max(q_M, history_M)
        gap_M = (q_M - best_H[history_M]) / beta
        mean_H = np.log(group_mean(np.exp(gap_M), history_M))
        log_N[rows_M] += gap_M - mean_H[history_M]
        worth_N[rows_M] = (best_H + beta * mean_H)[history_M]
    return np.exp(log_N)


def sft_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """Plain supervised fine-tuning on every conversation: ``w = 1`` (SFT-5turn of the DRIFT paper)."""
    return np.ones(len(np.asarray(returns_N)))


def rft_weights(returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike) -> Floats:
    """Rejection sampling: ``w = 1[success]`` (RFT, arXiv 2304.06767 and 2308.01825). Blind to how long it took."""
    return np.asarray(success_N, float)


def star_weights(
    returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike, turns_N: ArrayLike, first_wrong_N: ArrayLike
) -> Floats:
    """Corrections alone: ``w = 1[L = 2, y_1 wrong (no question), y_2 right]`` (STaR-2turn, DRIFT App. D.1)."""
    second_N = np.asarray(first_wrong_N, bool) & (np.asarray(turns_N) == 2)
    return np.where(second_N, np.asarray(success_N, float), 0.0)


def star_gate_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The best conversation of each prompt alone: ``w = 1[k = argmax_j R_j]`` (STaR-GATE, arXiv 2403.19154).

    One row a prompt, as published: the first of those that tie, and where none succeeded a failure (``drop_unsolved``).
    """
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    best = np.flatnonzero(returns == group_max(returns, index_N)[index_N])
    weights = np.zeros(len(returns))
    weights[best[np.unique(index_N[best], return_index=True)[1]]] = 1.0
    return weights


def refit_weights(returns_N: ArrayLike, group_N: ArrayLike, *, shift: bool = False) -> Floats:
    """The return itself: ``w = r ≥ 0``, without which its bound doesn't hold (Refit, arXiv 2506.06964, Lemma 1).

    With ``shift`` it is ``r − min(0, min r)`` of the prompt. Refit is not blind to it: it adds plain fine-tuning.
    """
    returns = np.asarray(returns_N, float)
    if shift:
        index_N = index_groups(group_N)
        return returns - np.minimum(group_min(returns, index_N), 0.0)[index_N]
    if negative := int((returns < 0).sum()):
        raise ConfigError(
            f"refit needs returns ≥ 0: {negative} of {len(returns)} are negative, the smallest {returns.min():.4g}. "
            "Set repetition and format_failure to 0, scheme to {refit: {shift: true}}, or scheme to swift."
        )
    return returns.copy()


def swift_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The return, standardised within its prompt: ``w = (r − μ̂) / σ̂`` (Swift, arXiv 2506.06964).

    σ̂ is the population standard deviation; where it is 0, which the paper leaves open, the weight is 0.
    """
    centred_N, sigma_N, _ = _centred(returns_N, group_N)
    return quotients(centred_N, np.where(sigma_N > FLAT, sigma_N, 0.0))


def group_relative_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The return less its prompt's mean: ``w = r − μ̂``, group-relative policy gradients offline, Swift without σ̂."""
    centred_N, sigma_N, scale_N = _centred(returns_N, group_N)
    return np.where(sigma_N <= FLAT, 0.0, centred_N * scale_N)


def _centred(returns_N: ArrayLike, group_N: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """``(N,)`` returns less their prompt's mean, its deviation, and the unit of both: its largest absolute return."""
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    # In that unit squares neither overflow nor vanish.
    scale_N = group_max(np.abs(returns), index_N)[index_N]
    scaled_N = quotients(returns, scale_N)
    centred_N = scaled_N - group_mean(scaled_N, index_N)[index_N]
    return centred_N, np.sqrt(group_mean(centred_N**2, index_N))[index_N], scale_N


def rwr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float = 0.1) -> Floats:
    """Reward-weighted regression: ``w ∝ e^{r/β}``, of mean 1 over the whole data set, which favours easy prompts."""
    require(beta > 0, "weights.beta", beta, "a number > 0", PUBLISHED)
    returns = np.asarray(returns_N, float)
    top, mean = shared_partition(returns, beta)
    return tilted(returns, top, beta) / mean


def awr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float = 0.1, w_max: float = 20.0) -> Floats:
    """Advantage-weighted regression: ``w = min(e^{A/β}, w_max)``, ``A = r − μ̂`` of the prompt (arXiv 1910.00177)."""
    require(beta > 0, "weights.beta", beta, "a number > 0", PUBLISHED)
    require(w_max > 0, "weights.scheme.awr.w_max", w_max, "a number > 0")
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    with np.errstate(over="ignore"):
        # Less the largest first: the mean of equal returns would differ from them in the last bit, and β may be small.
        gap_N = returns - group_max(returns, index_N)[index_N]
        advantage_N = gap_N - group_mean(gap_N, index_N)[index_N]
        return np.exp(np.minimum(advantage_N / beta, np.log(w_max)))


def topr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike, failures: float = 0.3) -> Floats:
    """Successes +1, failures of solved prompts −c, for the loss ``tapered`` (TOPR, arXiv 2503.14286).

    ``c = f/(1 − f) · n⁺/n⁻`` with n⁺ successes, n⁻ failures of prompts that have a success (others get 0): ``failures``
    hold the share f of ``Σ|w|``, which the paper sets by a baseline. Under the loss ``nll`` they destroy a policy.
    """
    require(0 <= failures < 1, "weights.scheme.topr.failures", failures, "a share of at least 0 and below 1")
    success_N, index_N = np.asarray(success_N, bool), index_groups(group_N)
    failed_N = ~success_N & (group_mean(success_N, index_N) > 0)[index_N]
    push = failures / (1 - failures) * success_N.sum() / max(1, failed_N.sum())
    return np.where(success_N, 1.0, np.where(failed_N, -push, 0.0))


def asymre_weights(returns_N: ArrayLike, group_N: ArrayLike, *, delta: float = 0.1) -> Floats:
    """The return less a baseline below its prompt's mean: ``w = r − (μ̂ − δ)`` (AsymRE, arXiv 2506.20520).

    δ > 0, in the units of R, lets what is good lead: ``Σ w = K δ`` of each prompt. At δ ≤ 0 policies collapse (ibid.).
    """
    require(delta >= 0, "weights.scheme.asymre.delta", delta, "a number ≥ 0", "0 is the scheme group_relative.")
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    # The mean of the differences: equal returns of any size then differ from it by nothing.
    gap_N: Floats = returns - returns[np.unique(index_N, return_index=True)[1]][index_N]
    return gap_N - group_mean(gap_N, index_N)[index_N] + delta


def tilted(returns_N: float | Floats, best_N: float | Floats, beta: float) -> Floats:
    """``e^{(R − R⁺)/β}`` with R⁺ the largest return; at most 1. At β = 0 it is 1 for the best alone, at ∞ for all."""
    with np.errstate(all="ignore"):
        # The subtraction comes first: returns/β may overflow where their differences do not.
        gap_N = np.subtract(returns_N, best_N)
        return np.exp(np.where(gap_N == 0, 0.0, np.divide(gap_N, beta)))


def shared_partition(returns_N: Floats, beta: float) -> tuple[float, float]:
    """The largest return R⁺ of all, and the mean over all of ``e^{(r − R⁺)/β}``, correctly rounded."""
    top = float(returns_N.max(initial=-np.inf))
    return top, exact_mean(tilted(returns_N, top, beta))


def exact_mean(values_N: Floats) -> float:
    """Correctly rounded, so that it does not hang on the order or the parts in which values come."""
    parts = (values_N[at : at + 65_536].tolist() for at in range(0, len(values_N), 65_536))
    return math.fsum(value for part in parts for value in part) / max(len(values_N), 1)


@dataclass(frozen=True)
class Scheme:
    """A scheme and what its paper brings with it; a function of one's own has attributes of these names instead.

    Attributes:
        turns, gamma, repetition: which replies get the weight; γ and λ of the return.
        grouped: it compares conversations of one prompt, so a prompt needs at least two.
        centred: it does so by returns alone, and can compare ``R − b`` of all prompts where b is a baseline.
        signed: its weights can be negative, and nothing of its own, a share or δ, bounds them: bound_negative follows.
        partitioned: it divides ``e^{R/β}`` by the prompt's Ẑ, so that β can be found from the data and Ẑ be shrunk.
        first_turn: return and success are those of the first reply, which is all that may be trained.
    """

    name: str
    function: Callable[..., Floats]
    turns: str = "terminal"
    gamma: float = 1.0
    repetition: float = 0.0
    grouped: bool = False
    centred: bool = False
    signed: bool = False
    partitioned: bool = False
    first_turn: bool = False


_COMPARED: dict[str, Any] = {"grouped": True, "centred": True}
_DRIFT: dict[str, Any] = {"gamma": 0.9, "repetition": 0.5, "grouped": True}
_ALL = (
    Scheme("drift", drift_weights, **_DRIFT, partitioned=True, centred=True),
    Scheme("drift_averaged", averaged_weights, **_DRIFT),
    Scheme("bolt", drift_weights, **_COMPARED, partitioned=True, first_turn=True, turns="first"),
    Scheme("sft", sft_weights),
    Scheme("rft", rft_weights),
    Scheme("star", star_weights),
    Scheme("star_gate", star_gate_weights, grouped=True, turns="all"),
    Scheme("refit", refit_weights, turns="all"),
    Scheme("swift", swift_weights, **_COMPARED, turns="all", signed=True),
    Scheme("group_relative", group_relative_weights, **_COMPARED, turns="all", signed=True),
    Scheme("rwr", rwr_weights),
    Scheme("awr", awr_weights, **_COMPARED),
    Scheme("topr", topr_weights),
    Scheme("asymre", asymre_weights, **_COMPARED),
)
SCHEMES = {scheme.name: scheme for scheme in _ALL}
# What auto is until the data are seen; then it is what ``drift.weights.auto`` finds.
AUTO = Scheme("auto", rft_weights)
REGISTRY = Registry("scheme", "drift.schemes", {**SCHEMES, "auto": AUTO})


def find_scheme(scheme: str | Callable[..., Floats]) -> Scheme:
    """The scheme of a name, ``module:function`` or function; raises ``ConfigError`` with the nearest known name."""
    found = REGISTRY.find(scheme)
    if isinstance(found, Scheme):
        return found
    said: dict[str, Any] = {each.name: getattr(found, each.name, each.default) for each in fields(Scheme)[2:]}
    # Of one's own nobody knows whether its weights can be negative, unless it says so.
    return Scheme(path_of(found), found, **{**said, "signed": getattr(found, "signed", True)})
