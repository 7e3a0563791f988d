"""Verdicts that can be wrong: what a conversation is worth where its verifier errs at known rates."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import require
from drift.weights.groups import Floats, group_sum, index_groups


def chance_right(
    success_N: ArrayLike, graded_N: ArrayLike, group_N: ArrayLike, *, false_positive: float, false_negative: float
) -> Floats:
    """The chance that each conversation's last reply is right, given what the verifier said of it (Bayes' rule).

    A verifier accepts a wrong reply with the chance ``ρ₀`` and refuses a right one with ``ρ₁``, whatever came before.
    A prompt whose replies are right with the chance q then has ``a = q(1 − ρ₁) + (1 − q)ρ₀`` of them accepted; q is
    estimated by solving that for the prompt's own share of accepted replies, and lies in [0, 1]::

        P(right | accepted) = q(1 − ρ₁)/a        P(right | refused) = qρ₁/(1 − a)

    Replies of a prompt count alike, whichever turn they are of. With ρ₀ = ρ₁ = 0 the result is ``success_N``.

    Args:
        success_N: ``(N,)`` whether the last reply was accepted; all before it were refused.
        graded_N: ``(N,)`` how many replies were judged.
        group_N: ``(N,)`` which prompt each belongs to.
        false_positive: ρ₀.
        false_negative: ρ₁, with ρ₀ + ρ₁ < 1: a verdict says more than nothing.
    """
    check_rates(false_positive, false_negative)
    accepted_N = np.asarray(success_N, float)
    index_N, groups = index_groups(group_N)
    # What succeeded was judged, also where an environment does not call its last reply an answer.
    judged_G = group_sum(np.maximum(np.asarray(graded_N, float), accepted_N), index_N, groups)
    share_G = group_sum(accepted_N, index_N, groups) / np.maximum(judged_G, 1)
    right_G = np.clip((share_G - false_positive) / (1 - false_positive - false_negative), 0, 1)

    def posterior(if_right: float, if_wrong: float) -> Floats:
        joint_G = right_G * if_right
        total_G = joint_G + (1 - right_G) * if_wrong
        return np.divide(joint_G, total_G, out=np.zeros(groups), where=total_G > 0)

    accepted_G = posterior(1 - false_negative, false_positive)
    refused_G = posterior(false_negative, 1 - false_positive)
    return np.where(accepted_N > 0, accepted_G[index_N], refused_G[index_N])


def check_rates(false_positive: float, false_negative: float) -> None:
    """Raise ``ConfigError`` unless both are chances and a verdict with them says anything."""
    for name, rate in (("false_positive", false_positive), ("false_negative", false_negative)):
        require(0 <= rate < 1, f"weights.{name}", rate, "a chance of at least 0 and below 1")
    total = false_positive + false_negative
    advice = "At 1 the verdict says nothing, above it the opposite."
    require(total < 1, "weights.false_positive + weights.false_negative", total, "less than 1", advice)


def equivalent_return(low_N: ArrayLike, gain_N: ArrayLike, chance_N: ArrayLike, beta: float) -> Floats:
    """The sure return with the same ``e^{R/β}`` as an unsure one has on average.

    ``β log(π e^{(low + gain)/β} + (1 − π) e^{low/β})``. An exponential weighting of it has, given what was observed,
    the mean that the true return's would have, so its optimum stays ``p* ∝ p_ref e^{R/β}`` of the true R (Thm 5).

    Args:
        low_N: ``(N,)`` return if the last reply is wrong.
        gain_N: ``(N,)`` how much higher it is if that is right, ≥ 0.
        chance_N: ``(N,)`` π, the chance that it is right.
        beta: temperature β > 0, in the units of the returns.
    """
    gain, chance = np.asarray(gain_N, float), np.asarray(chance_N, float)
    # Less the gain: its exponential may overflow, that of what lies below it can't.
    with np.errstate(over="ignore", divide="ignore"):
        below_N = np.log(chance + (1 - chance) * np.exp(-gain / beta))
    # Where the chance is 0 and the gain past what floats hold, nothing is gained.
    return np.asarray(low_N, float) + np.where(chance > 0, gain + beta * below_N, 0.0)
