import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.diagnostics import effective_sample_size
from drift.weights.resampling import systematic_resampling


def naive(weights: list[float], groups: list[int], share: float, seed: int) -> list[float]:
    """The definition: for each point, walk along the group until the conversation that it falls on."""
    shifts = np.random.default_rng(seed).random(max(groups) + 1)
    found = [0.0] * len(weights)
    for group in sorted(set(groups)):
        members = [at for at, label in enumerate(groups) if label == group]
        total = sum(abs(weights[at]) for at in members)
        if total == 0:
            continue
        points = max(1, round(share * len(members)))
        for point in range(points):
            place, walked = (shifts[group] + point) * total / points, 0.0
            for at in members:
                walked += abs(weights[at])
                if place < walked:
                    found[at] += np.sign(weights[at]) * total / points
                    break
    return found


# Sums of these are exact, so that the two ways can't differ by rounding at a conversation's end.
WEIGHT = st.sampled_from([0.0, 0.25, -0.5, 1.0, 3.0, -2.0])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(WEIGHT, st.integers(0, 3)), min_size=1, max_size=24),
    st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_points_fall_where_a_walk_along_the_group_puts_them(
    rows: list[tuple[float, int]], share: float, seed: int
) -> None:
    weights = [weight for weight, _ in rows]
    _, index = np.unique([group for _, group in rows], return_inverse=True)
    found_N = systematic_resampling(np.array(weights), index, share, seed)
    np.testing.assert_allclose(found_N, naive(weights, index.tolist(), share, seed), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40), st.integers(0, 99))
def test_a_group_keeps_its_mass_whatever_the_weights(weights: list[float], seed: int) -> None:
    scaled_N = np.array(weights) / 64
    found_N = systematic_resampling(scaled_N, np.zeros(len(weights), np.int64), 0.5, seed)
    np.testing.assert_allclose(np.abs(found_N).sum(), np.abs(scaled_N).sum(), rtol=1e-12)
    assert np.count_nonzero(found_N) <= max(1, round(len(weights) / 2))
    assert (found_N[scaled_N == 0] == 0).all() and (np.sign(found_N) * np.sign(scaled_N) >= 0).all()


def test_the_mean_over_many_draws_is_the_weight_and_the_effective_sample_size_grows() -> None:
    rng = np.random.default_rng(0)
    weights_N, index_N = np.exp(rng.normal(size=64)) * rng.choice([-1, 1], 64), np.repeat(np.arange(4), 16)
    drawn = np.stack([systematic_resampling(weights_N, index_N, 0.25, seed) for seed in range(20_000)])
    error_N = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - weights_N) < 5 * error_N + 1e-12).all()
    assert (np.count_nonzero(drawn.reshape(-1, 4, 16), axis=2) <= 4).all()
    # Four equal weights per group at most; repeated ones are fewer and heavier.
    kept = drawn[0][drawn[0] != 0]
    assert effective_sample_size(kept) > 0.5 * len(kept)


def test_equal_weights_drawn_as_often_as_there_are_conversations_stay_as_they_are() -> None:
    found_N = systematic_resampling(np.ones(12), np.repeat([0, 1, 2], 4), 1.0, 7)
    np.testing.assert_allclose(found_N, np.ones(12), rtol=1e-12)
    with pytest.raises(ConfigError, match=r"share: got 1\.5"):
        systematic_resampling(np.ones(2), np.zeros(2, np.int64), 1.5, 0)
