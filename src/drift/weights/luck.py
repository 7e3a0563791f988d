"""Chance in the environment: DRIFT's weights where the same reply can fare well or badly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_max, group_mean, group_min, index_groups

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class Paths:
    """What the policy could tell apart of each conversation, as keys: equal where the same was said.

    Attributes:
        reply_T: ``(T,)`` the replies of all turns, conversation after conversation.
        words_T: ``(T,)`` what the environment said to each.
        turns_N: ``(N,)`` turns L of each conversation; they add up to T.
    """

    reply_T: Keys
    words_T: Keys
    turns_N: Keys

    def first_turn(self) -> Paths:
        """The same as if each conversation had ended after its first reply."""
        first_N = np.cumsum(self.turns_N) - self.turns_N
        return Paths(self.reply_T[first_N], self.words_T[first_N], np.ones_like(self.turns_N))


@dataclass(frozen=True)
class _Level:
    """Turn t: which conversations have one, and where in the tree each is before and after its reply."""

    rows_M: Indices
    history_M: Indices
    reply_M: Indices


def averaged_weights(returns_N: ArrayLike, group_N: ArrayLike, paths: Paths, *, beta: float) -> tuple[Floats, Any]:
    """Weights toward the optimum of Eq. 3 over policies where the environment's answers are chance.

    ``e^{R/β}`` also tilts what the environment does: a reply that once was lucky gets the weight of its luck. A policy
    can't choose its luck, and the optimum it can reach is, with x the history and y the reply,::

        w(τ) = Π_t e^{(Q(x_t, y_t) − V(x_t))/β}      Q = mean over what followed of R, or of V(x_{t+1})
                                                     V = β log mean over replies of e^{Q/β}

    on the tree of a prompt's conversations, where histories and replies are the same if their keys are. A prompt's
    weights have mean 1. Where no reply was followed by two different things the product telescopes: these are then
    exactly ``drift_weights``, as in any environment without chance.

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        paths: what was said in each.
        beta: temperature β > 0, in the units of R.

    Returns:
        ``(N,)`` weights ≥ 0, and ``pooled_N``: whether a conversation has a reply whose worth is a mean of several
        ends or histories.
    """
    require(beta > 0, "weights.beta", beta, "a number > 0", "β divides the return; 0.1 is the published value.")
    returns = np.asarray(returns_N, float)
    index_N, _ = index_groups(group_N)
    levels = _tree(index_N, paths)
    worth_N, log_N = returns.copy(), np.zeros(len(returns))
    pooled_N = np.zeros(len(returns), bool)
    for level in reversed(levels):
        worth_M = worth_N[level.rows_M]
        replies, histories = int(level.reply_M.max()) + 1, int(level.history_M.max()) + 1
        q_M = group_mean(worth_M, level.reply_M, replies)[level.reply_M]
        # What ended is worth its return; what went on lies in one history or in several.
        pooled_N[level.rows_M] |= _differs(worth_M, level.reply_M, replies)
        best_H = group_max(q_M, level.history_M, histories)
        gap_M = (q_M - best_H[level.history_M]) / beta
        mean_H = np.log(group_mean(np.exp(gap_M), level.history_M, histories))
        log_N[level.rows_M] += gap_M - mean_H[level.history_M]
        worth_N[level.rows_M] = (best_H + beta * mean_H)[level.history_M]
    return np.exp(log_N), pooled_N


def _tree(index_N: Indices, paths: Paths) -> list[_Level]:
    """The levels of the trees of all prompts, the openings first."""
    start_N = np.cumsum(paths.turns_N) - paths.turns_N
    rows, history, levels, turn = np.arange(len(index_N)), index_N, [], 0
    while len(rows):
        at = start_N[rows] + turn
        reply = _joined(history, paths.reply_T[at])
        on = paths.turns_N[rows] > turn + 1
        levels.append(_Level(rows, history, reply))
        history = _joined(reply[on], paths.words_T[at[on]])
        rows, turn = rows[on], turn + 1
    return levels


def _joined(node_M: Indices, key_M: Keys) -> Indices:
    """``(M,)`` numbers 0… of the pairs of a node and what follows it."""
    _, next_M = np.unique(key_M, return_inverse=True)
    _, pair_M = np.unique(node_M * (len(next_M) + 1) + next_M, return_inverse=True)
    return np.asarray(pair_M, np.intp)


def _differs(values_M: Floats, index_M: Indices, groups: int) -> NDArray[np.bool_]:
    """``(M,)`` whether not all values of a group are the same."""
    differs_G = group_min(values_M, index_M, groups) != group_max(values_M, index_M, groups)
    return np.asarray(differs_G[index_M], bool)
