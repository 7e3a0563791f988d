"""How a conversation's weight is spread over its replies: ``w(τ) → w(τ, t)``, one pure function each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from drift.errors import require
from drift.registry import Registry
from drift.weights.groups import Bools, Floats, Indices

Ints = NDArray[np.signedinteger[Any]]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """What schemes, turns and steps can look at: N conversations in the order of tasks and samples, T replies in all.

    Attributes:
        group_N: ``(N,)`` prompt of each, 0…G−1.
        returns_N: ``(N,)`` R.
        baseline_N: ``(N,)`` what R is measured against; ``None`` where the others of the prompt are, in the scheme.
        success_N: ``(N,)`` whether each succeeded; under a scheme of first turns, whether its first reply did.
        turns_N: ``(N,)`` number of turns L.
        first_wrong_N: ``(N,)`` whether an answer was asked for at turn 1 and the reply was not right.
        stopped_N: ``(N,)`` the success that decided whether adaptive sampling went on.
        rejected_T: ``(T,)`` which replies, conversation after conversation, were mistakes that another followed: asked
            for an answer, no success, worth nothing; not there for terminal, first and all, which don't ask.
        reward_N: ``(N,)`` sum of the environment's rewards; there where a scheme asks for it, as the next three are.
        sample_N: ``(N,)`` which of the prompt's samples each is, from 0; there under adaptive sampling too.
        reply_T: ``(T,)`` keys of replies, equal where the same was said.
        feedback_T: ``(T,)`` keys of what the environment said to each.
        beta: the β of the scheme, a number or ``(N,)``; ``None`` where it has none.
        partitioned: the scheme divides by the prompt's Ẑ.
        opening_N: ``(N,)`` keys of what opens each, the same for near-duplicates; there where prompts are held out.
        loss_weight_T: ``(T,)`` what a log says that each reply counts for.
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
    def groups(self) -> int:
        """G."""
        return int(self.group_N.max(initial=-1)) + 1

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

    @cached_property
    def pools(self) -> int:
        """How many such sets there are."""
        return self.groups if self.baseline_N is None else 1

    @property
    def first_N(self) -> Bools:
        """``(N,)`` which conversations came first in adaptive sampling, whatever the outcomes were."""
        assert self.sample_N is not None, "known under adaptive sampling"
        came_first_N: Bools = self.sample_N < self.first
        return came_first_N

    @property
    def start_N(self) -> Indices:
        """``(N,)`` where each conversation's replies begin among all T."""
        return np.cumsum(self.turns_N, dtype=np.intp) - self.turns_N

    def mass(self, weights_T: Floats) -> Floats:
        """``(N,)`` sum over a conversation's replies of ``|w|``."""
        # Without a copy of what there may be very much of, where nothing is negative.
        return self.total(weights_T if weights_T.min(initial=0.0) >= 0 else np.abs(weights_T))

    def total(self, values_T: Floats) -> Floats:
        """``(N,)`` sum over a conversation's replies."""
        sums_N: Floats = np.add.reduceat(values_T, self.start_N)
        return sums_N

    def by_reply(self, values_N: NDArray[Scalar]) -> NDArray[Scalar]:
        """``(T,)`` each conversation's value, for each of its replies."""
        return np.repeat(values_N, self.turns_N)


def terminal(weights_N: Floats, data: Conversations) -> Floats:
    """The last reply has the conversation's weight, the others have none (DRIFT §4.4)."""
    weights_T = np.zeros(int(data.turns_N.sum()))
    weights_T[np.cumsum(data.turns_N, dtype=np.intp) - 1] = weights_N
    return weights_T


def first(weights_N: Floats, data: Conversations) -> Floats:
    """The first reply has the conversation's weight, the others have none (BOLT)."""
    weights_T = np.zeros(int(data.turns_N.sum()))
    weights_T[data.start_N] = weights_N
    return weights_T


def every(weights_N: Floats, data: Conversations) -> Floats:
    """Every reply has the conversation's weight (Refit, Swift); called ``all``."""
    return np.repeat(weights_N, data.turns_N)


def credited(weights_N: Floats, data: Conversations, *, rejected: float = 0.0) -> Floats:
    """Every reply has the conversation's weight, but those that were rejected and followed by another.

    These have ``rejected · |w|``, from −1 to 0: a mistake on the way to a success is not imitated, and below 0 pushed
    away whatever the sign of w.
    """
    require(-1 <= rejected <= 0, "weights.turns.credited", rejected, "a number from -1 to 0")
    assert data.rejected_T is not None, "told to whoever asks"
    weights_T = every(weights_N, data)
    return np.where(data.rejected_T, rejected * np.abs(weights_T), weights_T)


def own(weights_T: Floats, data: Conversations, *, discount: float = 0.0) -> Floats:
    """Every reply has its own weight: it was weighed alone, as if it were a conversation, by its own reward.

    With ``discount`` γ by its return to go, ``Σ_{s≥t} γ^{s−t} r_s``: its own reward and those that followed.
    """
    require(0 <= discount <= 1, "weights.turns.own", discount, "a number from 0 to 1")
    return weights_T


TURNS = {"terminal": terminal, "all": every, "first": first, "credited": credited, "own": own}
REGISTRY = Registry("spread over turns", "drift.turns", {**TURNS, "advantage": "drift.weights.advantages:advantage"})
