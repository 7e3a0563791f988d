import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.skipping import negligible


def naive(weights: list[float], groups: list[int], share: float) -> list[bool]:
    """The definition, a group at a time."""
    skipped = [weight == 0 for weight in weights]
    for group in set(groups):
        members = sorted((i for i, g in enumerate(groups) if g == group), key=lambda i: (abs(weights[i]), i))
        total, dropped = sum(abs(weights[i]) for i in members), 0.0
        for i in members:
            dropped += abs(weights[i])
            if share > 0 and dropped <= share * total:
                skipped[i] = True
    return skipped


WEIGHT = st.sampled_from([0.0, 1.0, -2.0, 1e-9, 2.0**-12, -(2.0**-11), 64.0])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(WEIGHT, st.integers(0, 3)), min_size=1, max_size=24), st.sampled_from([0.0, 1e-3, 0.27]))
def test_the_smallest_weights_go_up_to_their_share(rows: list[tuple[float, int]], share: float) -> None:
    weights, labels = [w for w, _ in rows], [g for _, g in rows]
    _, index = np.unique(labels, return_inverse=True)
    mask_N, dropped_G = negligible(np.array(weights), index, share)
    assert mask_N.tolist() == naive(weights, labels, share)
    assert (dropped_G <= share + 1e-12).all()
    # A group with any weight keeps some.
    for group in range(index.max() + 1):
        mine = index == group
        assert not np.any(np.array(weights)[mine]) or not mask_N[mine].all()


def test_a_published_group_loses_its_failures_and_uniform_weights_lose_nothing() -> None:
    # Three successes and thirteen failures at β = 0.1: e^{R/β} with R = 1 or −0.4.
    raw = np.exp(np.array([1.0] * 3 + [-0.4] * 13) / 0.1)
    mask_N, dropped_G = negligible(raw / raw.mean(), np.zeros(16, np.int64), 1e-3)
    assert mask_N.tolist() == [False] * 3 + [True] * 13 and 0 < dropped_G[0] < 1e-5
    mask_N, dropped_G = negligible(np.ones(16), np.zeros(16, np.int64), 1e-3)
    assert not mask_N.any() and dropped_G[0] == 0
    with pytest.raises(ConfigError, match=r"share: got 1\.0"):
        negligible(np.ones(2), np.zeros(2, np.int64), 1.0)
