"""Returns: how good a conversation was, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from drift.dataset.columns import WORDS
from drift.dataset.outcomes import Outcomes, outcome_values
from drift.errors import ConfigError
from drift.weights.groups import Floats, Indices, group_sum

# Parts of the prompts that a fit leaves out in turn; penalties of its ridge, of which the best is taken.
FOLDS, PENALTIES = 5, (0.3, 1.0, 3.0, 10.0, 30.0)
ROWS = 8192
# Differences below this share of the largest return are rounding noise of equal returns.
FLAT = 1e-12


def trajectory_return(
    outcomes: Outcomes,
    *,
    outcome: str | Mapping[str, Any],
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
        outcome: what counts, as ``outcome_values`` takes it.
        gamma: γ per turn, in (0, 1].
        repetition: λ ≥ 0.
        format_failure: c ≥ 0.

    Returns:
        ``(N,)`` R, in the units of the outcome; NaN where the outcome is not known.
    """
    outcome_N = outcome_values(outcomes, outcome)
    discounted_N = outcome_N * np.power(float(gamma), np.asarray(outcomes.turns_N, float) - 1)
    asked_N = np.asarray(outcomes.graded_N, float)
    distinct_share_N = np.where(asked_N > 0, np.asarray(outcomes.distinct_N, float) / np.maximum(asked_N, 1), 1.0)
    returns_N: Floats = discounted_N - repetition * (1 - distinct_share_N)
    return returns_N - format_failure * np.asarray(outcomes.failures_N, float)


def baseline_values(kind: str, returns_N: Floats, index_N: Indices, outcomes: Outcomes) -> Floats:
    """What each return is measured against, ``(N,)``, where that is not what others of the prompt got alone.

    None of them knows the conversation's own return, so that at the policy that was logged ``Σ (R − b) ∇log p`` has the
    expectation of ``∇V``; what each leaves in ``R − b`` beside the worth of the reply is in docs/method.md.

    Args:
        kind: ``leave_one_out``, the mean of the prompt's others, or of all others where there are none; ``dataset``, of
            all others; ``fitted``, see ``fitted_values``; or a name that the log notes: the mean of the others of the
            same value.
        returns_N: ``(N,)`` R.
        index_N: ``(N,)`` prompt of each, 0…G−1.
        outcomes: where what the log notes and the words of openings are.
    """
    if kind == "fitted":
        return fitted_values(returns_N, index_N, outcomes.words)
    if kind == "dataset":
        index_N = np.zeros_like(index_N)
    elif kind != "leave_one_out":
        index_N = outcomes.noted(kind).indices.to_numpy(zero_copy_only=False).astype(np.intp)
    return others_mean(returns_N, index_N)


def others_mean(returns_N: Floats, index_N: Indices) -> Floats:
    """``(N,)`` the mean return of the others of a group; of all others where a group has no others."""
    groups = int(index_N.max(initial=-1)) + 1
    count_N = np.bincount(index_N, minlength=groups)[index_N] - 1
    sum_N = group_sum(returns_N, index_N, groups)[index_N] - returns_N
    all_N = (returns_N.sum() - returns_N) / max(len(returns_N) - 1, 1)
    return np.where(count_N > 0, sum_N / np.maximum(count_N, 1), all_N)


def fitted_values(returns_N: Floats, index_N: Indices, words: pa.ChunkedArray) -> Floats:
    """The return that the words of a prompt lead one to expect, fitted on other prompts (cross-fitting).

    Ridge regression of R on a bag of hashed words, ``min Σ (R − a − x·b)² + λ|b|²`` with |x| = 1. Prompts are parted in
    ``FOLDS``; what is said of one fold comes from the others. λ is the one of ``PENALTIES``, or ∞ (their mean), with
    the least squared error over all folds.

    Args:
        returns_N: ``(N,)`` R.
        index_N: ``(N,)`` prompt of each, 0…G−1.
        words: ``(N,)`` lists of the hashed words of each opening, below ``WORDS``.
    """
    fold_N = index_N % FOLDS
    if len(np.unique(fold_N)) < 2:
        raise ConfigError("weights.baseline: got fitted, and there is one prompt alone. Use leave_one_out, or null.")
    # Augmented by a 1 and by the return: one matrix of sums holds all that a fit needs.
    sums_F = np.zeros((FOLDS, WORDS + 2, WORDS + 2))
    for at in range(0, len(returns_N), ROWS):
        rows, fold = _bags(words, at, returns_N), fold_N[at : at + ROWS]
        for each in np.unique(fold):
            part = rows[fold == each]
            sums_F[each] += part.T @ part
    fits = np.stack([_ridge(sums_F.sum(axis=0) - sums_F[each]) for each in range(FOLDS)])
    found_NP = np.empty((len(returns_N), len(PENALTIES) + 1))
    for at in range(0, len(returns_N), ROWS):
        rows = _bags(words, at, returns_N)[:, :-1]
        for each in np.unique(fold_N[at : at + ROWS]):
            here = np.flatnonzero(fold_N[at : at + ROWS] == each)
            found_NP[at + here] = rows[here] @ fits[each]
    best = int(((found_NP - returns_N[:, None]) ** 2).sum(axis=0).argmin())
    return found_NP[:, best]


def _bags(words: pa.ChunkedArray, at: int, returns_N: Floats) -> Floats:
    """Rows of the regression: a bag of words of length 1, a 1, and the return."""
    part = words.slice(at, ROWS)
    length_N = np.asarray(pa.compute.list_value_length(part))
    rows = np.zeros((len(part), WORDS + 2))
    rows[np.repeat(np.arange(len(part)), length_N), np.asarray(pa.compute.list_flatten(part))] = 1.0
    rows /= np.sqrt(np.maximum(rows.sum(axis=1, keepdims=True), 1.0))
    rows[:, -2:] = np.stack([np.ones(len(part)), returns_N[at : at + ROWS]], axis=1)
    return rows


def _ridge(sums: Floats) -> Floats:
    """``(WORDS + 1, P)`` the coefficients and the constant under each penalty, the last of which is ∞."""
    count = max(sums[-2, -2], 1.0)
    mean = sums[-2] / count
    centred = sums - count * np.outer(mean, mean)
    x, y = centred[:-2, :-2], centred[:-2, -1]
    found = [np.linalg.solve(x + penalty * np.eye(WORDS), y) for penalty in PENALTIES] + [np.zeros(WORDS)]
    return np.stack([np.append(each, mean[-1] - mean[:-2] @ each) for each in found], axis=1)


def advantages(returns_N: Floats, baseline_N: Floats) -> Floats:
    """``(N,)`` R less its baseline; 0 where rounding alone sets them apart."""
    advantage_N = returns_N - baseline_N
    return np.where(np.abs(advantage_N) <= FLAT * np.abs(returns_N).max(initial=0.0), 0.0, advantage_N)
