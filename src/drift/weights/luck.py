"""A scheme for chance in the environment: DRIFT's weights where the same reply can fare well or badly."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_max, group_mean, index_groups

Keys = NDArray[np.int64]


def averaged_weights(
    returns_N: ArrayLike,
    group_N: ArrayLike,
    *,
    turns_N: ArrayLike,
    reply_T: ArrayLike,
    feedback_T: ArrayLike,
    beta: float = 0.1,
) -> Floats:
    """DRIFT's weights with luck averaged: toward the optimum of Eq. 3 where the environment's answers are chance.

    ``e^{R/β}`` also tilts what the environment does: a reply that once was lucky gets the weight of its luck. A policy
    can't choose its luck, and the optimum it can reach is, with x the history and y the reply,::

        w(τ) = Π_t e^{(Q(x_t, y_t) − V(x_t))/β}      Q = mean over what followed of R, or of V(x_{t+1})
                                                     V = β log mean over replies of e^{Q/β}

    on the tree of a prompt's conversations, where histories and replies are the same if their keys are. A prompt's
    weights have mean 1. Where no reply was followed by two different things the product telescopes: these are then
    exactly ``drift_weights``, as in any environment without chance. It does nothing for free text, in which no two
    replies are the same.

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        turns_N: ``(N,)`` turns L of each conversation; they add up to T.
        reply_T: ``(T,)`` keys of the replies, conversation after conversation.
        feedback_T: ``(T,)`` keys of what the environment said to each.
        beta: temperature β > 0, in the units of the returns.
    """
    require(beta > 0, "weights.beta", beta, "a number > 0", "β divides the return; 0.1 is the published value.")
    returns = np.asarray(returns_N, float)
    index_N, _ = index_groups(group_N)
    levels = tree_levels(index_N, np.asarray(turns_N), np.asarray(reply_T), np.asarray(feedback_T))
    worth_N, log_N = returns.copy(), np.zeros(len(returns))
    for rows_M, history_M, reply_M in reversed(levels):
        replies, histories = int(reply_M.max()) + 1, int(history_M.max()) + 1
        # What ended is worth its return; what went on lies in one history or in several.
        q_M = group_mean(worth_N[rows_M], reply_M, replies)[reply_M]
        best_H = group_max(q_M, history_M, histories)
        gap_M = (q_M - best_H[history_M]) / beta
        mean_H = np.log(group_mean(np.exp(gap_M), history_M, histories))
        log_N[rows_M] += gap_M - mean_H[history_M]
        worth_N[rows_M] = (best_H + beta * mean_H)[history_M]
    return np.exp(log_N)


def tree_levels(
    index_N: Indices, turns_N: Keys, reply_T: Keys, feedback_T: Keys
) -> list[tuple[Indices, Indices, Indices]]:
    """Turn by turn: which conversations have one, and where in the trees each is before and after its reply."""
    start_N = np.cumsum(turns_N, dtype=np.intp) - turns_N
    rows, history, levels, turn = np.arange(len(index_N)), index_N, [], 0
    while len(rows):
        at = start_N[rows] + turn
        reply = _joined(history, reply_T[at])
        on = turns_N[rows] > turn + 1
        levels.append((rows, history, reply))
        history = _joined(reply[on], feedback_T[at[on]])
        rows, turn = rows[on], turn + 1
    return levels


def _joined(node_M: Indices, key_M: Keys) -> Indices:
    """``(M,)`` numbers 0… of the pairs of a node and what follows it."""
    _, next_M = np.unique(key_M, return_inverse=True)
    _, pair_M = np.unique(node_M * (len(next_M) + 1) + next_M, return_inverse=True)
    return np.asarray(pair_M, np.intp)
