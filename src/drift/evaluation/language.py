"""Replies as language: whether a policy repeats or cuts itself, counted without any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.types import Trajectory

Counts = NDArray[np.int64]
GRAM = 4


@dataclass(frozen=True, kw_only=True)
class Language:
    """Counts of N conversations, each ``(N,)``. n-grams are of token ids and never span two replies.

    ``repeated_replies``
        share of the replies after the first that are, word for word, an earlier one of the conversation.
    ``repeated_4grams``
        ``1 − distinct / all`` 4-grams of a conversation's replies (Welleck et al., arXiv 1908.04319).
    ``looped_4grams``
        the same within each reply: what loops, and does not merely insist.
    ``cut_off``
        share of the replies that ran out of new tokens.

    A policy that returned no ids has no 4-grams.

    Attributes:
        replies_N: replies.
        repeats_N: replies that are an earlier one.
        cut_N: replies that were cut off.
        grams_N: 4-grams.
        distinct_N: distinct ones of the conversation.
        distinct_by_reply_N: distinct ones of each reply, added up.
    """

    replies_N: Counts
    repeats_N: Counts
    cut_N: Counts
    grams_N: Counts
    distinct_N: Counts
    distinct_by_reply_N: Counts

    def ratios(self) -> dict[str, tuple[Counts, Counts]]:
        """Numerator and denominator of each metric, by name."""
        return {
            "repeated_replies": (self.repeats_N, self.replies_N - 1),
            "repeated_4grams": (self.grams_N - self.distinct_N, self.grams_N),
            "looped_4grams": (self.grams_N - self.distinct_by_reply_N, self.grams_N),
            "cut_off": (self.cut_N, self.replies_N),
        }


def language_of(trajectories: Sequence[Trajectory]) -> Language:
    """Count; each conversation has at least one reply. Linear in the number of tokens."""
    rows = np.array([_counts(trajectory) for trajectory in trajectories], np.int64).reshape(-1, 6)
    replies, repeats, cut, grams, distinct, by_reply = rows.T
    return Language(
        replies_N=replies,
        repeats_N=repeats,
        cut_N=cut,
        grams_N=grams,
        distinct_N=distinct,
        distinct_by_reply_N=by_reply,
    )


def _counts(trajectory: Trajectory) -> tuple[int, int, int, int, int, int]:
    texts = [turn.completion.text for turn in trajectory.turns]
    ids = [turn.completion.token_ids for turn in trajectory.turns]
    by_reply = [set(zip(*(reply[at:] for at in range(GRAM)), strict=False)) for reply in ids]
    return (
        len(texts),
        len(texts) - len(set(texts)),
        sum(turn.completion.finish_reason == "length" for turn in trajectory.turns),
        sum(max(0, len(reply) - GRAM + 1) for reply in ids),
        len(set().union(*by_reply)),
        sum(map(len, by_reply)),
    )
