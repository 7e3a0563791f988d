import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.weights.groups import group_max, group_mean, group_min, group_sum, index_groups, others_mean

labelled = st.lists(st.tuples(st.sampled_from(["b", "a", "zz", "m#1"]), st.floats(-1e6, 1e6)), min_size=1, max_size=30)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(labelled)
def test_group_arithmetic_matches_a_dictionary_of_lists(rows):
    by_label: dict[str, list[float]] = {}
    for label, value in rows:
        by_label.setdefault(label, []).append(value)
    values_N = np.array([value for _, value in rows])
    index_N = index_groups([label for label, _ in rows])
    assert sorted(set(index_N.tolist())) == list(range(len(by_label)))
    sums_G, means_G = group_sum(values_N, index_N), group_mean(values_N, index_N)
    tops_G, lows_G = group_max(values_N, index_N), group_min(values_N, index_N)
    for (label, _), index in zip(rows, index_N, strict=True):
        members = by_label[label]
        assert sums_G[index] == pytest.approx(math.fsum(members), rel=1e-9, abs=1e-6)
        assert means_G[index] == pytest.approx(math.fsum(members) / len(members), rel=1e-9, abs=1e-6)
        assert tops_G[index] == max(members)
        assert lows_G[index] == min(members)


@pytest.mark.parametrize(
    "labels_N",
    [["b", "a", "b", "c"], [7, -3, 7, 900], [10**12, 5, 10**12, 6]],
    ids=["text", "numbers", "large numbers"],
)
def test_labels_of_any_kind_become_dense_indices_that_keep_equality(labels_N):
    index_N = index_groups(labels_N)
    assert set(index_N.tolist()) == {0, 1, 2}
    for i, one in enumerate(labels_N):
        for j, other in enumerate(labels_N):
            assert (index_N[i] == index_N[j]) == (one == other)


def test_groups_may_be_interleaved_and_of_unequal_size():
    index_N = index_groups(["x", "y", "x", "y", "x"])
    values_N = np.array([1.0, 10.0, 2.0, 20.0, 6.0])
    assert group_sum(values_N, index_N).tolist() == [9.0, 30.0]
    assert group_mean(values_N, index_N).tolist() == [3.0, 15.0]
    assert group_max(values_N, index_N).tolist() == [6.0, 20.0]
    assert group_min(values_N, index_N).tolist() == [1.0, 10.0]


def test_no_trajectories_make_no_groups():
    index_N = index_groups([])
    assert index_N.tolist() == []
    assert group_sum(np.array([]), index_N).tolist() == []


def test_others_mean_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    values_N, index_N, alone_N = rng.normal(size=40), rng.integers(0, 15, 40), rng.normal(size=40)
    for at, found in enumerate(others_mean(values_N, index_N, alone_N)):
        others = [value for n, value in enumerate(values_N) if n != at and index_N[n] == index_N[at]]
        assert found == pytest.approx(np.mean(others) if others else alone_N[at], rel=1e-12)
