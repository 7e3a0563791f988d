from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from drift.training.examples import Choice, build_examples, rows_of
from drift.types import Completion, Step, Trajectory, Turn

Make = Callable[..., Trajectory]


def conversation(*turns: tuple[tuple[int, ...], tuple[int, ...]], make: Make) -> Trajectory:
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


def test_terminal_trains_the_last_reply_given_the_whole_history(make_trajectory: Make) -> None:
    trajectory = conversation(((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (6, 7)), make=make_trajectory)
    (row,) = rows_of(trajectory, 0.5, turns="terminal", normalization="sum")
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7)
    assert row.sampled == (False, False, False, False, False, True, True)
    assert row.weight == (0, 0, 0, 0, 0, 0.5, 0.5)


def test_all_trains_every_reply_in_one_row_where_prompts_extend(make_trajectory: Make) -> None:
    trajectory = conversation(((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (6, 7, 8, 9)), make=make_trajectory)
    (row,) = rows_of(trajectory, 2.0, turns="all", normalization="mean")
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert row.sampled == (False, False, True, True, False, True, True, True, True)
    # The mean is over each reply's own tokens.
    assert row.weight == (0, 0, 1.0, 1.0, 0, 0.5, 0.5, 0.5, 0.5)


def test_a_rewritten_history_starts_a_row_with_what_the_policy_saw(make_trajectory: Make) -> None:
    trajectory = conversation(((1, 2), (3, 4)), ((1, 2, 4, 5), (6,)), ((1, 2, 4, 5, 6, 7), (8,)), make=make_trajectory)
    first, second = rows_of(trajectory, 1.0, turns="all", normalization="sum")
    assert first.token_ids == (1, 2, 3, 4) and first.weight == (0, 0, 1, 1)
    assert second.token_ids == (1, 2, 4, 5, 6, 7, 8) and second.weight == (0, 0, 0, 0, 1, 0, 1)


def graded(*turns: tuple[tuple[int, ...], tuple[int, ...], bool, bool, float], make: Make) -> Trajectory:
    """A trajectory with these prompts and replies, whether each was graded and a success, and its reward."""
    base = conversation(*((prompt, reply) for prompt, reply, *_ in turns), make=make)
    steps = [replace(base.turns[0].step, graded=g, success=s, reward=r) for *_, g, s, r in turns]
    return replace(base, turns=tuple(replace(t, step=s) for t, s in zip(base.turns, steps, strict=True)))


def test_first_trains_the_first_reply_alone(make_trajectory: Make) -> None:
    trajectory = conversation(((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (6, 7)), make=make_trajectory)
    (row,) = rows_of(trajectory, 0.5, turns="first", normalization="sum")
    assert row.token_ids == (1, 2, 3, 4) and row.weight == (0, 0, 0.5, 0.5)


def test_credited_gives_rejected_replies_nothing_or_less_and_all_others_the_weight(make_trajectory: Make) -> None:
    # A question, a mistake, a step that earns a part of the reward, and the last reply, a failure.
    turns = (
        ((1,), (2,), False, False, 0.0),
        ((1, 2, 3), (4, 5), True, False, 0.0),
        ((1, 2, 3, 4, 5, 6), (7,), True, False, 0.25),
        ((1, 2, 3, 4, 5, 6, 7, 8), (9, 9), True, False, 0.0),
    )
    trajectory = graded(*turns, make=make_trajectory)
    for weight, rejected, mistake in ((2.0, 0.0, 0.0), (2.0, -0.25, -0.5), (-2.0, -0.25, -0.5)):
        (row,) = rows_of(trajectory, weight, turns="credited", normalization="sum", rejected=rejected)
        assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8, 9, 9)
        assert row.weight == (0, weight, 0, mistake, mistake, 0, weight, 0, weight, weight)
    (row,) = rows_of(trajectory, 2.0, turns="credited", normalization="mean", rejected=-0.25)
    assert row.weight == (0, 2.0, 0, -0.25, -0.25, 0, 2.0, 0, 1.0, 1.0)


def test_credited_without_a_factor_is_terminal_where_every_earlier_reply_was_rejected(make_trajectory: Make) -> None:
    trajectory = make_trajectory("t", 0, ("1", "2", "3"), True)
    (credited,) = rows_of(trajectory, 1.5, turns="credited", normalization="sum")
    (terminal,) = rows_of(trajectory, 1.5, turns="terminal", normalization="sum")
    assert (credited.token_ids, credited.weight) == (terminal.token_ids, terminal.weight)
    # A row of nothing but mistakes, which a rewriting template makes, is none.
    first, last = ((1, 2), (3, 4), True, False, 0.0), ((1, 9), (6,), True, True, 1.0)
    rewritten = graded(first, last, make=make_trajectory)
    (row,) = rows_of(rewritten, 1.0, turns="credited", normalization="sum")
    assert row.token_ids == (1, 9, 6)
    assert len(rows_of(rewritten, 1.0, turns="credited", normalization="sum", rejected=-0.1)) == 2


def test_sampled_ids_are_trained_ids(make_trajectory: Make) -> None:
    trajectory = make_trajectory("t", 0, ("1", "2", "3"))
    (row,) = rows_of(trajectory, 1.0, turns="all", normalization="sum")
    trained = tuple(token for token, sampled in zip(row.token_ids, row.sampled, strict=True) if sampled)
    assert trained == sum((turn.completion.token_ids for turn in trajectory.turns), ())
    assert all((weight != 0) == sampled for weight, sampled in zip(row.weight, row.sampled, strict=True))


def test_rows_that_are_left_out_are_counted_by_reason(make_trajectory: Make) -> None:
    made = [make_trajectory("t", k, ("1",)) for k in range(4)]
    long = make_trajectory("t", 4, ("1" * 50,))
    weights = {"t#0": 1.0, "t#1": 0.0, "t#2": -1.0, "t#4": 1.0}
    choice = Choice(weights=weights, negligible={"t#2"}, turns="terminal", normalization="sum", max_length=30)
    counts: Counter[str] = Counter()
    rows = list(build_examples([*made, long], choice, counts))
    assert [row.trajectory_id for row in rows] == ["t#0", "t#2"]
    # A negligible row is counted and has nothing to compute.
    assert rows[1].token_ids == () and rows[0].weight[-1] == 1.0
    assert counts == {
        "rows": 2, "skipped_negligible": 1, "skipped_unweighted": 1, "skipped_zero_weight": 1, "skipped_too_long": 1
    }  # fmt: skip
