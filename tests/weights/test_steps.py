"""Each step beside a loop over prompts and replies: many random conversations of every spread over turns."""

import functools
import itertools
import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.schemes import drift_weights, rwr_weights, swift_weights
from drift.weights.stage import effective_sample_size
from drift.weights.steps import (
    bound_negative,
    drop_unsolved,
    resample,
    shrink_unsolved,
    skip_small,
    stopping_factors,
    undo_adaptive,
)
from drift.weights.turns import TURNS, Conversations

thorough = settings(max_examples=60, derandomize=True, deadline=None)
BETA = 0.3
SPREADS = [
    ("terminal", {}),
    ("all", {}),
    ("first", {}),
    ("credited", {"rejected": 0.0}),
    ("credited", {"rejected": -0.4}),
]
every_spread = pytest.mark.parametrize(
    "spread", SPREADS, ids=lambda each: "".join(map(str, [each[0], *each[1].values()]))
)
either_scheme = pytest.mark.parametrize("scheme", ["drift", "graded"])
signed_scheme = pytest.mark.parametrize("scheme", ["swift", "graded"])


def single(group_N, weights=None, **changes):
    """Conversations of one turn each."""
    count = len(group_N)
    values = {
        "group_N": np.unique(group_N, return_inverse=True)[1].astype(np.intp),
        "returns_N": np.zeros(count),
        "success_N": np.ones(count, bool),
        "reward_N": np.zeros(count),
        "turns_N": np.ones(count, np.int32),
        "sample_N": np.zeros(count, np.int32),
        "first_wrong_N": np.zeros(count, bool),
        "stopped_N": np.ones(count, bool),
        "rejected_T": np.zeros(count, bool),
    }
    return Conversations(**{**values, **changes})


def weighed(data, scheme):
    """The weights of a scheme and the conversations; graded: rewards as they are, of either sign, many 0."""
    if scheme == "drift":
        weights_N = drift_weights(data.returns_N, data.group_N, beta=BETA)
        return weights_N, replace(data, beta=BETA, partitioned=True)
    return swift_weights(data.returns_N, data.group_N) if scheme == "swift" else data.reward_N.copy(), data


@pytest.fixture
def some(random_conversations, scheme, spread):
    """The weights of replies, and the conversations."""
    weights_N, data = weighed(random_conversations(11), scheme)
    name, own = spread
    return TURNS[name](weights_N, data, **own), data


def by_conversation(values_T, data):
    values, ends = values_T.tolist(), np.cumsum(data.turns_N).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def flat(lists):
    return [value for each in lists for value in each]


def prompts(data):
    """The positions of each prompt's conversations, in their order."""
    return positions(tuple(data.group_N.tolist()))


@functools.lru_cache(4)
def positions(groups):
    members = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    return members


def test_the_conversations_are_of_every_kind(random_conversations):
    data = random_conversations(11)
    members = prompts(data)
    assert len(data.returns_N) == 10_000 and set(data.turns_N.tolist()) == {1, 2, 3, 4, 5}
    assert sum(len(each) == 1 for each in members.values()) > 50
    assert sum(not data.success_N[each].any() for each in members.values()) > 200
    assert sum(len(set(data.returns_N[each].tolist())) < len(each) for each in members.values()) > 200
    assert (np.diff(data.group_N) < 0).sum() > 1000 and (data.returns_N < 0).sum() > 1000


# --- prompts without a success ---------------------------------------------------------------------------------------


@either_scheme
@every_spread
def test_nothing_is_left_of_prompts_without_a_success(some):
    weights_T, data = some
    expected = by_conversation(weights_T, data)
    for members in prompts(data).values():
        if not any(data.success_N[at] for at in members):
            for at in members:
                expected[at] = [0.0] * len(expected[at])
    assert drop_unsolved(weights_T, data).tolist() == flat(expected)


@every_spread
@pytest.mark.parametrize("scheme", ["drift"])
@pytest.mark.parametrize("prior", [0.0, 3.0, 16.0])
def test_the_partition_of_prompts_without_a_success_is_mixed_with_that_of_all(some, prior):
    weights_T, data = some
    expected, returns = by_conversation(weights_T, data), data.returns_N.tolist()
    shared = math.fsum(math.exp(value / BETA) for value in returns) / len(returns)
    for members in prompts(data).values():
        if any(data.success_N[at] for at in members):
            continue
        own = math.fsum(math.exp(returns[at] / BETA) for at in members)
        mixed = (own + prior * shared) / (len(members) + prior)
        for at in members:
            expected[at] = [value * (own / len(members)) / mixed for value in expected[at]]
    np.testing.assert_allclose(shrink_unsolved(weights_T, data, prior=prior), flat(expected), rtol=1e-9)


