import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.evaluation.intervals import ratio_value
from drift.evaluation.metrics import metrics, runs_of
from drift.types import Completion, Step, Trajectory, Turn

MAX_TURNS = 4


def conversation(task, sample, turns, *, error=None):
    """A trajectory from its outcome: ``turns`` holds (answer, success, tokens) of each reply, and False if ungraded."""
    made = []
    for answer, success, tokens, *rest in turns:
        step = Step(
            messages=(),
            reward=float(success) - 0.25,
            done=success,
            success=success,
            answer=answer,
            graded=all(rest),
        )
        reply = Completion(text="", token_ids=(5,) * tokens, logprobs=None, finish_reason="stop")
        made.append(Turn(prompt_ids=(1, 2), completion=reply, step=step))
    solved = bool(turns) and turns[-1][1]
    return Trajectory(
        id=f"{task}#{sample}",
        task_id=task,
        group_id=task,
        sample=sample,
        policy="p",
        seed=0,
        messages=(),
        turns=tuple(made),
        stop_reason="error" if error else "success" if solved else "turns",
        error=error,
    )


wrong = st.tuples(st.sampled_from(["1", "2", "3", None]), st.just(False), st.integers(1, 9))
asking = st.tuples(st.none(), st.just(False), st.integers(1, 9), st.just(False))
right = st.tuples(st.just("42"), st.just(True), st.integers(1, 9))
# Stop on success: wrong replies, and a right one to end with or the turns run out.
outcomes = st.one_of(
    st.lists(wrong, min_size=1, max_size=MAX_TURNS),
    st.tuples(st.lists(wrong | asking, max_size=MAX_TURNS - 1), right).map(lambda pair: [*pair[0], pair[1]]),
    st.lists(asking, min_size=1, max_size=MAX_TURNS),
)
data = st.lists(
    st.tuples(st.sampled_from(["t-b", "t-a", "t-c"]), outcomes, st.sampled_from([None, None, None, "it broke"])),
    max_size=14,
).map(lambda rows: [conversation(task, sample, turns, error=error) for sample, (task, turns, error) in enumerate(rows)])


def naive(trajectories, prompt=None):
    """Every metric as (numerator, denominator), one conversation and one reply at a time."""
    totals: dict[str, list[float]] = {}

    def count(name, numerator, denominator):
        held = totals.setdefault(name, [0.0, 0.0])
        held[0] += numerator
        held[1] += denominator

    asked_by = min(
        (t for held in trajectories if held.error is None for t, turn in enumerate(held.turns, 1) if turn.step.graded),
        default=MAX_TURNS,
    )
    for trajectory in trajectories:
        if trajectory.error is not None or (prompt is not None and trajectory.task_id != prompt):
            continue
        replies = [(turn.step.answer, turn.step.success) for turn in trajectory.turns]
        for k in range(1, MAX_TURNS + 1):
            asked = k >= min(asked_by, MAX_TURNS)
            count(f"multi@{k}", any(success for _, success in replies[:k]), asked)
        for t in range(1, MAX_TURNS + 1):
            graded = len(replies) >= t and trajectory.turns[t - 1].step.graded
            got_there = graded and not any(success for _, success in replies[: t - 1])
            count(f"accuracy@{t}", got_there and replies[t - 1][1], got_there)
        for t in range(2, MAX_TURNS + 1):
            wrong_at_first = trajectory.turns[0].step.graded and not replies[0][1]
            count(f"corrected@{t}", wrong_at_first and any(success for _, success in replies[:t]), wrong_at_first)
        solved = any(success for _, success in replies)
        turn_of_success = [success for _, success in replies].index(True) + 1 if solved else 0
        count("turns_to_success", turn_of_success, solved)
        count("turns", len(replies), 1)
        graded = [turn.step.answer for turn in trajectory.turns if turn.step.graded]
        long = len(graded) >= 2
        count("distinct_answers", len(set(graded) - {None}) / len(graded) if long else 0, long)
        count("format_failures", graded.count(None), len(graded))
        count("reward", sum(turn.step.reward for turn in trajectory.turns), 1)
        count("reply_tokens", sum(len(turn.completion.token_ids) for turn in trajectory.turns), len(replies))
    return totals


@settings(max_examples=50, derandomize=True, deadline=None)
@given(data)
def test_every_metric_matches_a_loop_over_conversations_per_prompt_and_in_all(trajectories):
    runs = runs_of(trajectories)
    found = metrics(runs, MAX_TURNS)
    kept = [t for t in trajectories if t.error is None]
    assert runs.prompts == tuple(sorted({t.task_id for t in kept}))
    assert runs.excluded == len(trajectories) - len(kept)
    expected = naive(trajectories)
    if kept:
        assert set(found) == set(expected)
    for name, (numerator, denominator) in expected.items():
        value = ratio_value(found[name])
        if denominator == 0:
            assert value is None
        else:
            assert value == pytest.approx(numerator / denominator, rel=1e-12, abs=1e-15)
    for position, prompt in enumerate(runs.prompts):
        for name, (numerator, denominator) in naive(trajectories, prompt).items():
            assert found[name].numerator_P[position] == pytest.approx(numerator, rel=1e-12, abs=1e-15)
            assert found[name].denominator_P[position] == denominator


