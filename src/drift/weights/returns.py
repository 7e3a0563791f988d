"""Returns: how good a conversation was, as pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def discounted_return(base_N: ArrayLike, turns_N: ArrayLike, gamma: float) -> Floats:
    """Worth of the outcome, less the later it came: ``base · γ^(L−1)``.

    Args:
        base_N: ``(N,)`` 1 or 0 for success (DRIFT Eq. 12), or any reward per conversation (Refit).
        turns_N: ``(N,)`` number of turns L ≥ 1.
        gamma: discount per turn, in (0, 1].

    Returns:
        ``(N,)`` in the units of ``base_N``.
    """
    found_N: Floats = np.asarray(base_N, float) * np.power(float(gamma), np.asarray(turns_N, float) - 1)
    return found_N


def repetition_penalty(distinct_N: ArrayLike, turns_N: ArrayLike, coefficient: float) -> Floats:
    """What repeating oneself costs: ``λ (1 − E/L)``, E the number of distinct answers (DRIFT Eq. 12).

    A reply without a readable answer adds nothing to E. (Published code divides by the number of readable answers
    instead of L.) Where no answer was ever asked for, nothing was repeated: L = 0 costs 0.

    Args:
        distinct_N: ``(N,)`` E, between 0 and L.
        turns_N: ``(N,)`` L ≥ 0, the turns in which an answer was asked for.
        coefficient: λ ≥ 0.

    Returns:
        ``(N,)`` in [0, λ].
    """
    turns = np.asarray(turns_N, float)
    share_N = np.where(turns > 0, np.asarray(distinct_N, float) / np.maximum(turns, 1), 1.0)
    found_N: Floats = float(coefficient) * (1 - share_N)
    return found_N


def format_penalty(failures_N: ArrayLike, coefficient: float) -> Floats:
    """What unreadable replies cost: ``coefficient`` for each. Absent from Eq. 12; published code uses 0.1.

    Args:
        failures_N: ``(N,)`` replies without a readable answer.
        coefficient: cost of one, ≥ 0.

    Returns:
        ``(N,)`` ≥ 0.
    """
    return float(coefficient) * np.asarray(failures_N, float)


def trajectory_return(
    base_N: ArrayLike,
    turns_N: ArrayLike,
    distinct_N: ArrayLike,
    failures_N: ArrayLike,
    *,
    gamma: float,
    repetition: float,
    format_failure: float,
    graded_N: ArrayLike | None = None,
) -> Floats:
    """The return of DRIFT Eq. 12, ``R = base·γ^(L−1) − λ(1 − E/L)``, less a format penalty (0 in the paper).

    Args:
        base_N: ``(N,)`` success (1 or 0) or reward.
        turns_N: ``(N,)`` L.
        distinct_N: ``(N,)`` E.
        failures_N: ``(N,)`` format failures.
        gamma: γ.
        repetition: λ.
        format_failure: cost of one format failure.
        graded_N: ``(N,)`` turns in which an answer was asked for, the L of the repetition penalty; all L of them
            unless given. The discount counts every turn.

    Returns:
        ``(N,)`` R.
    """
    return (
        discounted_return(base_N, turns_N, gamma)
        - repetition_penalty(distinct_N, turns_N if graded_N is None else graded_N, repetition)
        - format_penalty(failures_N, format_failure)
    )