# Ties and zeros often, and each of: huge, tiny, negative, the smallest float, and anything between.
AWKWARD = st.sampled_from([0.0, 1.0, 1.0, 0.9, -0.25, -0.25, 1e300, -1e300, 1e-300, -1e-300, 5e-324, 1e16, 0.1])
RETURN = AWKWARD | st.floats(-1, 1) | st.floats(-1e300, 1e300)
ROWS = st.lists(st.tuples(st.integers(0, 3), RETURN), min_size=1, max_size=20)


def power(exponent):
    """e to an exact fraction; what is below e^-1000 is 0 in floats, what is above e^700 is not asked for."""
    return math.exp(float(max(exponent, Fraction(-1000))))


def unsolved(rows, beta):
    """DRIFT's weights, and prompts that were never solved."""
    group_N, returns_N = np.array([group for group, _ in rows]), np.array([value for _, value in rows])
    weights_N = drift_weights(returns_N, group_N, beta=beta)
    solved_N = np.zeros(len(rows), bool)
    return weights_N, single(group_N, returns_N=returns_N, success_N=solved_N, beta=beta, partitioned=True)


@thorough
@given(ROWS, st.sampled_from([1e-6, 0.1, 3.0, 1e300]), st.sampled_from([0.0, 0.5, 16.0, 1e12]))
@example([(0, -0.4)], 0.1, 16.0)
@example([(0, 1e300)] * 3 + [(1, 0.1)] * 7, 1e-6, 0.0)
def test_shrunken_weights_divide_by_the_mixture_of_both_partitions(rows, beta, prior):
    weights_N, data = unsolved(rows, beta)
    found_N = shrink_unsolved(weights_N, data, prior=prior)
    exact = [Fraction(value) for _, value in rows]
    for group in prompts(data).values():
        best = max(exact[at] for at in group)
        own = math.fsum(power((exact[at] - best) / Fraction(beta)) for at in group)
        # The shared Z in units of e^{best/β}, as a logarithm: it may be larger than any float.
        top = max(exact)
        log_shared = math.log(math.fsum(power((value - top) / Fraction(beta)) for value in exact) / len(exact))
        log_shared += min(float((top - best) / Fraction(beta)), 1e300)
        shared = math.exp(log_shared) if log_shared < 700 else math.inf
        mixed = (own + (prior * shared if prior else 0.0)) / (len(group) + prior)
        for at in group:
            assert found_N[at] == pytest.approx(power((exact[at] - best) / Fraction(beta)) / mixed, rel=1e-9, abs=1e-12)


def test_shrinking_leads_from_drift_to_rwr_and_takes_weight_from_prompts_of_low_returns():
    values = [1.0, 0.0, 0.0, -0.4, 0.0, -0.1, -0.25, -0.4]
    weights_N, data = unsolved([(int(at >= 4), value) for at, value in enumerate(values)], 0.1)
    totals = []
    for prior in (0.0, 4.0, 16.0, 1e15):
        totals.append(float(shrink_unsolved(weights_N, data, prior=prior)[4:].sum()))
    assert totals[0] == pytest.approx(4, rel=1e-12)
    assert totals == sorted(totals, reverse=True) and totals[1] < 0.01
    for prior, function in ((0.0, drift_weights), (1e15, rwr_weights)):
        expected = function(values, data.group_N, beta=0.1)
        assert shrink_unsolved(weights_N, data, prior=prior) == pytest.approx(expected, rel=1e-9)


def test_a_prompt_that_was_solved_keeps_its_weights_beside_those_that_were_not():
    rows = [(0, 1.0), (0, 0.0), (1, 0.0), (1, -0.25)]
    weights_N, data = unsolved(rows, 0.2)
    data = replace(data, success_N=np.array([True, False, False, False]))
    found_N = shrink_unsolved(weights_N, data, prior=4)
    assert found_N[:2].tolist() == weights_N[:2].tolist()
    tilted = [math.exp(value / 0.2) for _, value in rows]
    mixed = (sum(tilted[2:]) + 4 * sum(tilted) / 4) / (2 + 4)
    assert found_N[2:] == pytest.approx([tilted[2] / mixed, tilted[3] / mixed], rel=1e-12)


