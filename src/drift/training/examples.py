"""Training rows from recorded ids: nothing is rendered or tokenized again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from drift.chat import extends
from drift.types import Example, TokenNormalization, Trajectory, Turn, TurnScope

COUNTED = ("rows", "skipped_negligible", "skipped_unweighted", "skipped_zero_weight", "skipped_too_long")


def turn_weights(turn: Turn, weight: float, normalization: TokenNormalization) -> list[float]:
    """What each token of a reply is multiplied by: ``w`` (sum, Eq. 15) or ``w / |y_t|`` (mean)."""
    count = len(turn.completion.token_ids)
    return [weight / count if normalization == "mean" else weight] * count


def is_rejected(turn: Turn) -> bool:
    """Whether an answer was asked for and the reply was no success and earned nothing: a mistake, not a step."""
    return turn.step.graded and not turn.step.success and turn.step.reward <= 0


def count_rejected(trajectory: Trajectory) -> int:
    """How many replies ``credited`` weighs as rejected: mistakes that another reply followed."""
    return sum(bool(turn.completion.token_ids) and is_rejected(turn) for turn in trajectory.turns[:-1])


def rows_of(
    trajectory: Trajectory, weight: float, *, turns: TurnScope, normalization: TokenNormalization, rejected: float = 0.0
) -> list[Example]:
    """The training rows of one conversation.

    ``terminal`` gives one row, in which only the last reply is trained::

        token_ids = prompt_ids of the last turn + its sampled ids
        weight    = 0, …, 0                     + w, …, w

    ``all`` trains every reply. Turns whose prompt extends what came before share a row; a turn for which the chat
    template rewrote history starts a new one, because what the policy saw there is not what it saw before.

    ``first`` is the first reply's row alone. ``credited`` is ``all``, except that a reply that was rejected and
    followed by another weighs ``rejected · |w|`` instead of w: a mistake on the way to a success is not imitated, and
    with ``rejected`` < 0 pushed away whatever the sign of w. Rows in which nothing is trained are left out.
    """
    rows: list[tuple[list[int], list[bool], list[float]]] = []
    previous: Turn | None = None
    chosen = {"terminal": trajectory.turns[-1:], "first": trajectory.turns[:1]}.get(turns, trajectory.turns)
    for turn in chosen:
        if not turn.completion.token_ids:
            continue
        mistaken = turns == "credited" and turn is not trajectory.turns[-1] and is_rejected(turn)
        if previous is None or not extends(previous, turn):
            rows.append(([], [], []))
        ids, sampled, weights = rows[-1]
        new_prompt = turn.prompt_ids[len(ids) :]
        reply = turn.completion.token_ids
        ids += [*new_prompt, *reply]
        sampled += [False] * len(new_prompt) + [True] * len(reply)
        weights += [0.0] * len(new_prompt)
        weights += turn_weights(turn, rejected * abs(weight) if mistaken else weight, normalization)
        previous = turn
    return [
        Example(
            trajectory_id=trajectory.id,
            group_id=trajectory.group_id,
            token_ids=tuple(ids),
            sampled=tuple(sampled),
            weight=tuple(weights),
        )
        for ids, sampled, weights in rows
        if turns != "credited" or any(weights)
    ]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which conversations become rows, and how.

    Attributes:
        weights: weight by trajectory id; a trajectory without one failed and has none.
        negligible: ids of those whose weight is too small to matter; they count as rows and are not computed.
        turns: which replies to train.
        rejected: by trajectory id, weight of a rejected reply for each unit of its conversation's, with ``turns``
            credited; 0 where it says nothing.
        normalization: token loss of a reply.
        max_length: longest row in tokens; ``None`` for any.
    """

    weights: Mapping[str, float]
    negligible: Collection[str] = frozenset()
    turns: TurnScope
    normalization: TokenNormalization
    max_length: int | None
    rejected: Mapping[str, float] = field(default_factory=dict)


def build_examples(trajectories: Iterable[Trajectory], choice: Choice, counts: Counter[str]) -> Iterator[Example]:
    """All training rows, one conversation at a time.

    A negligible one gives a row without tokens, so that steps hold the rows they would have held.

    Args:
        trajectories: the data set.
        choice: which of them, and how.
        counts: ``rows``, ``skipped_negligible`` (among them), ``skipped_unweighted`` (failed),
            ``skipped_zero_weight`` and ``skipped_too_long`` are added up here.
    """
    counts.update(dict.fromkeys(COUNTED, 0))
    for trajectory in trajectories:
        weight = choice.weights.get(trajectory.id)
        if weight is None:
            counts["skipped_unweighted"] += 1
            continue
        if weight == 0:
            counts["skipped_zero_weight"] += 1
            continue
        rejected = choice.rejected.get(trajectory.id, 0.0)
        made = rows_of(trajectory, weight, turns=choice.turns, normalization=choice.normalization, rejected=rejected)
        for row in made:
            if choice.max_length is not None and len(row.token_ids) > choice.max_length:
                counts["skipped_too_long"] += 1
                continue
            counts["rows"] += 1
            if trajectory.id in choice.negligible:
                counts["skipped_negligible"] += 1
                yield replace(row, token_ids=(), sampled=(), weight=())
            else:
                yield row
