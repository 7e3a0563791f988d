from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from drift.dataset.outcomes import is_rejected
from drift.errors import DatasetError
from drift.training.examples import build_examples, rows_of
from drift.types import Completion, Step, Trajectory, Turn

Make = Callable[..., Trajectory]
Parts = tuple[tuple[int, ...], tuple[int, ...]]
# Two prompts and replies, the second after the first and what was said to it.
TWO: tuple[Parts, ...] = (((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (6, 7, 8, 9)))


def conversation(*turns: Parts, make: Make) -> Trajectory:
    """A trajectory with these prompts and replies."""
    step = Step(messages=(), reward=0.0, done=True, success=False, answer=None)
    made = tuple(
        Turn(
            prompt_ids=prompt,
            completion=Completion(text="", token_ids=reply, logprobs=None, finish_reason="stop"),
            step=step,
        )
        for prompt, reply in turns
    )
    return replace(make(), turns=made)


def test_a_weight_of_the_last_reply_trains_it_given_the_whole_history(make_trajectory: Make) -> None:
    trajectory = conversation(*TWO, make=make_trajectory)
    (row,) = rows_of(trajectory, [0.0, 0.5], normalization="sum")
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert row.sampled == (False,) * 5 + (True,) * 4
    assert row.weight == (0, 0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5)
    assert (row.trajectory_id, row.group_id, row.mass) == (trajectory.id, trajectory.group_id, 0.5)


def test_weights_of_all_replies_are_one_row_where_prompts_extend(make_trajectory: Make) -> None:
    trajectory = conversation(*TWO, make=make_trajectory)
    (row,) = rows_of(trajectory, [2.0, 2.0], normalization="mean")
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert row.sampled == (False, False, True, True, False, True, True, True, True)
    # The mean is over each reply's own tokens, and the mass is of the replies and not of their tokens.
    assert row.weight == (0, 0, 1.0, 1.0, 0, 0.5, 0.5, 0.5, 0.5) and row.mass == 2.0
    (row,) = rows_of(trajectory, [2.0, 2.0], normalization="sum")
    assert row.weight == (0, 0, 2.0, 2.0, 0, 2.0, 2.0, 2.0, 2.0) and row.mass == 2.0


def test_what_comes_after_the_last_reply_with_a_weight_is_left_out(make_trajectory: Make) -> None:
    trajectory = conversation(*TWO, ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (11,)), make=make_trajectory)
    (row,) = rows_of(trajectory, [0.5, 0.0, 0.0], normalization="sum")
    assert row.token_ids == (1, 2, 3, 4) and row.weight == (0, 0, 0.5, 0.5)
    (row,) = rows_of(trajectory, [0.0, -0.5, 0.0], normalization="sum")
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9) and row.weight == (0,) * 5 + (-0.5,) * 4


def test_each_reply_has_its_own_weight_and_the_largest_is_the_mass(make_trajectory: Make) -> None:
    trajectory = conversation(*TWO, ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (11,)), make=make_trajectory)
    (row,) = rows_of(trajectory, [0.25, -3.0, 1.0], normalization="sum")
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert row.weight == (0, 0, 0.25, 0.25, 0, -3, -3, -3, -3, 0, 1.0) and row.mass == 3.0
    # A weight of 0 between others: its reply is read and not trained.
    (row,) = rows_of(trajectory, [0.5, 0.0, 1.0], normalization="mean")
    assert row.weight == (0, 0, 0.25, 0.25, 0, 0, 0, 0, 0, 0, 1.0) and row.mass == 1.0
    assert row.sampled == tuple(value != 0 for value in row.weight)


def test_a_rewritten_history_starts_a_row_with_what_the_policy_saw(make_trajectory: Make) -> None:
    trajectory = conversation(((1, 2), (3, 4)), ((1, 2, 4, 5), (6,)), ((1, 2, 4, 5, 6, 7), (8,)), make=make_trajectory)
    first, second = rows_of(trajectory, [1.0, 0.5, -2.0], normalization="sum")
    assert first.token_ids == (1, 2, 3, 4) and first.weight == (0, 0, 1, 1) and first.mass == 1.0
    assert second.token_ids == (1, 2, 4, 5, 6, 7, 8) and second.weight == (0, 0, 0, 0, 0.5, 0, -2)
    assert second.mass == 2.0
    # Rows in which nothing is trained are none.
    (row,) = rows_of(trajectory, [0.0, 0.5, 0.0], normalization="sum")
    assert row.token_ids == (1, 2, 4, 5, 6) and row.weight == (0, 0, 0, 0, 0.5)
    (row,) = rows_of(trajectory, [0.5, 0.0, 0.0], normalization="sum")
    assert row.token_ids == (1, 2, 3, 4)
    assert rows_of(trajectory, [0.0, 0.0, 0.0], normalization="sum") == []