def test_at_the_limits_of_beta_shrinking_leaves_the_best_of_all_or_everything():
    values, group_N = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0, 0, 1, 1])
    for beta, expected in ((0.0, [2, 0, 0, 0]), (math.inf, [1, 1, 1, 1])):
        data = single(group_N, returns_N=values, success_N=values > 0, beta=beta, partitioned=True)
        weights_N = drift_weights(values, group_N, beta=beta)
        assert shrink_unsolved(weights_N, data, prior=16.0).tolist() == expected


def test_shrinking_is_refused_without_a_partition_and_for_fewer_than_no_conversations():
    data = single([0, 0])
    with pytest.raises(ConfigError, match="shrink_unsolved needs a scheme that divides by a prompt's Ẑ, drift or bolt"):
        shrink_unsolved(np.ones(2), data)
    with pytest.raises(ConfigError, match=r"weights\.steps\.shrink_unsolved: got -1, expected a number ≥ 0"):
        shrink_unsolved(np.ones(2), replace(data, partitioned=True, beta=1.0), prior=-1)


# --- negative weights ------------------------------------------------------------------------------------------------


@signed_scheme
@every_spread
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_each_prompts_negative_weights_are_bounded_over_all_its_replies(some, share):
    weights_T, data = some
    found_T = bound_negative(weights_T, data, share=share)
    expected, found = by_conversation(weights_T, data), by_conversation(found_T, data)
    for members in prompts(data).values():
        values = [value for at in members for value in expected[at]]
        up, down = sum(v for v in values if v > 0), -sum(v for v in values if v < 0)
        factor = min(1.0, share * up / down) if down else 1.0
        assert -sum(v for at in members for v in found[at] if v < 0) <= share * up * (1 + 1e-9)
        for at in members:
            expected[at] = [value * factor if value < 0 else value for value in expected[at]]
    np.testing.assert_allclose(found_T, flat(expected), rtol=1e-9, atol=1e-15)
    assert found_T[weights_T >= 0].tobytes() == weights_T[weights_T >= 0].tobytes()


ANY = st.lists(st.tuples(st.integers(0, 2), st.floats(-1e6, 1e6, allow_subnormal=False)), min_size=1, max_size=14)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(ANY, st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]))
def test_weights_of_any_size_are_bounded_as_a_loop_would(rows, share):
    data, weights = single([group for group, _ in rows]), [weight for _, weight in rows]
    found_N = bound_negative(np.array(weights), data, share=share)
    for members in prompts(data).values():
        up = sum(weights[at] for at in members if weights[at] > 0)
        down = -sum(weights[at] for at in members if weights[at] < 0)
        for at in members:
            factor = min(1.0, share * up / down) if weights[at] < 0 else 1.0
            assert found_N[at] == pytest.approx(weights[at] * factor, rel=1e-9, abs=1e-12)


def test_a_hand_count_of_bounded_weights():
    # The first prompt: 3 up, 6 down, at most 1.5; the second is within; the third has nothing to stand for.
    data = single([0, 0, 0, 1, 1, 2])
    found_N = bound_negative(np.array([3.0, -4, -2, 4, -1, -5]), data, share=0.5)
    assert found_N.tolist() == [3.0, -1.0, -0.5, 4.0, -1.0, 0.0]
    # A conversation whose three replies weigh −1 counts 3, and its mistakes count beside those of others.
    turns_N, mistakes = np.array([3, 2]), np.zeros(5, bool)
    data = replace(single([0, 0]), turns_N=turns_N, rejected_T=mistakes)
    found_T = bound_negative(np.array([-1.0, -1, -1, -0.5, 4]), data, share=0.25)
    assert found_T == pytest.approx(np.array([-1, -1, -1, -0.5, 3.5 * 4]) / 3.5, rel=1e-12)


def test_swift_is_left_as_it_is_by_a_share_of_one_and_halved_by_a_half():
    data = single(np.repeat(np.arange(40), 8))
    weights_N = swift_weights(np.random.default_rng(0).normal(size=320), data.group_N)
    assert bound_negative(weights_N, data, share=1.0).tobytes() == weights_N.tobytes()
    halved_N = bound_negative(weights_N, data, share=0.5)
    assert halved_N[weights_N < 0] == pytest.approx(0.5 * weights_N[weights_N < 0], rel=1e-9)


