"""Training rows from recorded ids and the weights of replies: nothing is rendered or tokenized again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from drift.chat import extends
from drift.errors import DatasetError
from drift.types import Example, TokenNormalization, Trajectory, Turn

COUNTED = ("conversations", "rows", "skipped_unweighted", "skipped_zero_weight", "skipped_too_long")


def rows_of(trajectory: Trajectory, weights: Sequence[float], *, normalization: TokenNormalization) -> list[Example]:
    """The training rows of one conversation, whose replies have ``weights``.

    Turns whose prompt extends what came before share a row; a turn for which the chat template rewrote history starts a
    new one, because what the policy saw there is not what it saw before. Token layout of the row of two turns::

        token_ids = prompt_ids of turn 1 + its sampled ids + what was read before turn 2 + its sampled ids
        weight    = 0, …, 0              + v_1, …, v_1     + 0, …, 0                     + v_2, …, v_2

    where a token has ``v = w`` of its reply (sum, Eq. 15) or ``w / |y_t|`` (mean). What comes after the last reply with
    a weight is left out, and so are rows in which no reply has one.
    """
    last = max((at for at, weight in enumerate(weights) if weight), default=-1)
    rows: list[tuple[list[int], list[float], list[float]]] = []
    previous: Turn | None = None
    for turn, weight in zip(trajectory.turns[: last + 1], weights, strict=False):
        reply = turn.completion.token_ids
        if not reply:
            continue
        if previous is None or not extends(previous, turn):
            rows.append(([], [], []))
        ids, tokens, replies = rows[-1]
        prompt = turn.prompt_ids[len(ids) :]
        ids += [*prompt, *reply]
        share = float(weight) / len(reply) if normalization == "mean" else float(weight)
        tokens += [0.0] * len(prompt) + [share] * len(reply)
        replies.append(abs(float(weight)))
        previous = turn
    return [
        Example(
            trajectory_id=trajectory.id,
            group_id=trajectory.group_id,
            token_ids=tuple(ids),
            sampled=tuple(value != 0 for value in tokens),
            weight=tuple(tokens),
            mass=max(replies),
        )
        for ids, tokens, replies in rows
        if any(replies)
    ]


def build_examples(
    trajectories: Iterable[Trajectory],
    weights: Mapping[str, Sequence[float]],
    counts: Counter[str],
    *,
    normalization: TokenNormalization,
    max_length: int | None,
) -> Iterator[Example]:
    """All training rows, one conversation at a time.

    Args:
        trajectories: the data set.
        weights: those of a conversation's replies by its id; one that is not there has none.
        counts: ``conversations`` (those weighed, but for those that are too long), ``rows``, and what is left out:
            conversations ``skipped_unweighted`` and ``skipped_zero_weight`` (the latter among ``conversations``), and
            rows ``skipped_too_long``.
        normalization: token loss of a reply.
        max_length: longest row in tokens; ``None`` for any.

    Raises:
        DatasetError: a conversation has another number of replies than weights.
    """
    counts.update(dict.fromkeys(COUNTED, 0))
    for trajectory in trajectories:
        given = weights.get(trajectory.id)
        if given is None:
            counts["skipped_unweighted"] += 1
            continue
        if len(given) != len(trajectory.turns):
            raise DatasetError(
                f"conversation {trajectory.id!r} has {len(trajectory.turns)} replies and {len(given)} weights; "
                "expected one for each reply. Make the weights again from this data set."
            )
        rows = rows_of(trajectory, given, normalization=normalization)
        kept = [row for row in rows if max_length is None or len(row.token_ids) <= max_length]
        counts["skipped_zero_weight"] += not rows
        counts["skipped_too_long"] += len(rows) - len(kept)
        counts["conversations"] += bool(kept) or not rows
        counts["rows"] += len(kept)
        yield from kept