def test_metrics_of_four_conversations_match_a_hand_count():
    trajectories = [
        conversation("a", 0, [("7", True, 4)]),
        conversation("a", 1, [("5", False, 2), ("5", False, 2), ("7", True, 6)]),
        conversation("b", 0, [("5", False, 1), (None, False, 3), ("6", False, 1), ("5", False, 1)]),
        conversation("b", 1, [("5", False, 8), ("7", True, 2)]),
    ]
    found = {name: ratio_value(ratio) for name, ratio in metrics(runs_of(trajectories), 4).items()}
    assert found == pytest.approx(
        {
            "multi@1": 1 / 4,
            "multi@2": 2 / 4,
            "multi@3": 3 / 4,
            "multi@4": 3 / 4,
            "accuracy@1": 1 / 4,
            "accuracy@2": 1 / 3,
            "accuracy@3": 1 / 2,
            "accuracy@4": 0 / 1,
            "corrected@2": 1 / 3,
            "corrected@3": 2 / 3,
            "corrected@4": 2 / 3,
            "turns_to_success": (1 + 3 + 2) / 3,
            "turns": 10 / 4,
            "distinct_answers": (2 / 3 + 2 / 4 + 2 / 2) / 3,
            "format_failures": 1 / 10,
            "reply_tokens": (4 + 10 + 6 + 10) / 10,
            # Each success is worth 1, and each turn costs 0.25 here.
            "reward": (3 - 0.25 * 10) / 4,
        },
        rel=1e-12,
    )


def test_metrics_without_anything_to_divide_by_are_none_and_not_zero():
    # All right at once: nobody reached turn 2, nobody was wrong at first, nobody had two turns.
    solved = {
        name: ratio_value(ratio)
        for name, ratio in metrics(runs_of([conversation("a", 0, [("7", True, 1)])]), 3).items()
    }
    missing = {"accuracy@2", "accuracy@3", "corrected@2", "corrected@3", "distinct_answers"}
    assert {name for name, value in solved.items() if value is None} == missing
    # Never right: no turn of success to average.
    unsolved = {
        name: ratio_value(ratio)
        for name, ratio in metrics(runs_of([conversation("a", 0, [("1", False, 1)] * 3)]), 3).items()
    }
    assert {name for name, value in unsolved.items() if value is None} == {"turns_to_success"}
    assert unsolved["multi@3"] == 0.0


def test_failed_conversations_are_left_out_and_counted():
    good = conversation("a", 0, [("7", True, 3)])
    # One failed after a success, one before any reply; their prompt has no other conversation.
    failed = [conversation("b", 0, [("7", True, 9)], error="disk"), conversation("b", 1, [], error="net")]
    runs = runs_of([failed[0], good, failed[1]])
    assert (runs.prompts, runs.excluded) == (("a",), 2)
    alone = metrics(runs_of([good]), 3)
    for name, ratio in metrics(runs, 3).items():
        assert ratio.numerator_P.tolist() == alone[name].numerator_P.tolist()
        assert ratio.denominator_P.tolist() == alone[name].denominator_P.tolist()


def test_arrays_are_read_off_conversations_in_their_order():
    runs = runs_of(
        [
            conversation("b", 0, [("1", False, 2), ("1", False, 3), (None, False, 5)]),
            conversation("a", 0, [(None, False, 1), ("7", True, 1)]),
        ]
    )
    assert runs.prompts == ("a", "b")
    assert runs.prompt_N.tolist() == [1, 0]
    assert runs.solved_at_N.tolist() == [0, 2]
    assert runs.turns_N.tolist() == [3, 2]
    assert runs.distinct_N.tolist() == [1, 1]
    assert runs.failures_N.tolist() == [1, 1]
    assert runs.tokens_N.tolist() == [10, 2]


def test_an_environment_that_goes_on_after_success_counts_the_first_one():
    turns = [("1", False, 1), ("7", True, 1), ("2", False, 1), ("7", True, 1)]
    found = {name: ratio_value(ratio) for name, ratio in metrics(runs_of([conversation("a", 0, turns)]), 4).items()}
    assert found["turns_to_success"] == 2
    assert (found["accuracy@1"], found["accuracy@2"]) == (0.0, 1.0)
    # Solved at turn 2, so not "still unsolved" at turns 3 and 4.
    assert (found["accuracy@3"], found["accuracy@4"]) == (None, None)


def test_a_group_of_guesses_without_repeats_has_distinct_share_one():
    turns = [(str(n), False, 1) for n in range(4)]
    ratio = metrics(runs_of([conversation("a", 0, turns)]), 4)["distinct_answers"]
    assert ratio_value(ratio) == 1.0
    assert np.all(ratio.denominator_P == 1)


def test_turns_that_ask_for_no_answer_are_neither_answers_nor_failures():
    ask = (None, False, 5, False)
    trajectories = [
        conversation("a", 0, [ask, ask, ("7", True, 1)]),
        conversation("a", 1, [ask, ask, (None, False, 1)]),
        conversation("b", 0, [ask, ask, ("5", False, 1)]),
    ]
    found = {name: ratio_value(ratio) for name, ratio in metrics(runs_of(trajectories), 3).items()}
    nothing = {"multi@1", "multi@2", "accuracy@1", "accuracy@2", "corrected@2", "corrected@3", "distinct_answers"}
    assert {name for name, value in found.items() if value is None} == nothing
    assert (found["multi@3"], found["accuracy@3"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found["format_failures"] == pytest.approx(1 / 3)
    assert (found["turns"], found["reply_tokens"]) == (3, pytest.approx(11 / 3))


def test_prompts_left_out_are_counted():
    made = [conversation("a", 0, [("7", True, 1)]), conversation("b", 0, [("7", True, 1)])]
    runs = runs_of(made, {"b"})
    assert (runs.prompts, runs.excluded) == (("b",), 1)
