"""Conversations cut for preference trainers: what came before a reply, and what from there on was said and sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from drift.chat import extends
from drift.dataset.outcomes import outcomes
from drift.errors import DatasetError
from drift.exports.config import ExportConfig, ReturnConfig
from drift.types import Message, Trajectory, Turn
from drift.weights.returns import trajectory_return


@dataclass(frozen=True, kw_only=True)
class Part:
    """What follows a history: one reply, or several with what the environment said between them.

    Attributes:
        messages: the part as chat messages; the last is the assistant's.
        token_ids: its ids as they were sampled and read, from the end of the history's ids to the end of the last
            reply; ``None`` where the policy returned no token ids, or a chat template that rewrites history lets no
            single row have the part.
        mask: 1 for those that the policy sampled; the others are the environment's words, and no loss may touch them.
    """

    messages: tuple[Message, ...]
    token_ids: list[int] | None
    mask: list[int] | None


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One trajectory with its return, where in ``messages`` each of its replies stands, and what each weighs."""

    trajectory: Trajectory
    value: float
    reply_at: tuple[int, ...]
    weights: Sequence[float] = ()

    @property
    def last(self) -> int:
        """Number of the last reply, from 0."""
        return len(self.reply_at) - 1

    def history(self, turn: int) -> tuple[Message, ...]:
        """The messages before reply ``turn``, from 0."""
        return self.trajectory.messages[: self.reply_at[turn]]

    def history_ids(self, turn: int) -> tuple[int, ...]:
        """The ids the policy saw before reply ``turn``; empty where it returned none."""
        return self.trajectory.turns[turn].prompt_ids

    def part(self, first: int, last: int) -> Part:
        """From reply ``first`` to reply ``last``, both included."""
        messages = self.trajectory.messages[self.reply_at[first] : self.reply_at[last] + 1]
        row = None if self.trajectory.text_only else one_row(self.trajectory.turns[first : last + 1])
        return Part(messages=messages, token_ids=row and row[0], mask=row and row[1])


def one_row(turns: Sequence[Turn]) -> tuple[list[int], list[int], list[float]] | None:
    """Consecutive turns as one row of L ids, from the first reply to the last.

    Returns:
        ``(L,)`` ids, a mask that is 1 where the policy sampled, and log-probabilities (0 where there is none); ``None``
        where a chat template rewrites history, so that no one row is what the policy saw.
    """
    if not all(extends(before, after) for before, after in pairwise(turns)):
        return None
    ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    for turn in turns:
        read = turn.prompt_ids[len(turns[0].prompt_ids) + len(ids) :]
        said = turn.completion.token_ids
        ids += [*read, *said]
        mask += [0] * len(read) + [1] * len(said)
        logprobs += [0.0] * len(read) + list(turn.completion.logprobs or [0.0] * len(said))
    return ids, mask, logprobs


def conversations(
    trajectories: Sequence[Trajectory], config: ExportConfig, weights: Mapping[str, Sequence[float]] | None = None
) -> list[Conversation]:
    """The conversations that did not fail, with their returns (NaN where the outcome is not known) and weights.

    Raises:
        DatasetError: messages and turns of a trajectory don't fit one another.
    """
    return [
        Conversation(trajectory=t, value=value, reply_at=_reply_places(t), weights=(weights or {}).get(t.id, ()))
        for t, value in zip(trajectories, shaped_returns(trajectories, config), strict=True)
        if value is not None
    ]


def shaped_returns(trajectories: Sequence[Trajectory], config: ReturnConfig) -> list[float | None]:
    """The return of each conversation, as DRIFT weighs it (Eq. 12); ``None`` where the environment failed.

    NaN where the outcome is not known.
    """
    returns_N = trajectory_return(
        outcomes(trajectories),
        outcome=config.outcome or "success",
        gamma=config.gamma,
        repetition=config.repetition,
        repetition_over=config.repetition_over,
        format_failure=config.format_failure,
    )
    values = iter(returns_N.tolist())
    return [next(values) if t.error is None and t.turns else None for t in trajectories]


def _reply_places(trajectory: Trajectory) -> tuple[int, ...]:
    """Index of each turn's reply in the messages, counted from the end: an opening may hold replies of its own."""
    places: list[int] = []
    at = len(trajectory.messages)
    for turn in reversed(trajectory.turns):
        at -= 1 + len(turn.step.messages)
        places.append(at)
        if at < 1 or trajectory.messages[at]["content"] != turn.completion.text:
            raise DatasetError(
                f"trajectory {trajectory.id!r}: its messages don't have the replies of its turns where they should be "
                f"(message {at} of {len(trajectory.messages)}). Make the data set again, or leave this trajectory out."
            )
    return tuple(reversed(places))


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain JSON values."""
    return [dict(message) for message in messages]