def test_weights_without_a_negative_one_are_the_very_same():
    weights_N = np.array([0.0, 2.5, 1e-300])
    assert bound_negative(weights_N, single([0, 0, 0]), share=0.0).tobytes() == weights_N.tobytes()
    with pytest.raises(ConfigError, match=r"weights\.steps\.bound_negative: got -0\.1, expected a number ≥ 0"):
        bound_negative(weights_N, single([0, 0, 0]), share=-0.1)


# --- weights too small to be worth computing -------------------------------------------------------------------------


def too_small(masses, members, share):
    """The definition: a prompt's smallest, while they hold no more than the share together."""
    total, dropped, small = sum(masses[at] for at in members), 0.0, set()
    for at in sorted(members, key=lambda at: masses[at]):
        dropped += masses[at]
        if dropped <= share * total:
            small.add(at)
    return small


@either_scheme
@every_spread
@pytest.mark.parametrize("share", [0.001, 0.27])
def test_conversations_of_the_smallest_weights_go_up_to_their_share(some, share):
    weights_T, data = some
    expected, gone = by_conversation(weights_T, data), 0
    # Added up as there, so that what ties there ties here.
    masses = data.total(np.abs(weights_T)).tolist()
    for members in prompts(data).values():
        for at in too_small(masses, members, share):
            gone += any(expected[at])
            expected[at] = [0.0] * len(expected[at])
    assert skip_small(weights_T, data, share=share).tolist() == flat(expected)
    # No reward is as small as a thousandth of others.
    assert gone > 10 or (share == 0.001 and 0.1 in weights_T)
    assert skip_small(weights_T, data, share=0.0).tobytes() == weights_T.tobytes()


WEIGHT = st.sampled_from([0.0, 1.0, -2.0, 1e-9, 2.0**-12, -(2.0**-11), 64.0])


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.tuples(WEIGHT, st.integers(0, 3)), min_size=1, max_size=24), st.sampled_from([0.0, 1e-3, 0.27]))
def test_ties_and_zeros_go_as_a_walk_from_the_smallest_says(rows, share):
    weights, data = [weight for weight, _ in rows], single([group for _, group in rows])
    found_N = skip_small(np.array(weights), data, share=share)
    for members in prompts(data).values():
        gone = too_small([abs(weight) for weight in weights], members, share) if share else set()
        assert [found_N[at] for at in members] == [0.0 if at in gone else weights[at] for at in members]
        # A prompt with any weight keeps some.
        assert any(found_N[at] for at in members) == any(weights[at] for at in members)


def test_a_published_prompt_loses_its_failures_and_uniform_weights_lose_nothing():
    # Three successes and thirteen failures at β = 0.1: e^{R/β} with R = 1 or −0.4.
    data, weights_N = single([0] * 16), drift_weights([1.0] * 3 + [-0.4] * 13, [0] * 16, beta=0.1)
    assert skip_small(weights_N, data).tolist() == [*weights_N[:3].tolist(), *[0.0] * 13]
    assert skip_small(np.ones(16), data).tolist() == [1.0] * 16
    with pytest.raises(ConfigError, match=r"weights\.steps\.skip_small: got 1\.0, expected a share of at least 0"):
        skip_small(weights_N, data, share=1.0)


# --- drawing by weight -----------------------------------------------------------------------------------------------


def drawn(masses, members, share, shift):
    """The definition: for each point, walk along the prompt until the conversation that it falls on."""
    counts = dict.fromkeys(members, 0)
    total, points = sum(masses[at] for at in members), max(1, round(share * len(members)))
    for point in range(points if total else 0):
        place, walked = (point + 1 - shift) * total / points, 0.0
        for at in members:
            walked += masses[at]
            if place <= walked:
                counts[at] += 1
                break
    return {at: counts[at] * total / points / masses[at] if counts[at] else 0.0 for at in members}


@either_scheme
@every_spread
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_points_fall_where_a_walk_along_the_prompt_puts_them(some, share):
    weights_T, data = some
    expected = by_conversation(weights_T, data)
    masses = [sum(map(abs, each)) for each in expected]
    shifts = np.random.default_rng(5).random(int(data.group_N.max()) + 1)
    for group, members in prompts(data).items():
        for at, factor in drawn(masses, members, share, shifts[group]).items():
            expected[at] = [value * factor for value in expected[at]]
    found_T = resample(weights_T, data, share=share, seed=5)
    np.testing.assert_allclose(found_T, flat(expected), rtol=1e-9, atol=1e-15)
    assert found_T.tobytes() != resample(weights_T, data, share=share, seed=6).tobytes()


