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
    repetition_over: Literal["turns", "answers"] = "turns",
) -> Floats:
    """The return of DRIFT Eq. 12 less a format penalty, ``R = o·γ^(L−1) − λ(1 − E/L') − c·F``.

    o is what counts, and the discount makes it worth less the later it came. Repeating oneself costs λ(1 − E/L'): E is
    the number of distinct answers among the L' turns in which one was asked for; a reply without a readable answer adds
    nothing to E, and where no answer was ever asked for, nothing was repeated. Each of F unreadable replies costs c: 0
    in the paper. Its published code has c = 0.1 and divides E by the number of readable answers instead of L'.

    Args:
        outcomes: of N conversations.
        outcome: success (1 or 0), or the sum of the environment's rewards.
        gamma: γ per turn, in (0, 1].
        repetition: λ ≥ 0.
        format_failure: c ≥ 0.
        repetition_over: what E is divided by: L' (turns), or its readable answers alone (answers).

    Returns:
        ``(N,)`` R, in the units of the outcome.
    """
    outcome_N = np.asarray(outcomes.success_N if outcome == "success" else outcomes.reward_N, float)
    discounted_N = outcome_N * np.power(float(gamma), np.asarray(outcomes.turns_N, float) - 1)
    over_N = np.asarray(outcomes.graded_N, float)
    if repetition_over == "answers":
        over_N = over_N - outcomes.failures_N
    distinct_share_N = np.where(over_N > 0, np.asarray(outcomes.distinct_N, float) / np.maximum(over_N, 1), 1.0)
    returns_N: Floats = discounted_N - repetition * (1 - distinct_share_N)
    return returns_N - format_failure * np.asarray(outcomes.failures_N, float)
