"""Weightings that only choose: 1 for what is imitated, 0 for what is not."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import Floats, group_max, index_groups


def sft_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """Plain supervised fine-tuning on every trajectory: ``w = 1`` (SFT-5turn of the DRIFT paper)."""
    return np.ones(len(np.asarray(returns_N)))


def rft_weights(returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike) -> Floats:
    """Rejection sampling: ``w = 1[success]`` (RFT, arXiv 2304.06767 and 2308.01825). Blind to how long it took.

    Where the verifier errs at known rates, ``success_N`` holds chances (``drift.weights.noise``), and w is that chance.
    """
    return np.asarray(success_N, float)


def star_weights(
    returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike, turns_N: ArrayLike, first_wrong_N: ArrayLike
) -> Floats:
    """Corrections alone: ``w = 1[L = 2, y_1 wrong, y_2 right]`` (STaR-2turn, App. D.1 of the DRIFT paper).

    Where no conversation has two turns, or the first reply was a question rather than an answer, nothing is kept.

    Args:
        returns_N: ``(N,)`` not looked at.
        group_N: ``(N,)`` not looked at.
        success_N: ``(N,)`` whether the last reply is right, or the chance that it is.
        turns_N: ``(N,)`` number of turns L.
        first_wrong_N: ``(N,)`` whether an answer was asked for at turn 1 and the reply was not right.
    """
    second_N = np.asarray(first_wrong_N, bool) & (np.asarray(turns_N) == 2)
    return np.where(second_N, np.asarray(success_N, float), 0.0)


def star_gate_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The best trajectory of each prompt alone: ``w = 1[k = argmax_j R_j]`` (STaR-GATE, arXiv 2403.19154).

    Of those that tie for the best it is the first in the order of the arrays, which for a data set is that of tasks
    and samples: one row for each prompt, as published. A prompt that was never solved keeps its best failure unless
    ``no_success`` says ``drop``.
    """
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    best = np.flatnonzero(returns == group_max(returns, index_N, groups)[index_N])
    _, first = np.unique(index_N[best], return_index=True)
    weights = np.zeros(len(returns))
    weights[best[first]] = 1.0
    return weights
