import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.training.negative import bounded
from drift.weights.schemes import swift_weights

rows = st.lists(
    st.tuples(st.sampled_from([0, 1, 2]), st.floats(-1e6, 1e6, allow_subnormal=False)), min_size=1, max_size=14
)


def naive(weights, groups, share):
    """One prompt and one weight at a time."""
    found = []
    for weight, group in zip(weights, groups, strict=True):
        own = [w for w, g in zip(weights, groups, strict=True) if g == group]
        up, down = sum(w for w in own if w > 0), -sum(w for w in own if w < 0)
        found.append(weight * min(1.0, share * up / down) if weight < 0 else weight)
    return found


@settings(max_examples=150, derandomize=True, deadline=None)
@given(rows, st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]))
def test_each_prompt_is_bounded_as_a_loop_would(held, share):
    group_N, weights_N = np.array([g for g, _ in held]), np.array([w for _, w in held])
    index_N = np.unique(group_N, return_inverse=True)[1]
    found, report = bounded(weights_N, index_N, share)
    assert found == pytest.approx(naive(weights_N, group_N, share), rel=1e-9, abs=1e-12)
    assert report["negative_weights"] == (weights_N < 0).sum()
    for group in set(group_N.tolist()):
        own = found[group_N == group]
        up, down = own[own > 0].sum(), -own[own < 0].sum()
        assert down <= share * up * (1 + 1e-9) + 1e-9
    assert np.array_equal(found[weights_N >= 0], weights_N[weights_N >= 0])


def test_a_hand_count():
    # The first prompt: 3 up, 6 down, at most 1.5; the second is within; the third has nothing to stand for.
    found, report = bounded(np.array([3.0, -4, -2, 4, -1, -5]), np.array([0, 0, 0, 1, 1, 2]), 0.5)
    assert found.tolist() == [3.0, -1.0, -0.5, 4.0, -1.0, 0.0]
    assert report == {"negative_weights": 4, "bounded_groups": 2, "negative_share": 12 / 7}


def test_swift_is_left_as_it_is_by_a_share_of_one_and_halved_by_a_half():
    rng = np.random.default_rng(0)
    index_N = np.repeat(np.arange(40), 8)
    weights_N = swift_weights(rng.normal(size=320), index_N)
    found, report = bounded(weights_N, index_N, 1.0)
    assert found == pytest.approx(weights_N, rel=1e-12) and report["bounded_groups"] == 0
    assert report["negative_share"] == pytest.approx(1.0, rel=1e-12)
    halved, _ = bounded(weights_N, index_N, 0.5)
    assert halved[weights_N < 0] == pytest.approx(0.5 * weights_N[weights_N < 0], rel=1e-9)


def test_weights_without_a_negative_one_are_the_very_same():
    weights_N = np.array([0.0, 2.5, 1e-300])
    found, report = bounded(weights_N, np.zeros(3, int), 0.0)
    assert found.tobytes() == weights_N.tobytes()
    assert report == {"negative_weights": 0, "bounded_groups": 0, "negative_share": 0.0}


def test_nothing_to_bound_and_a_share_that_is_none():
    assert bounded(np.empty(0), np.empty(0, int), 0.5)[1]["negative_share"] is None
    with pytest.raises(ConfigError, match="share"):
        bounded(np.ones(1), np.zeros(1, int), -0.1)
