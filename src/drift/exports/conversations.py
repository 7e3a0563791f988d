"""Conversations cut for preference trainers: what came before a reply, and what from there on was said and sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drift.chat import extends
from drift.dataset.outcomes import outcomes
from drift.errors import DatasetError
from drift.exports.config import ExportConfig
from drift.types import Message, Trajectory
from drift.weights.returns import trajectory_return


@dataclass(frozen=True, kw_only=True)
class Part:
    """What follows a history: one reply, or several with what the environment said between them.

    Attributes:
        messages: the part as chat messages; the last is the assistant's.
        token_ids: its ids as they were sampled and read, from the end of the history's ids to the end of the last
            reply; ``None`` where the policy told none, or where a chat template that rewrites history lets no single
            row hold the part.
        sampled: which of them the policy sampled; the others are the environment's words, and no loss may touch them.
    """

    messages: tuple[Message, ...]
    token_ids: tuple[int, ...] | None
    sampled: tuple[bool, ...] | None


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One trajectory with its return, and where in ``messages`` each of its replies stands."""

    trajectory: Trajectory
    value: float
    reply_at: tuple[int, ...]

    def history(self, turn: int) -> tuple[Message, ...]:
        """The messages before reply ``turn``, from 0."""
        return self.trajectory.messages[: self.reply_at[turn]]

    def history_ids(self, turn: int) -> tuple[int, ...]:
        """The ids the policy saw before reply ``turn``; empty where it told none."""
        return self.trajectory.turns[turn].prompt_ids

    def part(self, first: int, last: int) -> Part:
        """From reply ``first`` to reply ``last``, both included."""
        messages = self.trajectory.messages[self.reply_at[first] : self.reply_at[last] + 1]
        turns = self.trajectory.turns[first : last + 1]
        whole = all(extends(before, after) for before, after in pairwise(turns))
        if self.trajectory.text_only or not whole:
            return Part(messages=messages, token_ids=None, sampled=None)
        start = len(turns[0].prompt_ids)
        ids: list[int] = []
        sampled: list[bool] = []
        for turn in turns:
            read = turn.prompt_ids[start + len(ids) :]
            ids += [*read, *turn.completion.token_ids]
            sampled += [False] * len(read) + [True] * len(turn.completion.token_ids)
        return Part(messages=messages, token_ids=tuple(ids), sampled=tuple(sampled))


def conversations(trajectories: Sequence[Trajectory], config: ExportConfig) -> list[Conversation]:
    """The conversations that did not fail, with their returns (DRIFT Eq. 12).

    Raises:
        DatasetError: messages and turns of a trajectory don't fit one another.
    """
    kept = [t for t in trajectories if t.error is None and t.turns]
    if not kept:
        return []
    returns_N = trajectory_return(
        outcomes(kept),
        outcome=config.outcome,
        gamma=config.gamma,
        repetition=config.repetition,
        format_failure=config.format_failure,
    )
    return [
        Conversation(trajectory=t, value=value, reply_at=_reply_places(t))
        for t, value in zip(kept, returns_N.tolist(), strict=True)
    ]


def _reply_places(trajectory: Trajectory) -> tuple[int, ...]:
    """Index of each turn's reply in the messages, counted from the end: an opening may hold replies of its own."""
    places: list[int] = []
    at = len(trajectory.messages)
    for turn in reversed(trajectory.turns):
        at -= 1 + len(turn.step.messages)
        places.append(at)
        if at < 1 or trajectory.messages[at]["content"] != turn.completion.text:
            raise DatasetError(
                f"trajectory {trajectory.id!r}: its messages don't hold the replies of its turns where they should be "
                f"(message {at} of {len(trajectory.messages)}). Make the data set again, or leave this trajectory out."
            )
    return tuple(reversed(places))


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain JSON values."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]
