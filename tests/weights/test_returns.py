import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.dataset.outcomes import Outcomes
from drift.weights.returns import trajectory_return

PUBLISHED = {"outcome": "success", "gamma": 0.9, "repetition": 0.5, "format_failure": 0.0}
PLAIN = {"outcome": "reward", "gamma": 1.0, "repetition": 0.0, "format_failure": 0.0}


def outcomes_of(success, turns, distinct, failures, graded=None, rewards=None):
    """Outcomes that went so; every turn asked for an answer unless ``graded`` says less."""
    count = len(success)
    return Outcomes(
        ids=[str(at) for at in range(count)],
        groups=["p"] * count,
        sample_N=np.arange(count, dtype=np.int32),
        success_N=np.array(success, bool),
        known_N=np.ones(count, bool),
        reward_N=np.array(rewards if rewards is not None else [math.nan] * count, float),
        turns_N=np.array(turns, np.int32),
        graded_N=np.array(turns if graded is None else graded, np.int32),
        distinct_N=np.array(distinct, np.int32),
        failures_N=np.array(failures, np.int32),
        first_success_N=np.zeros(count, bool),
        first_known_N=np.ones(count, bool),
        first_reward_N=np.zeros(count),
        first_graded_N=np.ones(count, bool),
        first_read_N=np.ones(count, bool),
        rejected_T=np.zeros(sum(turns), bool),
    )


# One conversation: (success, turns L, distinct answers E ≤ readable replies, format failures = L − readable).
conversations = st.integers(1, 8).flatmap(
    lambda turns: st.integers(0, turns).flatmap(
        lambda readable: st.tuples(
            st.booleans(), st.just(turns), st.integers(min(readable, 1), readable), st.just(turns - readable)
        )
    )
)


@pytest.mark.parametrize(
    ("success", "turns", "distinct", "expected"),
    [
        (1, 1, 1, 1.0),  # right at once: γ⁰, nothing repeated
        (1, 3, 3, 0.81),  # 0.9²
        (1, 3, 2, 0.81 - 0.5 / 3),  # one of three answers was a repeat
        (0, 5, 5, 0.0),  # five different wrong answers cost nothing
        (0, 5, 4, -0.1),
        (0, 4, 2, -0.25),
        (0, 5, 1, -0.4),  # the same wrong answer five times: −0.5 · (1 − 1/5)
        (0, 2, 0, -0.5),  # nothing readable at all costs the whole λ
    ],
)
def test_return_of_equation_12_matches_hand_worked_cases(success, turns, distinct, expected):
    found_N = trajectory_return(outcomes_of([success], [turns], [distinct], [0]), **PUBLISHED)
    assert found_N[0] == pytest.approx(expected, abs=1e-15)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.lists(conversations, min_size=1, max_size=10),
    st.floats(0.05, 1),
    st.floats(0, 3),
    st.floats(0, 2),
)
def test_return_matches_a_loop_over_conversations(rows, gamma, repetition, format_failure):
    success_N, turns_N, distinct_N, failures_N = (list(column) for column in zip(*rows, strict=True))
    found_N = trajectory_return(
        outcomes_of(success_N, turns_N, distinct_N, failures_N),
        outcome="success",
        gamma=gamma,
        repetition=repetition,
        format_failure=format_failure,
    )
    assert len(found_N) == len(rows)
    for found, (success, turns, distinct, failures) in zip(found_N, rows, strict=True):
        discount = 1.0
        for _ in range(turns - 1):
            discount *= gamma
        expected = discount if success else 0.0
        expected -= repetition * (turns - distinct) / turns
        expected -= sum(format_failure for _ in range(failures))
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_discount_scales_any_reward_of_a_conversation():
    # Refit's adaptive length multiplies a judge's reward by γⁿ: 0.8 · 0.9² and −2 · 0.9.
    outcomes = outcomes_of([0, 1], [3, 2], [0, 0], [0, 0], rewards=[0.8, -2.0])
    assert trajectory_return(outcomes, **{**PLAIN, "gamma": 0.9}) == pytest.approx([0.648, -1.8], rel=1e-14)


