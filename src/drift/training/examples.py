"""Training rows from recorded ids and the weights of replies: nothing is rendered or tokenized again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from drift.chat import extends
from drift.errors import DatasetError
from drift.registry import Link, data_of
from drift.training.objectives import NLL, advantage_regression
from drift.types import Example, TokenNormalization, Trajectory, Turn

COUNTED = ("conversations", "rows", "skipped_unweighted", "skipped_zero_weight", "skipped_too_long")


def rows_of(
    trajectory: Trajectory, weights: Sequence[float], *, normalization: TokenNormalization, loss: Link = NLL
) -> list[Example]:
    """The training rows of one conversation, whose replies have ``weights``.

    Turns whose prompt extends what came before share a row; a turn for which the chat template rewrote history starts a
    new one, because what the policy saw there is not what it saw before. Token layout of the row of two turns::

        token_ids = prompt_ids of turn 1 + its sampled ids + what was read before turn 2 + its sampled ids
        weight    = 0, …, 0              + v_1, …, v_1     + 0, …, 0                     + v_2, …, v_2

    where a token has ``v = w`` of its reply (sum, Eq. 15) or ``w / |y_t|`` (mean). What comes after the last reply with
    a weight is left out, and so are rows in which no reply has one. Any ``loss`` but ``nll`` gets to know where replies
    begin and, if it asks, with which probabilities they were sampled; raises ``DatasetError`` where nobody knows.
    """
    last = max((at for at, weight in enumerate(weights) if weight), default=-1)
    asks = "base_T" in data_of(loss.function)
    rows: list[tuple[list[int], list[float], list[float], list[float], list[int]]] = []
    previous: Turn | None = None
    for turn, weight in zip(trajectory.turns[: last + 1], weights, strict=False):
        reply = turn.completion.token_ids
        if not reply:
            continue
        if previous is None or not extends(previous, turn):
            rows.append(([], [], [], [], []))
        ids, tokens, replies, base, starts = rows[-1]
        prompt = turn.prompt_ids[len(ids) :]
        ids += [*prompt, *reply]
        starts.append(len(ids) - len(reply))
        if asks:
            base += [0.0] * len(prompt) + _base_logprobs(trajectory, turn, loss)
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
            logprobs=tuple(base),
            starts=tuple(starts) if loss.function is not NLL.function else (),
        )
        for ids, tokens, replies, base, starts in rows
        if any(replies)
    ]


def _base_logprobs(trajectory: Trajectory, turn: Turn, loss: Link) -> list[float]:
    if turn.completion.logprobs is None:
        raise DatasetError(
            f"conversation {trajectory.id!r} has no log-probabilities of its replies, with which the loss {loss.name} "
            "compares. Imported logs and some servers have none: use --loss nll or token_probability."
        )
    return list(turn.completion.logprobs)


def regression_row(row: Example, siblings: int = 1) -> Example:
    """A row as ``advantage_regression`` takes it: as if its conversation had been sampled ``w`` times as often.

    ``log w`` is added to its log-probabilities, all its replies count as one, its weight is 1 and so is its mass: a
    conversation of a small weight has as much to say as one of a large weight.

    Args:
        row: with one weight for all its replies that have any, not divided by their lengths.
        siblings: rows of its conversation.

    Raises:
        DatasetError: weights that differ or are negative, or several rows of one conversation.
    """
    weights = sorted({value for value in row.weight if value})
    if siblings > 1 or len(weights) > 1 or weights[0] < 0:
        got = f"{siblings} rows, as its template rewrites history" if siblings > 1 else f"weights {weights}"
        raise DatasetError(
            f"conversation {row.trajectory_id!r} has {got}; the loss advantage_regression takes one row of one weight "
            "above 0. Use weights of the scheme drift, spread by the turns terminal or all."
        )
    places = [at for at, value in enumerate(row.weight) if value and at]
    share = 1 / max(1, len(places))
    trained = [value != 0 for value in row.weight]
    return replace(
        row,
        weight=tuple(share * value for value in trained),
        mass=1.0,
        logprobs=tuple(base + share * math.log(weights[0]) for base in row.logprobs),
        starts=row.starts[:1],
    )


def build_examples(
    trajectories: Iterable[Trajectory],
    weights: Mapping[str, Sequence[float]],
    counts: Counter[str],
    *,
    normalization: TokenNormalization,
    max_length: int | None,
    loss: Link = NLL,
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
        loss: which they are made for.

    Raises:
        DatasetError: a conversation has another number of replies than weights, or lacks what the loss needs.
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
        rows = rows_of(trajectory, given, normalization=normalization, loss=loss)
        if loss.function is advantage_regression:
            rows = [regression_row(row, len(rows)) for row in rows]
        kept = [row for row in rows if max_length is None or len(row.token_ids) <= max_length]
        counts["skipped_zero_weight"] += not rows
        counts["skipped_too_long"] += len(rows) - len(kept)
        counts["conversations"] += bool(kept) or not rows
        counts["rows"] += len(kept)
        yield from kept
