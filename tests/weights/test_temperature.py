"""β: auto beside naive loops: the definition of each measure, a search by hand, and the limits."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.config import WeightConfig
from drift.weights.exponential import drift_weights
from drift.weights.groups import index_groups
from drift.weights.temperature import SharedTemperature, Target, exponents, group_temperatures
from drift.weights.tempering import Tempering

quick = settings(max_examples=60, derandomize=True, deadline=None)
# Ties, zeros, negative returns, and gaps from a thousandth of the largest up to all of it.
VALUE = st.sampled_from([0.0, 1.0, 0.9, 0.81, -0.25, -0.5, 0.001]) | st.floats(-1, 1).map(lambda x: round(x, 3))
GROUPS = st.lists(st.lists(VALUE, min_size=1, max_size=9), min_size=1, max_size=5)
SCALE = st.sampled_from([1e-300, 1e-12, 1.0, 1e9, 1e300])


def columns(groups, scale=1.0):
    returns = [scale * value for group in groups for value in group]
    return np.array(returns), np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def effective_share(values, beta, order):
    """The definition, a trajectory at a time: weights e^{(R − max R)/β}, their Kish size or perplexity, over K."""
    best = max(values)
    if beta == 0:
        raw = [float(value == best) for value in values]
    else:
        raw = [math.exp(max((value - best) / beta, -745)) if math.isfinite(beta) else 1.0 for value in values]
    total = math.fsum(raw)
    if order == 2:
        return total**2 / math.fsum(w * w for w in raw) / len(values)
    entropy = -math.fsum(w / total * math.log(w / total) for w in raw if w > 0)
    return math.exp(entropy) / len(values)


@quick
@given(GROUPS, st.floats(0.02, 0.98), SCALE)
def test_the_effective_sample_size_hits_its_target_on_returns_of_any_scale(groups, share, scale):
    returns_N, group_N = columns(groups, scale)
    target = Target.of_ess(share)
    found = group_temperatures(returns_N, group_N, target)
    for number, group in enumerate(groups):
        values = [scale * value for value in group]
        ties = values.count(max(values))
        beta = float(found.beta_G[number])
        assert found.equal_G[number] == (len(set(values)) == 1)
        assert found.clamped_G[number] == (len(set(values)) > 1 and ties >= share * len(values))
        if found.equal_G[number]:
            assert beta == math.inf
        elif found.clamped_G[number]:
            assert beta == 0
        else:
            assert effective_share(values, beta, 2) == pytest.approx(share, rel=1e-6)
            # The weights that come of it, and not only the measure, have that size: within a hundredth as promised.
            weights = drift_weights(values, [0] * len(values), beta=beta).tolist()
            kish = sum(weights) ** 2 / sum(w * w for w in weights)
            assert kish == pytest.approx(share * len(values), rel=1e-2)


@quick
@given(GROUPS, st.floats(1e-6, 3.0), SCALE)
def test_the_divergence_from_uniform_weights_hits_its_budget(groups, nats, scale):
    returns_N, group_N = columns(groups, scale)
    found = group_temperatures(returns_N, group_N, Target.of_kl(nats))
    for number, group in enumerate(groups):
        values = [scale * value for value in group]
        if found.equal_G[number] or found.clamped_G[number]:
            # Out of reach: no weights diverge further than those on the best alone, log(K / ties).
            reach = math.log(len(values) / values.count(max(values)))
            assert found.equal_G[number] == (reach == 0 and len(set(values)) == 1)
            assert nats >= reach - 1e-12
            continue
        weights = drift_weights(values, [0] * len(values), beta=float(found.beta_G[number])).tolist()
        divergence = math.fsum(w / len(values) * math.log(w) for w in weights if w > 0)
        assert divergence == pytest.approx(nats, rel=1e-6, abs=1e-12)


@quick
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9), st.integers(-(2**20), 2**20), st.integers(-900, 900))
def test_a_constant_added_changes_nothing_and_a_factor_changes_beta_by_itself(numbers, constant, power):
    assume(len(set(numbers)) > 1)
    target, group_N = Target.of_ess(0.7), [0] * len(numbers)
    # Multiples of 2⁻¹⁰ add, and powers of two multiply, without rounding.
    values_N = np.array(numbers) / 2**10
    beta = group_temperatures(values_N, group_N, target).beta_G
    assert group_temperatures(values_N + constant, group_N, target).beta_G == pytest.approx(beta, rel=1e-9)
    assert group_temperatures(np.ldexp(values_N, power), group_N, target).beta_G == pytest.approx(np.ldexp(beta, power))


@quick
@given(GROUPS, st.floats(0.05, 0.95))
def test_a_prompt_has_the_beta_it_has_alone_to_the_last_bit(groups, share):
    returns_N, group_N = columns(groups)
    together_G = group_temperatures(returns_N, group_N, Target.of_ess(share)).beta_G
    alone = [group_temperatures(group, [0] * len(group), Target.of_ess(share)).beta_G[0] for group in groups]
    assert together_G.tolist() == alone
    order = np.random.default_rng(0).permutation(len(returns_N))
    shuffled_G = group_temperatures(returns_N[order], group_N[order], Target.of_ess(share)).beta_G
    assert shuffled_G == pytest.approx(together_G, rel=1e-6)


@quick
@given(GROUPS, st.sampled_from([1, 2]))
def test_the_effective_share_rises_with_beta_between_its_limits(groups, order):
    returns_N, group_N = columns(groups)
    index_N, size_G = index_groups(group_N)[0], np.array([len(group) for group in groups], float)
    gap_N = returns_N - np.array([max(group) for group in groups])[group_N]
    target = Target(share=0.5, order=order)
    shares = [target.measure(exponents(gap_N, beta), index_N, size_G) for beta in (0.0, 1e-4, 0.1, 1.0, 1e12)]
    assert np.diff(shares, axis=0).min() >= -1e-12
    for number, group in enumerate(groups):
        assert shares[0][number] == pytest.approx(group.count(max(group)) / len(group), rel=1e-12)
        assert shares[-1][number] == pytest.approx(1, rel=1e-12)
        assert shares[2][number] == pytest.approx(effective_share(group, 0.1, order), rel=1e-12)


def test_tiny_gaps_beside_large_ones_are_found():
    # At ESS 1.5 of 3 the two best share the weight; they differ by 1e-14 of the span, or by 1e-300.
    for values in ([1.0, 1.0 - 1e-14, 0.0], [0.0, -1e-300, -1.0], [-1e-300, 1e300, 0.0]):
        beta = float(group_temperatures(values, [0, 0, 0], Target.of_ess(0.5)).beta_G[0])
        assert effective_share(values, beta, 2) == pytest.approx(0.5, rel=1e-6)


@quick
@given(GROUPS, st.floats(0.05, 0.95), SCALE, st.sampled_from([1, 2]), st.integers(1, 4))
def test_one_beta_for_all_hits_the_mean_however_the_data_are_parted(groups, share, scale, order, parts):
    target, differing = Target(share=share, order=order), [g for g in groups if len(set(g)) > 1]

    def found(pieces):
        shared = SharedTemperature(target)
        for piece in pieces:
            if piece:
                shared.add(*columns(piece, scale))
        return shared.find()

    beta, clamped = found([groups])
    assert found([groups[at::parts] for at in range(parts)]) == (beta, clamped)
    if not differing:
        assert (beta, clamped) == (math.inf, False)
        return
    values = [[scale * value for value in group] for group in differing]

    def mean(beta):
        shares = [effective_share(each, beta, order) for each in values]
        return math.fsum(shares if order == 2 else map(math.log, shares)) / len(shares)

    wanted = share if order == 2 else math.log(share)
    if clamped:
        assert beta == 0 and mean(0.0) >= wanted - 1e-12
    else:
        assert mean(beta) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_drift_weights_at_the_limits_are_the_best_alone_and_all_alike():
    values, group_N = [1.0, 1.0, 0.5, 0.0, 7.0, 7.0], np.array([0, 0, 0, 0, 1, 1])
    assert drift_weights(values, group_N, beta=np.zeros(6)).tolist() == [2, 2, 0, 0, 1, 1]
    assert drift_weights(values, group_N, beta=np.full(6, np.inf)).tolist() == [1] * 6
    with pytest.raises(ConfigError, match=r"weights\.beta.*numbers ≥ 0"):
        drift_weights(values, group_N, beta=np.full(6, -1.0))


def test_equal_returns_and_single_trajectories_weigh_one():
    found = group_temperatures([0.3] * 4 + [-1e300], [0, 0, 0, 0, 1], Target.of_ess(0.5))
    assert found.equal_G.tolist() == [True, True] and found.beta_G.tolist() == [math.inf] * 2
    weights_N = drift_weights([0.3] * 4 + [-1e300], [0, 0, 0, 0, 1], beta=np.full(5, math.inf))
    assert weights_N.tolist() == [1.0] * 5


def test_what_was_found_goes_into_the_diagnostics():
    # A half of 4: reached; of 2 ties among 3: not; equal returns: any β.
    groups = [[1.0, 0.5, 0.2, 0.0], [1.0, 1.0, 0.0], [0.7, 0.7]]
    returns_N, group_N = columns(groups)
    parts = [(returns_N, group_N, returns_N > 0)]
    tempering = Tempering(WeightConfig(beta="auto", beta_per="group", ess_target=0.5), lambda: parts)
    beta_N = tempering.beta(returns_N, group_N)
    assert beta_N[4:].tolist() == [0, 0, 0, math.inf, math.inf] and len(set(beta_N[:4].tolist())) == 1
    report = tempering.report()["beta"]
    assert report == {"per": "group", "quantiles": [beta_N[0]] * 5, "clamped": 1, "equal_returns": 1}
    assert json.loads(json.dumps(report)) == report
    one = Tempering(WeightConfig(beta="auto", beta_per="dataset", ess_target=0.6), lambda: parts)
    report = one.report()["beta"]
    assert report == {"per": "dataset", "quantiles": [one.beta(returns_N, group_N)[0]] * 5, "clamped": 0}
    assert Tempering(WeightConfig(beta=0.2), lambda: []).report() == {}


SOLVED = st.lists(st.lists(st.tuples(VALUE, st.booleans()), min_size=1, max_size=9), min_size=1, max_size=5)


@quick
@given(SOLVED, SCALE)
def test_by_default_as_many_count_as_succeed(groups, scale):
    returns_N, group_N = columns([[value for value, _ in group] for group in groups], scale)
    success_N = np.array([solved for group in groups for _, solved in group])
    # Prompts in parts of their own: what comes of it is the same.
    parts = [(returns_N[group_N == g], group_N[group_N == g] - g, success_N[group_N == g]) for g in range(len(groups))]
    tempering = Tempering(WeightConfig(beta="auto"), lambda: parts)
    beta, report = float(tempering.beta(returns_N[:1], group_N[:1])[0]), tempering.report()["beta"]
    differing = [group for group in groups if len({value for value, _ in group}) > 1]
    if not differing:
        assert (beta, report["success_share"], report["clamped"]) == (math.inf, None, 0)
        return
    wanted = sum(sum(solved for _, solved in group) / len(group) for group in differing) / len(differing)
    values = [[scale * value for value, _ in group] for group in differing]

    def mean(beta):
        return math.fsum(effective_share(each, beta, 2) for each in values) / len(values)

    assert report["success_share"] == pytest.approx(wanted)
    if report["clamped"]:
        assert beta == 0 and mean(0.0) >= wanted - 1e-12
    elif wanted > 1 - 1e-12:
        assert beta == math.inf
    else:
        assert mean(beta) == pytest.approx(wanted, rel=1e-6)


def test_a_beta_per_prompt_wants_a_number():
    with pytest.raises(ConfigError, match=r"weights\.ess_target: got 'success', expected a share .* beta_per: group"):
        WeightConfig(beta="auto", beta_per="group")
    assert WeightConfig(beta="auto", beta_per="group", kl_target=0.5).target == Target.of_kl(0.5)


@pytest.mark.parametrize("scheme", ["rwr", "awr"])
def test_auto_is_refused_where_no_partition_is_estimated(scheme):
    with pytest.raises(ConfigError, match=rf"weights\.beta: got 'auto', expected a number with the scheme {scheme}"):
        WeightConfig(scheme=scheme, beta="auto")
    # What doesn't look at β may be compared under the same settings.
    assert WeightConfig(scheme="rft", beta="auto").beta == "auto"
