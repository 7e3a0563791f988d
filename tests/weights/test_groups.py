import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.weights.groups import group_max, group_mean, group_min, group_sum, index_groups

labelled = st.lists(st.tuples(st.sampled_from(["b", "a", "zz", "m#1"]), st.floats(-1e6, 1e6)), min_size=1, max_size=30)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(labelled)
def test_group_arithmetic_matches_a_dictionary_of_lists(rows):
    by_label: dict[str, list[float]] = {}
    for label, value in rows:
        by_label.setdefault(label, []).append(value)
    values_N = np.array([value for _, value in rows])
    index_N, groups = index_groups([label for label, _ in rows])
    assert groups == len(by_label)
    sums_G, means_G = group_sum(values_N, index_N, groups), group_mean(values_N, index_N, groups)
    tops_G, lows_G = group_max(values_N, index_N, groups), group_min(values_N, index_N, groups)
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
    index_N, groups = index_groups(labels_N)
    assert groups == 3
    assert set(index_N.tolist()) == {0, 1, 2}
    for i, one in enumerate(labels_N):
        for j, other in enumerate(labels_N):
            assert (index_N[i] == index_N[j]) == (one == other)


def test_groups_may_be_interleaved_and_of_unequal_size():
    index_N, groups = index_groups(["x", "y", "x", "y", "x"])
    values_N = np.array([1.0, 10.0, 2.0, 20.0, 6.0])
    assert group_sum(values_N, index_N, groups).tolist() == [9.0, 30.0]
    assert group_mean(values_N, index_N, groups).tolist() == [3.0, 15.0]
    assert group_max(values_N, index_N, groups).tolist() == [6.0, 20.0]
    assert group_min(values_N, index_N, groups).tolist() == [1.0, 10.0]


def test_no_trajectories_make_no_groups():
    index_N, groups = index_groups([])
    assert groups == 0
    assert group_sum(np.array([]), index_N, groups).tolist() == []