# Sums of these are exact, so that the two ways can't differ by rounding at a conversation's end.
EXACT = st.sampled_from([0.0, 0.25, -0.5, 1.0, 3.0, -2.0])


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(EXACT, st.integers(0, 3)), min_size=1, max_size=24),
    st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_points_fall_on_few_conversations_as_a_walk_puts_them(rows, share, seed):
    weights, data = [weight for weight, _ in rows], single([group for _, group in rows])
    found_N = resample(np.array(weights), data, share=share, seed=seed)
    shifts = np.random.default_rng(seed).random(int(data.group_N.max()) + 1)
    for group, members in prompts(data).items():
        factors = drawn([abs(weight) for weight in weights], members, share, shifts[group])
        assert [found_N[at] for at in members] == pytest.approx(
            [weights[at] * factors[at] for at in members], abs=1e-12
        )


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40), st.integers(0, 99))
def test_a_prompt_keeps_its_mass_whatever_the_weights(weights, seed):
    scaled_N = np.array(weights) / 64
    found_N = resample(scaled_N, single([0] * len(weights)), share=0.5, seed=seed)
    np.testing.assert_allclose(np.abs(found_N).sum(), np.abs(scaled_N).sum(), rtol=1e-12)
    assert np.count_nonzero(found_N) <= max(1, round(len(weights) / 2))
    assert (found_N[scaled_N == 0] == 0).all() and (np.sign(found_N) * np.sign(scaled_N) >= 0).all()


def test_the_mean_over_many_draws_is_the_weight_and_the_effective_sample_size_grows():
    rng = np.random.default_rng(0)
    weights_N = np.exp(rng.normal(size=64)) * rng.choice([-1, 1], 64)
    # Four prompts of sixteen, 20,000 times: each has a shift of its own.
    data = single(np.repeat(np.arange(4 * 20_000), 16))
    draws = resample(np.tile(weights_N, 20_000), data, share=0.25).reshape(20_000, 64)
    error_N = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - weights_N) < 5 * error_N + 1e-12).all()
    assert (np.count_nonzero(draws.reshape(-1, 4, 16), axis=2) <= 4).all()
    # Four equal weights per prompt at most; repeated ones are fewer and heavier.
    kept = draws[0][draws[0] != 0]
    assert effective_sample_size(kept) > 0.5 * len(kept)


def test_equal_weights_drawn_as_often_as_there_are_conversations_stay_as_they_are():
    data = single(np.repeat([0, 1, 2], 4))
    np.testing.assert_allclose(resample(np.ones(12), data, share=1.0, seed=7), np.ones(12), rtol=1e-12)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match=re.escape(f"weights.steps.resample: got {share}, expected a share")):
            resample(np.ones(12), data, share=share)


# --- adaptive sampling -----------------------------------------------------------------------------------------------

# Kinds of trajectory with their chance and success; a function of the trajectory that is not its success.
CHANCE = [Fraction(1, 10), Fraction(1, 10), Fraction(3, 10), Fraction(1, 2)]
SOLVED = [True, True, False, False]
VALUE = [Fraction(7), Fraction(-2), Fraction(3), Fraction(0)]


def sampled(first, samples):
    """Every prompt that adaptive sampling can bring about: its kinds in order, and their chance."""
    for kinds in itertools.product(range(4), repeat=first):
        chance = math.prod(CHANCE[kind] for kind in kinds)
        if len({SOLVED[kind] for kind in kinds}) == 1:
            yield kinds, chance
        else:
            for more in itertools.product(range(4), repeat=samples - first):
                yield (*kinds, *more), chance * math.prod(CHANCE[kind] for kind in more)


def factors(kinds, first):
    solved_N, first_N = [SOLVED[kind] for kind in kinds], np.arange(len(kinds)) < first
    return stopping_factors(solved_N, first_N, np.zeros(len(kinds), np.intp))


