import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.evaluation.estimates import estimate_all
from drift.evaluation.guessing import floors, resampling
from drift.evaluation.intervals import ratio_value
from drift.evaluation.metrics import metrics, runs_of

from .test_metrics import MAX_TURNS, conversation, outcomes


def floor_values(runs, max_turns=MAX_TURNS):
    return {name: ratio_value(one) for name, one in floors(runs, metrics(runs, max_turns), max_turns).items()}


def guessed(options, turns, rng):
    """A conversation of somebody who tries the options in a random order, each once."""
    order = rng.sample(range(options), options)
    replies = []
    for answer in order[:turns]:
        replies.append((str(answer), answer == 0, 1))
        if answer == 0:
            break
    return replies


def test_a_guesser_who_never_repeats_itself_is_at_the_floor():
    rng = random.Random(0)
    options = {f"t{n}": 2 + n % 5 for n in range(10)}
    made = [
        conversation(task, sample, guessed(count, MAX_TURNS, rng))
        for task, count in options.items()
        for sample in range(400)
    ]
    runs = runs_of(made, options=options)
    found, solved = floor_values(runs), metrics(runs, MAX_TURNS)
    for k in range(1, MAX_TURNS + 1):
        assert found[f"floor@{k}"] == pytest.approx(np.mean([min(1, k / count) for count in options.values()]))
        # 4,000 conversations know a share to 0.8 points.
        assert ratio_value(solved[f"multi@{k}"]) == pytest.approx(found[f"floor@{k}"], abs=0.025)
        assert found[f"above_floor@{k}"] == pytest.approx(0, abs=0.1)


def test_the_floor_and_what_is_above_it_by_hand():
    # Four options, two conversations of one prompt, one of another with two options, one without a number of them.
    made = [
        conversation("a", 0, [("1", False, 1), ("0", True, 1)]),
        conversation("a", 1, [("1", False, 1)] * 3),
        conversation("b", 0, [("0", True, 1)]),
        conversation("c", 0, [("9", False, 1)] * 3),
    ]
    found = floor_values(runs_of(made, options={"a": 4, "b": 2, "c": None}), 3)
    assert found == pytest.approx(
        {
            "floor@1": (2 / 4 + 1 / 2 + 0) / 4,
            "floor@2": (2 * 2 / 4 + 1 + 0) / 4,
            "floor@3": (2 * 3 / 4 + 1 + 0) / 4,
            "above_floor@1": (1 / 4 - 1 / 4) / (3 / 4),
            "above_floor@2": (2 / 4 - 2 / 4) / (2 / 4),
            "above_floor@3": (2 / 4 - 2.5 / 4) / (1.5 / 4),
        },
        rel=1e-12,
    )


def test_nothing_is_above_a_floor_of_one():
    found = floor_values(runs_of([conversation("a", 0, [("1", False, 1), ("0", True, 1)])], options={"a": 2}), 3)
    assert (found["floor@1"], found["floor@2"], found["floor@3"]) == (0.5, 1.0, 1.0)
    assert found["above_floor@1"] == pytest.approx((0 - 0.5) / 0.5)
    assert (found["above_floor@2"], found["above_floor@3"]) == (None, None)


def test_turns_that_ask_for_no_answer_are_no_guesses():
    ask = (None, False, 5, False)
    made = [conversation("a", k, [ask, ask, (str(k), k == 0, 1)]) for k in range(3)]
    found = floor_values(runs_of(made, options={"a": 4}), 3)
    # One answer is asked for, at the third turn; up to the second there is nothing to measure.
    assert (found["floor@1"], found["floor@2"]) == (None, None)
    assert found["floor@3"] == 1 / 4 and found["above_floor@3"] == pytest.approx((1 / 3 - 1 / 4) / (3 / 4))


def test_turns_that_nobody_needed_are_guesses_all_the_same():
    found = floor_values(runs_of([conversation("a", 0, [("0", True, 1)])], options={"a": 4}), 4)
    assert [found[f"floor@{k}"] for k in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]


def test_without_a_number_of_options_there_is_no_floor():
    made = [conversation("a", 0, [("0", True, 1)])]
    assert floors(runs_of(made), metrics(runs_of(made), 2), 2) == {}
    assert floor_values(runs_of(made, options={"a": None})) == {}


