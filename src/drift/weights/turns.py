"""How a conversation's weight is spread over its replies: ``w(τ) → w(τ, t)``, one pure function each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from drift.errors import require
from drift.registry import Registry
from drift.weights.groups import Bools, Floats, Indices, Ints, group_mean, others_mean, tree_levels

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """What schemes, turns and steps see: N conversations by task and sample, T replies, conversation by conversation.

    Attributes:
        group_N, returns_N, turns_N: prompt of each, 0…G−1, its R, and its number of turns L.
        success_N: whether each succeeded; under a scheme of first turns, whether its first reply did.
        first_wrong_N: whether an answer was asked for at turn 1 and the reply was not right.
        stopped_N: the success that decided whether adaptive sampling went on.
        rejected_T: which replies were mistakes that another followed: asked for an answer, no success, worth nothing.
        reward_N, sample_N: sum of the environment's rewards; which of the prompt's samples each is, from 0.
        reply_T, feedback_T, opening_N: keys, equal where the same was said, of replies, answers to them, and openings.
        loss_weight_T: what a log says that each reply counts for.
        baseline_N: what R is measured against; ``None`` where the others of the prompt are, in the scheme.
        beta, partitioned: β of the scheme, 0 and ∞ where they were found; whether it divides by the prompt's Ẑ.
        first: with adaptive sampling, how many samples of a prompt came first; 0 without.
    """

    group_N: Indices
    returns_N: Floats
    success_N: Bools
    turns_N: Ints
    first_wrong_N: Bools
    stopped_N: Bools
    rejected_T: Bools | None = None
    reward_N: Floats | None = None
    sample_N: Ints | None = None
    reply_T: Ints | None = None
    feedback_T: Ints | None = None
    opening_N: Ints | None = None
    loss_weight_T: Floats | None = None
    baseline_N: Floats | None = None
    beta: Any = None
    partitioned: bool = False
    first: int = 0

    @cached_property
    def advantage_N(self) -> Floats:
        """``(N,)`` what schemes are given: R less its baseline, where there is one."""
        if self.baseline_N is None:
            return self.returns_N
        gap_N = self.returns_N - self.baseline_N
        # Rounding alone sets equal returns apart.
        return np.where(np.abs(gap_N) <= 1e-12 * np.abs(self.returns_N).max(), 0.0, gap_N)

    @cached_property
    def pool_N(self) -> Indices:
        """``(N,)`` whom each is compared with, as a number: its prompt, or all where there is a baseline."""
        return self.group_N if self.baseline_N is None else np.zeros_like(self.group_N)

    @property
    def start_N(self) -> Indices:
        """``(N,)`` where each conversation's replies begin among all T."""
        return np.cumsum(self.turns_N, dtype=np.intp) - self.turns_N

    def mass(self, weights_T: Floats) -> Floats:
        """``(N,)`` sum over a conversation's replies of ``|w|``."""
        return self.total(weights_T if weights_T.min(initial=0.0) >= 0 else np.abs(weights_T))

    def total(self, values_T: Floats) -> Floats:
        """``(N,)`` sum over a conversation's replies."""
        return np.add.reduceat(values_T, self.start_N)

    def by_reply(self, values_N: NDArray[Scalar]) -> NDArray[Scalar]:
        """``(T,)`` each conversation's value, for each of its replies."""
        return np.repeat(values_N, self.turns_N)


def terminal(weights_N: Floats, data: Conversations) -> Floats:
    """The last reply has the conversation's weight, the others have none (DRIFT §4.4)."""
    weights_T = np.zeros(int(data.turns_N.sum()))
    weights_T[data.start_N + data.turns_N - 1] = weights_N
    return weights_T


def first(weights_N: Floats, data: Conversations) -> Floats:
    """The first reply has the conversation's weight, the others have none (BOLT)."""
    weights_T = np.zeros(int(data.turns_N.sum()))
    weights_T[data.start_N] = weights_N
    return weights_T


def every(weights_N: Floats, data: Conversations) -> Floats:
    """Every reply has the conversation's weight (Refit, Swift); called ``all``."""
    return data.by_reply(weights_N)


def credited(weights_N: Floats, data: Conversations, *, rejected: float = 0.0) -> Floats:
    """Every reply has the conversation's weight, mistakes that another followed ``rejected · |w|``, which is ≤ 0."""
    require(-1 <= rejected <= 0, "weights.turns.credited", rejected, "a number from -1 to 0")
    assert data.rejected_T is not None, "told to whoever asks"
    weights_T = data.by_reply(weights_N)
    return np.where(data.rejected_T, rejected * np.abs(weights_T), weights_T)


def own(weights_T: Floats, data: Conversations, *, discount: float = 0.0) -> Floats:
    """Every reply was weighed as a conversation, by its own reward; with a ``discount`` by ``Σ_{s≥t} γ^{s−t} r_s``."""
    require(0 <= discount <= 1, "weights.turns.own", discount, "a number from 0 to 1")
    return weights_T


def advantage(weights_N: Floats, data: Conversations) -> Floats:
    """What a reply made of its conversation: value after it less value before it (RTMC 2604.11037, GAGPO 2605.13217).

    With w the weight that the scheme gives to a conversation, x_t the history before its reply y_t::

        A(i, t) = Q̂(x_t, y_t) − V̂₋ᵢ(x_t)      Q̂ = mean of w over the prompt's conversations that went through x_t, y_t
                                               V̂₋ᵢ = mean of w over the others that went through x_t

    Where no other one shared x_t, V̂ is that of the last place that some other one shared. Replies are the same where
    answers are, where one was asked for, else where words are. ``E[A ∇ log π]`` is the policy gradient of the scheme's
    w, whenever the policy stops, with an error of 1/√n for n conversations that went through (docs/method.md).
    """
    assert data.reply_T is not None and data.feedback_T is not None, "told to whoever asks"
    advantages_T, before_N = np.zeros(int(data.turns_N.sum())), np.array(weights_N, float)
    levels = tree_levels(data.group_N, data.turns_N, data.reply_T, data.feedback_T)
    for turn, (rows_M, history_M, reply_M) in enumerate(levels):
        worth_M = weights_N[rows_M]
        before_M = others_mean(worth_M, history_M, before_N[rows_M])
        advantages_T[data.start_N[rows_M] + turn] = group_mean(worth_M, reply_M)[reply_M] - before_M
        before_N[rows_M] = others_mean(worth_M, reply_M, before_M)
    return advantages_T


TURNS = {"terminal": terminal, "all": every, "first": first, "credited": credited, "own": own, "advantage": advantage}
REGISTRY = Registry("spread over turns", "drift.turns", TURNS)