@pytest.mark.parametrize(("first", "samples"), [(2, 4), (2, 5), (3, 5), (3, 3)])
def test_the_corrected_mean_is_unbiased_and_no_noisier_than_the_first_rollouts(first, samples):
    expected = float(sum(chance * value for chance, value in zip(CHANCE, VALUE, strict=True)))
    total = plain = corrected = square = first_square = 0.0
    for kinds, chance in sampled(first, samples):
        values = np.array([float(VALUE[kind]) for kind in kinds])
        factors_N = factors(kinds, first)
        assert factors_N.sum() == pytest.approx(first, rel=1e-12) and (factors_N > 0).all()
        estimate = float((factors_N * values).sum()) / first
        total += float(chance)
        plain += float(chance) * values.mean()
        corrected += float(chance) * estimate
        square += float(chance) * estimate**2
        first_square += float(chance) * values[:first].mean() ** 2
    assert total == pytest.approx(1, rel=1e-12)
    assert corrected == pytest.approx(expected, rel=1e-9)
    assert square <= first_square * (1 + 1e-12)
    # What is undone is there: the plain mean is off, unless nobody was stopped early.
    assert (abs(plain - expected) > 0.05) == (samples > first)
    assert samples == first or square < 0.95 * first_square


def test_factors_are_what_counting_the_orders_gives():
    for size, solved, first in [(5, 1, 2), (5, 2, 3), (16, 1, 4), (7, 6, 3)]:
        outcomes_N = [True] * solved + [False] * (size - solved)
        # Every choice of who came first, of those that hold both; how often each is among them.
        chosen = [c for c in itertools.combinations(range(size), first) if len({outcomes_N[i] for i in c}) == 2]
        expected = [sum(at in c for c in chosen) / len(chosen) for at in range(size)]
        first_N = np.zeros(size, bool)
        first_N[list(chosen[0])] = True
        assert stopping_factors(outcomes_N, first_N, np.zeros(size, np.intp)) == pytest.approx(expected, rel=1e-12)


def test_prompts_are_counted_apart_and_those_with_nothing_but_first_rollouts_keep_theirs():
    index_N = np.array([0, 1, 0, 1, 0, 1, 1, 2], np.intp)
    success_N = [True, True, True, False, True, False, False, True]
    first_N = [True, True, True, True, True, False, False, False]
    # Prompt 0 agreed; prompt 1 has one success in four, which was among the first two for sure; 2 lost its first.
    found_N = stopping_factors(success_N, first_N, index_N)
    assert found_N == pytest.approx([1, 1, 1, 1 / 3, 1, 1 / 3, 1 / 3, 1], rel=1e-12)


@functools.cache
def factor_of(size, solved, first, success):
    """E[j | 0 < j < k]/s of a success and E[k − j | …]/(K − s) of a failure, term by term of the hypergeometric law."""
    chances = {j: math.comb(solved, j) * math.comb(size - solved, first - j) for j in range(1, first)}
    total = sum(chances.values())
    if first == 0 or size == first:
        return 1.0
    if solved in (0, size) or not total:
        return first / size
    mean = Fraction(sum(j * chance for j, chance in chances.items()), total)
    return float(mean / solved if success else (first - mean) / (size - solved))


@either_scheme
@every_spread
@pytest.mark.parametrize("first", [1, 4])
def test_adaptive_sampling_is_undone_for_every_reply(some, first):
    weights_T, data = some
    data = replace(data, first=first)
    expected, returns = by_conversation(weights_T, data), data.returns_N.tolist()
    for members in prompts(data).values():
        solved, came_first = sum(data.success_N[members].tolist()), min(first, len(members))
        size, right = len(members), data.success_N[members].tolist()
        own = {at: factor_of(size, solved, came_first, ok) for at, ok in zip(members, right, strict=True)}
        if data.partitioned:
            # What the prompt's weights divide by is the corrected mean of e^{R/β} too.
            plain = math.fsum(math.exp(returns[at] / BETA) for at in members) / len(members)
            corrected = math.fsum(own[at] * math.exp(returns[at] / BETA) for at in members) / sum(own.values())
            own = {at: factor * plain / corrected for at, factor in own.items()}
        for at in members:
            expected[at] = [value * own[at] for value in expected[at]]
    np.testing.assert_allclose(undo_adaptive(weights_T, data), flat(expected), rtol=1e-9, atol=1e-15)


def test_there_is_nothing_to_undo_where_every_prompt_was_sampled_alike():
    with pytest.raises(ConfigError, match="undo_adaptive is for adaptive sampling, and every prompt was sampled alike"):
        undo_adaptive(np.ones(2), single([0, 0]))