def brute_force(rights, k):
    """The share of all subsets of k first replies in which one is right."""
    subsets = list(itertools.combinations(rights, k))
    return sum(any(chosen) for chosen in subsets) / len(subsets)


prompts = st.dictionaries(st.sampled_from("abcd"), st.lists(outcomes, min_size=1, max_size=5), min_size=1)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(prompts)
def test_pass_at_k_is_the_share_of_subsets_and_the_gain_what_feedback_adds(held):
    made = [conversation(task, n, turns) for task, found in held.items() for n, turns in enumerate(found)]
    first = {  # of each prompt, the conversations that were asked for an answer at turn 1
        task: [turns for turns in found if all(turns[0][3:])] for task, found in held.items()
    }
    most = max(map(len, first.values()))
    found = resampling(runs_of(made), MAX_TURNS)
    assert set(found) == (
        {f"pass@{k}" for k in range(1, most + 1)} | {f"feedback_gain@{k}" for k in range(2, min(most, MAX_TURNS) + 1)}
        if most >= 2
        else set()
    )
    for k in range(1, most + 1) if most >= 2 else ():
        enough = [turns for turns in first.values() if len(turns) >= k]
        passed = [brute_force([turns[0][1] for turns in one], k) for one in enough]
        assert ratio_value(found[f"pass@{k}"]) == pytest.approx(np.mean(passed), rel=1e-9, abs=1e-12)
        if 2 <= k <= MAX_TURNS:
            multi = [np.mean([any(reply[1] for reply in turns[:k]) for turns in one]) for one in enough]
            expected = np.mean(multi) - np.mean(passed)
            assert ratio_value(found[f"feedback_gain@{k}"]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_pass_at_k_is_the_closed_form_for_many_conversations():
    n, c = 200, 3
    made = [conversation("a", i, [("0", True, 1)] if i < c else [("1", False, 1)]) for i in range(n)]
    found = resampling(runs_of(made), 5)
    for k in (1, 2, 50, 197, 198, 200):
        expected = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert ratio_value(found[f"pass@{k}"]) == pytest.approx(expected, rel=1e-9)


def test_it_is_an_unbiased_estimate_of_resampling():
    # Right at first with chance 0.3; n = 4 conversations; pass@3 is 1 − 0.7³ on average.
    rng = random.Random(1)
    made = [
        conversation(f"t{i}", k, [("0", True, 1)] if rng.random() < 0.3 else [("1", False, 1)])
        for i in range(4000)
        for k in range(4)
    ]
    assert ratio_value(resampling(runs_of(made), 1)["pass@3"]) == pytest.approx(1 - 0.7**3, abs=0.02)


def test_one_conversation_of_a_prompt_says_nothing_of_asking_again():
    made = [conversation("a", 0, [("0", True, 1)]), conversation("b", 0, [("1", False, 1)])]
    assert resampling(runs_of(made), 3) == {}


def test_estimates_hold_floors_without_differences_and_pass_at_k_of_the_sampled_mode_alone():
    made = [conversation("a", n, [("0", n == 0, 1)]) for n in range(3)]
    runs = {name: runs_of(made, options={"a": 4}) for name in ("base", "tuned")}
    for mode in ("greedy", "sampled"):
        rows = {
            (row.policy, row.metric.partition("/")[2])
            for row in estimate_all(runs, mode=mode, max_turns=2, baseline="base")
        }
        assert {("base", "floor@1"), ("tuned", "above_floor@2"), ("tuned - base", "above_floor@1")} <= rows
        assert ("tuned - base", "floor@1") not in rows
        assert (("tuned - base", "pass@3") in rows) == (mode == "sampled")


def test_policies_of_other_numbers_of_conversations_are_compared_in_what_both_have():
    def sampled(count):
        return runs_of([conversation("a", n, [("0", n == 0, 1)]) for n in range(count)])

    rows = estimate_all({"base": sampled(2), "tuned": sampled(3)}, mode="sampled", max_turns=2, baseline="base")
    found = {(row.policy, row.metric): row.value for row in rows}
    assert found["tuned", "sampled/pass@3"] == 1.0
    assert ("tuned - base", "sampled/pass@3") not in found
    # 1/3 − 1/2 and 2/3 − 1, whatever stands between them.
    assert found["tuned - base", "sampled/pass@1"] == pytest.approx(1 / 3 - 1 / 2)
    assert found["tuned - base", "sampled/pass@2"] == pytest.approx(2 / 3 - 1)