def test_discount_one_leaves_rewards_as_they_are():
    outcomes = outcomes_of([1, 0, 0], [1, 4, 9], [1, 1, 1], [0, 2, 0], rewards=[0.3, -7.0, 1.0])
    assert trajectory_return(outcomes, **PLAIN).tolist() == [0.3, -7.0, 1.0]


def test_earlier_success_is_worth_strictly_more():
    turns = [1, 2, 3, 4, 5]
    found_N = trajectory_return(outcomes_of([1] * 5, turns, turns, [0] * 5), **PUBLISHED)
    assert found_N.tolist() == sorted(found_N, reverse=True)
    assert len(set(found_N.tolist())) == 5


@settings(max_examples=30, derandomize=True, deadline=None)
@given(conversations, st.floats(0, 10))
def test_repetition_penalty_lies_between_zero_and_its_coefficient(row, coefficient):
    _, turns, distinct, _ = row
    outcomes = outcomes_of([0], [turns], [distinct], [0])
    penalty = -trajectory_return(outcomes, **{**PUBLISHED, "repetition": coefficient})[0]
    assert 0 <= penalty <= coefficient
    if distinct == turns:
        assert penalty == 0


def test_repetition_penalty_divides_by_all_turns_and_not_by_readable_ones():
    # Four replies, two readable and both the same: the paper's 1 − 1/4, not the published code's 1 − 1/2.
    assert trajectory_return(outcomes_of([0], [4], [1], [2]), **{**PUBLISHED, "repetition": 1.0}) == [-0.75]


def test_each_unreadable_reply_is_charged():
    outcomes = outcomes_of([0] * 3, [3] * 3, [1] * 3, [0, 1, 3], rewards=[0.0] * 3)
    assert trajectory_return(outcomes, **{**PLAIN, "format_failure": 0.1}) == pytest.approx(
        [0.0, -0.1, -0.3], rel=1e-14
    )


def test_returns_do_not_change_the_arrays_they_are_given():
    outcomes = outcomes_of([1, 0], [2, 5], [2, 1], [0, 3], rewards=[0.5, -1.0])
    arrays = {name: value for name, value in vars(outcomes).items() if isinstance(value, np.ndarray)}
    copies = {name: array.tobytes() for name, array in arrays.items()}
    for outcome in ("success", "reward"):
        trajectory_return(outcomes, outcome=outcome, gamma=0.9, repetition=0.5, format_failure=0.1)
    assert {name: array.tobytes() for name, array in arrays.items()} == copies


def test_the_reward_can_be_what_counts():
    outcomes = outcomes_of([0, 1, 0], [3, 1, 2], [2, 1, 0], [0, 0, 2], rewards=[2.0, -0.5, 0.0])
    found_N = trajectory_return(outcomes, outcome="reward", gamma=0.5, repetition=0.6, format_failure=0.1)
    # 2 · 0.5² less a third of 0.6; −0.5; nothing, less all of 0.6 and twice 0.1.
    assert found_N == pytest.approx([0.5 - 0.2, -0.5, -0.6 - 0.2], rel=1e-14)


@pytest.mark.parametrize(
    ("success", "turns", "graded", "distinct", "failures", "expected"),
    [
        (1, 3, 1, 1, 0, 0.81),  # two questions and a right answer: nothing was repeated, the discount counts all turns
        (0, 3, 1, 1, 0, 0.0),
        (0, 3, 1, 0, 1, -0.5 - 0.1),  # the only answer asked for can't be read
        (0, 4, 2, 1, 0, -0.5 * (1 - 1 / 2)),  # asked for twice, the same said twice
        (0, 2, 0, 0, 0, 0.0),  # over before an answer was asked for
    ],
)
def test_turns_that_ask_for_no_answer_cost_nothing(success, turns, graded, distinct, failures, expected):
    outcomes = outcomes_of([success], [turns], [distinct], [failures], [graded])
    found_N = trajectory_return(outcomes, **{**PUBLISHED, "format_failure": 0.1})
    assert found_N[0] == pytest.approx(expected, abs=1e-15)
