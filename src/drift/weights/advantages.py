"""Credit by turn: what each reply was worth, from the tree of a prompt's conversations."""

from __future__ import annotations

import numpy as np

from drift.weights.groups import Floats, Indices, group_mean, group_sum
from drift.weights.luck import tree_levels
from drift.weights.turns import Conversations


def advantage(weights_N: Floats, data: Conversations) -> Floats:
    """What a reply made of its conversation: value after it less value before it (RTMC 2604.11037, GAGPO 2605.13217).

    With w the weight that the scheme gives to a conversation, x_t the history before its reply y_t::

        A(i, t) = Q̂(x_t, y_t) − V̂₋ᵢ(x_t)      Q̂ = mean of w over the prompt's conversations that went through x_t, y_t
                                               V̂₋ᵢ = mean of w over the others that went through x_t

    Without bias for ``Q − V`` of the scheme's w under the policy that sampled, also where that policy decides when to
    stop, since only conversations with the same history are compared: returns normalised per turn index compare those
    that happen to last as long. What i itself brought is left out of V̂, so ``E[A ∇ log π]`` is the policy gradient. Its
    error falls as 1/√n with the n conversations that went through.

    Where no other one shared x_t, V̂ is that of the last place that some other one shared, which leaves the policy
    gradient as it is but counts what led here as y_t's. So in free text, where nothing but the prompt is shared, every
    reply gets the weight less the mean of the others'. Histories and replies are the same where their keys are: by
    answers where an answer was asked for, else by words. The only conversation of a prompt gets 0.

    Args:
        weights_N: ``(N,)`` of a scheme whose w is worth something: ``rft`` for success, ``refit`` for the return.
        data: with ``reply_T`` and ``feedback_T``.

    Returns:
        ``(T,)`` weights of both signs.
    """
    assert data.reply_T is not None and data.feedback_T is not None, "told to whoever asks"
    advantages_T, before_N = np.zeros(int(data.turns_N.sum())), np.array(weights_N, float)
    levels = tree_levels(data.group_N, data.turns_N, data.reply_T, data.feedback_T)
    for turn, (rows_M, history_M, reply_M) in enumerate(levels):
        worth_M = weights_N[rows_M]
        before_M = _mean_of_others(worth_M, history_M, before_N[rows_M])
        after_M = group_mean(worth_M, reply_M, int(reply_M.max()) + 1)[reply_M]
        advantages_T[data.start_N[rows_M] + turn] = after_M - before_M
        before_N[rows_M] = _mean_of_others(worth_M, reply_M, before_M)
    return advantages_T


def _mean_of_others(values_M: Floats, node_M: Indices, alone_M: Floats) -> Floats:
    """``(M,)`` mean over the others at the same node; ``alone_M`` where there are none."""
    nodes = int(node_M.max()) + 1
    others_M = np.bincount(node_M, minlength=nodes)[node_M] - 1
    rest_M = group_sum(values_M, node_M, nodes)[node_M] - values_M
    return np.divide(rest_M, others_M, out=alone_M.copy(), where=others_M > 0)
