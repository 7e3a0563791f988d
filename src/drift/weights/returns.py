"""Returns: how good a conversation was."""

from __future__ import annotations

from typing import Literal

import numpy as np

from drift.dataset.outcomes import Outcomes
from drift.weights.groups import Floats


def trajectory_return(
    outcomes: Outcomes,
    *,
    outcome: Literal["success", "reward"],
    gamma: float,
    repetition: float,
    format_failure: float,
) -> Floats:
    """The return of DRIFT Eq. 12 less a format penalty, ``R = o·γ^(L−1) − λ(1 − E/L') − c·F``.

    o is what counts, and the discount makes it worth less the later it came. Repeating oneself costs λ(1 − E/L'): E is
    the number of distinct answers among the L' turns in which one was asked for; a reply without a readable answer adds
    nothing to E, and where no answer was ever asked for, nothing was repeated. (Published code divides by the number of
    readable answers.) Each of F unreadable replies costs c: 0 in the paper, 0.1 in its published code.

    Args:
        outcomes: of N conversations.
        outcome: success (1 or 0), or the sum of the environment's rewards.
        gamma: γ per turn, in (0, 1].
        repetition: λ ≥ 0.
        format_failure: c ≥ 0.

    Returns:
        ``(N,)`` R, in the units of the outcome.
    """
    outcome_N = np.asarray(outcomes.success_N if outcome == "success" else outcomes.reward_N, float)
    discounted_N = outcome_N * np.power(float(gamma), np.asarray(outcomes.turns_N, float) - 1)
    asked_N = np.asarray(outcomes.graded_N, float)
    distinct_share_N = np.where(asked_N > 0, np.asarray(outcomes.distinct_N, float) / np.maximum(asked_N, 1), 1.0)
    returns_N: Floats = discounted_N - repetition * (1 - distinct_share_N)
    return returns_N - format_failure * np.asarray(outcomes.failures_N, float)
