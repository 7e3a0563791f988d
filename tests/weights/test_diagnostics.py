import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.weights.groups import index_groups
from drift.weights.stage import diagnose, effective_sample_size
from drift.weights.turns import Conversations

quick = settings(max_examples=30, derandomize=True, deadline=None)
weighted = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-40, 40).map(lambda n: n / 8), st.booleans()), min_size=1, max_size=25
)


def diagnosis(weights, returns, groups, successes):
    """Of conversations of one reply each."""
    success_N = np.array(successes, bool)
    data = Conversations(
        group_N=index_groups(groups),
        returns_N=np.array(returns, float),
        success_N=success_N,
        turns_N=np.ones(len(success_N), int),
        first_wrong_N=~success_N,
        stopped_N=success_N,
    )
    return diagnose(np.array(weights, float), data)


def kish(weights):
    squares = sum(w * w for w in weights)
    return sum(abs(w) for w in weights) ** 2 / squares if squares else 0.0


@quick
@given(weighted)
def test_effective_sample_size_matches_kishs_formula_as_a_loop(rows):
    weights_N = [w for _, w, _ in rows]
    assert effective_sample_size(weights_N) == pytest.approx(kish(weights_N), rel=1e-12)


def test_equal_weights_are_worth_all_trajectories_and_one_weight_is_worth_one():
    assert effective_sample_size([0.3] * 12) == pytest.approx(12, rel=1e-12)
    assert effective_sample_size([0, 0, 5, 0]) == 1.0
    assert effective_sample_size([0, 0]) == 0.0
    # Signed weights of Swift must not cancel.
    assert effective_sample_size([1, -1, 1, -1]) == 4.0


@quick
@given(weighted)
def test_mixed_share_matches_a_loop_over_prompts(rows):
    outcomes: dict[int, set[bool]] = {}
    for group, _, success in rows:
        outcomes.setdefault(group, set()).add(success)
    expected = sum(len(seen) == 2 for seen in outcomes.values()) / len(outcomes)
    found = diagnosis([1.0] * len(rows), [0.0] * len(rows), [g for g, _, _ in rows], [s for _, _, s in rows])
    assert found["mixed_share"] == pytest.approx(expected, rel=1e-12)


def test_diagnosis_of_a_small_weighting_matches_a_hand_count():
    # a: mixed; b: no success, equal returns, no weight; c: one trajectory; d: all solved, one negative weight.
    group_N = ["a", "a", "a", "b", "b", "c", "d", "d"]
    returns_N = [1.0, 0.0, 0.0, -0.5, -0.5, 0.9, 1.0, 0.5]
    success_N = [True, False, False, False, False, True, True, True]
    weights_N = [2.0, 1.0, 0.0, 0.0, 0.0, 1.0, 3.0, -1.0]
    found = diagnosis(weights_N, returns_N, group_N, success_N)
    assert found["trajectories"] == 8
    assert found["groups"] == 4
    assert found["ess"] == pytest.approx((2 + 1 + 1 + 3 + 1) ** 2 / (4 + 1 + 1 + 9 + 1), rel=1e-12)  # 64/16
    assert found["zero_weights"] == 3
    assert found["negative_weights"] == 1
    assert found["mixed_share"] == 1 / 4
    assert found["groups_without_success"] == 1
    assert found["groups_with_equal_returns"] == 2  # b, and c trivially
    assert found["groups_of_one"] == 1


@quick
@given(weighted)
def test_histograms_count_every_trajectory_in_its_bin(rows):
    weights_N = np.array([w for _, w, _ in rows])
    found = diagnosis(weights_N, weights_N * 2, [g for g, _, _ in rows], [s for _, _, s in rows])
    for values_N, histogram in ((weights_N, found["histogram"]), (weights_N * 2, found["return_histogram"])):
        edges, counts = histogram["edges"], histogram["counts"]
        assert len(edges) == len(counts) + 1
        for bin_index, count in enumerate(counts):
            low, high = edges[bin_index], edges[bin_index + 1]
            # The last bin is closed on the right, as in numpy.
            last = bin_index == len(counts) - 1
            assert count == sum(low <= v < high or (last and v == high) for v in values_N)


def test_diagnosis_goes_into_a_manifest_as_it_is():
    found = diagnosis([1.0, 0.0], [0.5, 0.2], ["a", "a"], [True, False])
    assert json.loads(json.dumps(found)) == found


def test_weights_that_are_all_zero_teach_nothing_and_are_no_crash():
    found = diagnosis([0.0, 0.0], [1.0, 1.0], ["a", "a"], [True, True])
    assert (found["ess"], found["zero_weights"]) == (0.0, 2)


def test_what_a_conversation_weighs_is_its_reply_of_the_largest_weight_either_way():
    data = Conversations(
        group_N=np.array([0, 0, 1]),
        returns_N=np.array([1.0, 0.0, 0.5]),
        success_N=np.array([True, False, True]),
        turns_N=np.array([2, 3, 1]),
        first_wrong_N=np.zeros(3, bool),
        stopped_N=np.zeros(3, bool),
        baseline_N=np.array([0.5, 0.5, 0.5]),
    )
    found = diagnose(np.array([0.5, 2.0, -3.0, 1.0, 0.0, 0.0]), data)
    assert (found["ess"], found["zero_weights"], found["negative_weights"]) == ((2 + 3) ** 2 / (4 + 9), 1, 1)
    assert found["explained"] == pytest.approx(0.0, abs=1e-12)