def test_a_reply_without_tokens_is_passed_over(make_trajectory: Make) -> None:
    trajectory = conversation(((1, 2), (3,)), ((1, 2, 3, 4), ()), ((1, 2, 3, 4, 5), (6,)), make=make_trajectory)
    (row,) = rows_of(trajectory, [1.0, 7.0, 2.0], normalization="mean")
    assert row.token_ids == (1, 2, 3, 4, 5, 6) and row.weight == (0, 0, 1, 0, 0, 2) and row.mass == 2.0
    assert rows_of(trajectory, [0.0, 7.0, 0.0], normalization="mean") == []


@pytest.mark.parametrize("normalization", ["sum", "mean"])
@pytest.mark.parametrize("weights", [(0.5, 0.0, -2.0), (1.0, 1.0, 1.0), (0.0, 0.3, 0.0), (-1.0, 0.0, 0.0)])
def test_a_loop_over_replies_gives_the_same_tokens(
    make_trajectory: Make, weights: Sequence[float], normalization: str
) -> None:
    trajectory = make_trajectory("t", 0, ("1", "22", "333"))
    (row,) = rows_of(trajectory, weights, normalization=normalization)  # type: ignore[arg-type]
    expected: dict[int, tuple[int, float]] = {}
    for turn, weight in zip(trajectory.turns, weights, strict=True):
        reply = turn.completion.token_ids
        for place, token in enumerate(reply):
            if weight:
                expected[len(turn.prompt_ids) + place] = (token, weight / (1 if normalization == "sum" else len(reply)))
    found = {at: (row.token_ids[at], value) for at, value in enumerate(row.weight) if value}
    assert found == expected
    last = max(at for at, weight in enumerate(weights) if weight)
    turn = trajectory.turns[last]
    assert row.token_ids == turn.prompt_ids + turn.completion.token_ids


def test_mistakes_are_replies_that_were_graded_and_earned_nothing() -> None:
    base = Step(messages=(), reward=0.0, done=True, success=False, answer=None)
    assert is_rejected(base)
    # A clarifying question, a part of the reward, a success.
    for other in (replace(base, graded=False), replace(base, reward=0.25), replace(base, success=True)):
        assert not is_rejected(other)
    assert is_rejected(replace(base, reward=-1.0))


def test_rows_and_what_is_left_out_are_counted_by_reason(make_trajectory: Make) -> None:
    made = [make_trajectory("t", k, ("1",)) for k in range(4)]
    long, rewritten = make_trajectory("t", 4, ("1" * 50,)), make_trajectory("t", 5, ("1", "2"))
    short = replace(rewritten.turns[1], prompt_ids=(7, 8))
    rewritten = replace(rewritten, turns=(rewritten.turns[0], short))
    weights = {"t#0": [1.0], "t#1": [0.0], "t#2": [-1.0], "t#4": [1.0], "t#5": [0.5, 2.0], "elsewhere": [9.0]}
    counts: Counter[str] = Counter()
    rows = list(build_examples([*made, long, rewritten], weights, counts, normalization="sum", max_length=30))
    assert [(row.trajectory_id, row.mass) for row in rows] == [("t#0", 1.0), ("t#2", 1.0), ("t#5", 0.5), ("t#5", 2.0)]
    # The loss is a mean over conversations with a weight, 0 included; one that is too long can't be computed.
    assert counts == {
        "conversations": 4, "rows": 4, "skipped_unweighted": 1, "skipped_zero_weight": 1, "skipped_too_long": 1
    }  # fmt: skip
    # Of a conversation of two rows one may be too long.
    counts = Counter()
    rows = list(build_examples([rewritten], weights, counts, normalization="sum", max_length=20))
    assert [row.token_ids[:2] for row in rows] == [(7, 8)]
    assert (counts["conversations"], counts["rows"], counts["skipped_too_long"]) == (1, 1, 1)


@pytest.mark.parametrize("given", [[], [1.0], [1.0, 2.0, 3.0]])
def test_another_number_of_weights_than_replies_is_refused_by_name(make_trajectory: Make, given: list[float]) -> None:
    trajectory = make_trajectory("t", 3, ("1", "2"))
    examples = build_examples([trajectory], {"t#3": given}, Counter(), normalization="sum", max_length=None)
    with pytest.raises(DatasetError, match=rf"conversation 't#3' has 2 replies and {len(given)} weights; expected one"):
        list(examples)
