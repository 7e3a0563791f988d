"""Returns: how good a conversation was, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from drift.dataset.expected import expected_values
from drift.dataset.outcomes import Outcomes, outcome_values
from drift.errors import require
from drift.weights.groups import Floats, Indices, group_sum, others_mean, quotients


def trajectory_return(
    outcomes: Outcomes,
    *,
    outcome: str | Mapping[str, Any],
    gamma: float,
    repetition: float,
    format_failure: float,
    repetition_over: Literal["turns", "answers"] = "turns",
) -> Floats:
    """The return of DRIFT Eq. 12 less a format penalty, ``R = o·γ^(L−1) − λ(1 − E/L') − c·F``, ``(N,)``.

    Args:
        outcomes: of N conversations of L turns, L' of which asked for an answer. E distinct ones were read; F replies
            were unreadable, and add nothing to E. Where no answer was asked for, nothing was repeated.
        outcome: o, what counts, as ``outcome_values`` takes it; where it is not known, R is NaN.
        gamma: discount γ per turn, in (0, 1].
        repetition: λ ≥ 0, what repeating oneself costs.
        format_failure: c ≥ 0; 0 in the paper, 0.1 in its published code.
        repetition_over: E is divided by L' (turns), or as in the published code by L' − F (answers).
    """
    discounted_N = outcome_values(outcomes, outcome) * np.power(float(gamma), outcomes.turns_N.astype(float) - 1)
    over_N = outcomes.graded_N - (outcomes.failures_N if repetition_over == "answers" else 0)
    distinct_share_N = quotients(outcomes.distinct_N.astype(float), over_N, 1.0)
    returns_N: Floats = discounted_N - repetition * (1 - distinct_share_N)
    return returns_N - format_failure * outcomes.failures_N.astype(float)


def baseline_values(kind: str, returns_N: Floats, index_N: Indices, outcomes: Outcomes) -> Floats:
    """What each return is measured against, ``(N,)``, where that is not what others of the prompt got alone.

    None knows the conversation's own return: at the logged policy ``Σ (R − b) ∇log p`` has the expectation of ``∇V``
    (docs/method.md).

    Args:
        kind: ``leave_one_out``, the mean of the prompt's others; ``dataset``, of all others; a name that the log notes:
            the mean of the others of the same value; or ``fitted``, ``(m·e + Σ R of the prompt's others)/(m + K − 1)``
            with e by ``expected_values``, and m of 0.5, 1, 2, … 32 or ∞ that of the least squared error.
        returns_N: ``(N,)`` R.
        index_N: ``(N,)`` prompt of each, 0…G−1.
        outcomes: where what the log notes and the words of openings are.
    """
    if kind == "fitted":
        require(outcomes.words is not None, "weights.baseline", kind, "outcomes that were read with words=True")
        expected_N = expected_values(returns_N, index_N, outcomes.words)
        others_N = np.bincount(index_N)[index_N] - 1
        sum_N = group_sum(returns_N, index_N)[index_N] - returns_N
        # ∞ first. One at a time: there may be very much of each.
        blends = 2.0 ** np.arange(-1, 6)
        guesses = (expected_N if m is None else (m * expected_N + sum_N) / (m + others_N) for m in (None, *blends))
        return min(guesses, key=lambda guess_N: float(((returns_N - guess_N) ** 2).sum()))
    if kind == "dataset":
        index_N = np.zeros_like(index_N)
    elif kind != "leave_one_out":
        index_N = outcomes.noted(kind).indices.to_numpy(zero_copy_only=False).astype(np.intp)
    # Who has no others of its own is measured against all others.
    return others_mean(returns_N, index_N, (returns_N.sum() - returns_N) / max(len(returns_N) - 1, 1))
