"""β: auto beside naive loops: the definition of its measure, a search by hand, and the limits."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.auto import effective_shares, temperature_of
from drift.weights.groups import index_groups
from drift.weights.schemes import drift_weights, tilted

quick = settings(max_examples=60, derandomize=True, deadline=None)
# Ties, zeros, negative returns, and gaps from a thousandth of the largest up to all of it.
VALUE = st.sampled_from([0.0, 1.0, 0.9, 0.81, -0.25, -0.5, 0.001]) | st.floats(-1, 1).map(lambda x: round(x, 3))
GROUP = st.lists(VALUE, min_size=1, max_size=9)
GROUPS = st.lists(GROUP, min_size=1, max_size=5)
SCALE = st.sampled_from([1e-300, 1e-12, 1.0, 1e9, 1e300])


def columns(groups, scale=1.0):
    returns = [scale * value for group in groups for value in group]
    return np.array(returns), np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def effective_share(values, beta):
    """The definition, a trajectory at a time: weights e^{(R − max R)/β}, their Kish size, over K."""
    best = max(values)
    if beta == 0:
        raw = [float(value == best) for value in values]
    else:
        raw = [math.exp(max((value - best) / beta, -745)) if math.isfinite(beta) else 1.0 for value in values]
    return math.fsum(raw) ** 2 / math.fsum(w * w for w in raw) / len(values)


def temperature(returns_N, group_N, share):
    """β where that share of each prompt's conversations succeeds."""
    return temperature_of(returns_N, group_N, np.full(len(group_N), share))[0]


@quick
@given(GROUP, st.floats(0.02, 0.98), SCALE)
def test_the_effective_sample_size_of_a_prompt_hits_its_target_on_returns_of_any_scale(group, share, scale):
    values = [scale * value for value in group]
    ties, beta = values.count(max(values)), temperature(values, [0] * len(values), share)
    if len(set(values)) == 1:
        assert beta == math.inf
    elif ties >= share * len(values):
        assert beta == 0
    else:
        assert effective_share(values, beta) == pytest.approx(share, rel=1e-6)
        # The weights that come of it, and not only the measure, have that size: within a hundredth as promised.
        weights = drift_weights(values, [0] * len(values), beta=beta).tolist()
        kish = sum(weights) ** 2 / sum(w * w for w in weights)
        assert kish == pytest.approx(share * len(values), rel=1e-2)


@quick
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9), st.integers(-(2**20), 2**20), st.integers(-900, 900))
def test_a_constant_added_changes_nothing_and_a_factor_changes_beta_by_itself(numbers, constant, power):
    assume(len(set(numbers)) > 1)
    group_N = [0] * len(numbers)
    # Multiples of 2⁻¹⁰ add, and powers of two multiply, without rounding.
    values_N = np.array(numbers) / 2**10
    beta = temperature(values_N, group_N, 0.7)
    assert temperature(values_N + constant, group_N, 0.7) == pytest.approx(beta, rel=1e-9)
    assert temperature(np.ldexp(values_N, power), group_N, 0.7) == pytest.approx(float(np.ldexp(beta, power)))


@quick
@given(GROUPS)
def test_the_effective_share_rises_with_beta_between_its_limits(groups):
    returns_N, group_N = columns(groups)
    index_N = index_groups(group_N)
    gap_N = returns_N - np.array([max(group) for group in groups])[group_N]
    shares = [effective_shares(tilted(gap_N, 0.0, beta), index_N) for beta in (0.0, 1e-4, 0.1, 1.0, 1e12)]
    assert np.diff(shares, axis=0).min() >= -1e-12
    for number, group in enumerate(groups):
        assert shares[0][number] == pytest.approx(group.count(max(group)) / len(group), rel=1e-12)
        assert shares[-1][number] == pytest.approx(1, rel=1e-12)
        assert shares[2][number] == pytest.approx(effective_share(group, 0.1), rel=1e-12)


def test_tiny_gaps_beside_large_ones_are_found():
    # At ESS 1.5 of 3 the two best share the weight; they differ by 1e-14 of the span, or by 1e-300.
    for values in ([1.0, 1.0 - 1e-14, 0.0], [0.0, -1e-300, -1.0], [-1e-300, 1e300, 0.0]):
        beta = temperature(values, [0, 0, 0], 0.5)
        assert effective_share(values, beta) == pytest.approx(0.5, rel=1e-6)


@quick
@given(GROUPS, st.floats(0.05, 0.95), SCALE, st.integers(0, 99))
def test_one_beta_for_all_hits_the_mean_in_whatever_order_they_come(groups, share, scale, seed):
    differing = [group for group in groups if len(set(group)) > 1]
    returns_N, group_N = columns(groups, scale)
    beta = temperature(returns_N, group_N, share)
    # Whole prompts in another order: the same to the last bit.
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    assert temperature(*columns([groups[at] for at in order], scale), share) == beta
    shuffled = np.random.default_rng(seed).permutation(len(group_N))
    assert temperature(returns_N[shuffled], group_N[shuffled], share) == pytest.approx(beta, rel=1e-6)
    if not differing:
        assert beta == math.inf
        return
    values = [[scale * value for value in group] for group in differing]

    def mean(beta):
        return math.fsum(effective_share(each, beta) for each in values) / len(values)

    if beta == 0:
        assert mean(0.0) >= share - 1e-12
    else:
        assert mean(beta) == pytest.approx(share, rel=1e-6, abs=1e-9)


def test_drift_weights_at_the_limits_are_the_best_alone_and_all_alike():
    values, group_N = [1.0, 1.0, 0.5, 0.0, 7.0, 7.0], np.array([0, 0, 0, 0, 1, 1])
    assert drift_weights(values, group_N, beta=0.0).tolist() == [2, 2, 0, 0, 1, 1]
    assert drift_weights(values, group_N, beta=math.inf).tolist() == [1] * 6
    with pytest.raises(ConfigError, match=r"weights\.beta.*a number"):
        drift_weights(values, group_N, beta=-1.0)


def test_equal_returns_and_single_trajectories_weigh_one():
    values, group_N = [0.3] * 4 + [-1e300], [0, 0, 0, 0, 1]
    assert temperature(values, group_N, 0.5) == math.inf
    assert drift_weights(values, group_N, beta=math.inf).tolist() == [1.0] * 5


def test_the_share_is_that_of_prompts_whose_returns_differ():
    # A half of 4, where the other prompt is of no account; of 2 ties among 3 it is out of reach.
    returns_N, group_N = columns([[1.0, 0.5, 0.2, 0.0], [0.7, 0.7]])
    beta, share = temperature_of(returns_N, group_N, [True, True, False, False, True, True])
    assert share == 0.5 and effective_share([1.0, 0.5, 0.2, 0.0], beta) == pytest.approx(0.5, rel=1e-6)
    assert temperature_of([1.0, 1.0, 0.0], [0] * 3, [True, False, False]) == (0.0, 1 / 3)


SOLVED = st.lists(st.lists(st.tuples(VALUE, st.booleans()), min_size=1, max_size=9), min_size=1, max_size=5)


@quick
@given(SOLVED, SCALE)
def test_by_default_as_many_count_as_succeed(groups, scale):
    returns_N, group_N = columns([[value for value, _ in group] for group in groups], scale)
    success_N = np.array([solved for group in groups for _, solved in group])
    beta, share = temperature_of(returns_N, group_N, success_N)
    assert json.loads(json.dumps(share)) == share
    differing = [group for group in groups if len({value for value, _ in group}) > 1]
    if not differing:
        assert (beta, share) == (math.inf, None)
        return
    wanted = sum(sum(solved for _, solved in group) / len(group) for group in differing) / len(differing)
    values = [[scale * value for value, _ in group] for group in differing]

    def mean(beta):
        return math.fsum(effective_share(each, beta) for each in values) / len(values)

    assert share == pytest.approx(wanted)
    if beta == 0:
        assert mean(0.0) >= wanted - 1e-12
    elif wanted > 1 - 1e-12:
        assert beta == math.inf
    else:
        assert mean(beta) == pytest.approx(wanted, rel=1e-6)
