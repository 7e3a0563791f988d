import itertools
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.evaluation.comparisons import align, holm, over_seeds
from drift.evaluation.intervals import spread
from drift.evaluation.metrics import Ratio

probabilities = st.lists(st.floats(0, 1), max_size=8)


def ratio(numerator, denominator=None):
    top = np.array(numerator, float)
    return Ratio(numerator_P=top, denominator_P=np.ones_like(top) if denominator is None else np.array(denominator))


def share(numerator):
    top = np.array(numerator, float)
    return Ratio(numerator_P=top, denominator_P=np.ones_like(top), least=0.0)


def logit(value):
    return np.log(value / (1 - value))


def apart(ratios_S):
    """Each seed with prompts of its own."""
    return align([([f"{seed}-{at}" for at in range(len(one.numerator_P))], one) for seed, one in enumerate(ratios_S)])


def naive_holm(p_values):
    """Every hypothesis is adjusted by the largest of the steps up to its own, one at a time."""
    ranked = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [0.0] * len(p_values)
    for place, i in enumerate(ranked):
        steps = [(len(p_values) - j) * p_values[ranked[j]] for j in range(place + 1)]
        found[i] = min(1.0, max(steps))
    return found


def closed_testing(p_values):
    """Holm is the closed test with Bonferroni: the largest |I| · min_{i∈I} p_i of the subsets I that hold i."""
    count = len(p_values)
    found = []
    for i in range(count):
        subsets = (s for size in range(1, count + 1) for s in itertools.combinations(range(count), size) if i in s)
        found.append(min(1.0, max(len(s) * min(p_values[j] for j in s) for s in subsets)))
    return found


def test_holm_of_four_p_values_by_hand():
    # 0.005·4 = 0.02; 0.01·3 = 0.03; 0.03·2 = 0.06; 0.04·1 = 0.04, raised to the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    # 0.4·3 and 0.5·2 pass 1.
    assert holm([0.4, 0.5, 0.6]) == pytest.approx([1.0, 1.0, 1.0], rel=1e-12)
    assert holm([0.04]) == pytest.approx([0.04], rel=1e-12)
    assert holm([]).tolist() == []


@settings(max_examples=100, derandomize=True, deadline=None)
@given(probabilities)
def test_holm_is_the_closed_test_it_stands_for(p_values):
    assert holm(p_values) == pytest.approx(closed_testing(p_values), rel=1e-12)
    assert holm(p_values) == pytest.approx(naive_holm(p_values), rel=1e-12)


def test_a_comparison_that_was_not_made_counts_for_nothing():
    found = holm([0.01, float("nan"), 0.02])
    assert np.isnan(found[1]) and found[[0, 2]] == pytest.approx(holm([0.01, 0.02]), rel=1e-12)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("inf")])
def test_holm_refuses_what_is_no_probability(wrong):
    with pytest.raises(ConfigError, match="p_values"):
        holm([0.5, wrong])


def test_holm_keeps_the_chance_of_any_false_claim():
    # Ten true hypotheses, uniform p-values: uncorrected 1 − 0.95¹⁰ = 40 % of families hold a false claim.
    p_values = np.random.default_rng(0).random((2000, 10))
    assert (p_values < 0.05).any(axis=1).mean() == pytest.approx(1 - 0.95**10, abs=0.04)
    # Four standard errors of a share of 5 % in 2,000 are 2 points.
    assert np.mean([(holm(family) < 0.05).any() for family in p_values]) == pytest.approx(0.05, abs=0.02)


def test_p_value_of_a_share_is_near_the_normal_one():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(400) < 0.6, rng.random(400) < 0.52
    z = (ours.mean() - theirs.mean()) / ((ours * 1.0 - theirs).std() / sqrt(400))
    found = over_seeds([share(ours)], [share(theirs)])
    assert found.p_value == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), rel=0.1)


@pytest.mark.parametrize("seed", range(30))
def test_p_is_below_five_per_cent_where_the_interval_over_seeds_leaves_out_zero(seed):
    rng = np.random.default_rng(seed)
    ours = [share(rng.random(40) < 0.8) for _ in range(3)]
    theirs = [share(rng.random(40) < 0.8 - 0.5 * rng.random()) for _ in range(3)]
    found = over_seeds(ours, theirs)
    # 250 of 10,000 draws in each tail: at most one of them apart.
    if abs(found.p_value - 0.05) > 2.01 / 10_000:
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_three_seeds_that_all_always_succeed_are_not_certain():
    found = over_seeds([share(np.ones(50))] * 3)
    assert found.high == 1.0 and 0.88 < found.low < 0.95
    again = over_seeds([share(np.ones(50))] * 3, [share(np.ones(50))] * 3)
    assert again.low < -0.03 and again.high > 0.03 and again.p_value == pytest.approx(1.0, abs=0.02)


def measured(rng, seeds, prompts, sd_seed, sd_prompt, sd_both, *, shared=True):
    """Prompt-level values of a crossed (or nested) design whose true mean is 0."""
    prompt = rng.normal(0, sd_prompt, prompts if shared else (seeds, prompts))
    return rng.normal(0, sd_seed, (seeds, 1)) + prompt + rng.normal(0, sd_both, (seeds, prompts))


@pytest.mark.parametrize("shared", [True, False])
def test_the_two_sources_of_variance_are_those_of_the_analysis_of_variance(shared):
    seeds, prompts = 4, 60
    values_SP = measured(np.random.default_rng(3), seeds, prompts, 0.5, 1.0, 0.7, shared=shared)
    ratios = [ratio(row) for row in values_SP]
    found = over_seeds(ratios if shared else apart(ratios))
    mean_S = values_SP.mean(axis=1)
    if shared:
        # Two-way: what seed and prompt do together is what is left when both means are taken off.
        left = values_SP - mean_S[:, None] - values_SP.mean(axis=0) + values_SP.mean()
        explained = (left**2).sum() / (seeds - 1) / prompts / prompts
        from_prompts = values_SP.mean(axis=0).var() / prompts
    else:
        explained = values_SP.var(axis=1).mean() / prompts
        from_prompts = explained / seeds
    assert found.value == pytest.approx(values_SP.mean(), rel=1e-9)
    # But for P/(P − 1).
    assert found.from_prompts == pytest.approx(from_prompts, rel=0.02)
    assert found.from_seeds == pytest.approx((mean_S.var(ddof=1) - explained) / seeds, rel=0.02)
    assert found.seeds == seeds


def coverage(sd_seed, sd_prompt, sd_both, *, shared, runs=400):
    rng = np.random.default_rng(7)
    held = naive = 0
    for _ in range(runs):
        values_SP = measured(rng, 3, 40, sd_seed, sd_prompt, sd_both, shared=shared)
        ratios = [ratio(row) for row in values_SP]
        ratios = ratios if shared else apart(ratios)
        found = over_seeds(ratios)
        held += found.low <= 0 <= found.high
        low, high = spread(ratios).ends()
        naive += low <= 0 <= high
    return held / runs, naive / runs


@pytest.mark.parametrize(
    ("sd_seed", "sd_prompt", "sd_both", "shared"),
    [
        (1.0, 0.5, 0.5, True),
        pytest.param(0.1, 1.0, 0.5, True, marks=pytest.mark.slow),
        (0.0, 1.0, 1.0, True),
        (0.1, 0.5, 0.5, False),
    ],
)
def test_three_seeds_cover_the_truth_as_often_as_they_should(sd_seed, sd_prompt, sd_both, shared):
    held, naive = coverage(sd_seed, sd_prompt, sd_both, shared=shared)
    # 400 runs know 95 % to 1.1 points; more than 95 is allowed, less by three of them is not.
    assert held >= 0.95 - 0.033
    if sd_seed == 1.0:
        # An interval over prompts alone takes three trainings for all there could be.
        assert naive < 0.4


def test_without_anything_from_prompts_the_interval_is_students():
    found = over_seeds([ratio(np.full(50, value)) for value in (0.2, 0.5, 0.8)])
    # t with 2 degrees of freedom at 97.5 %: 4.3027 (table); standard error 0.3/√3. 10,000 draws know it to 3 %.
    half = 4.3027 * 0.3 / sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.5 - half, abs=0.04), pytest.approx(0.5 + half, abs=0.04))
    assert (found.from_seeds, found.from_prompts) == (pytest.approx(0.03, rel=1e-9), pytest.approx(0, abs=1e-20))


def test_one_seed_gives_the_interval_over_prompts_and_no_variance_of_seeds():
    solved = share(np.random.default_rng(2).integers(0, 2, 80))
    found = over_seeds([solved])
    assert (found.low, found.high) == spread([solved]).ends()
    assert (found.from_seeds, found.seeds) == (None, 1)


@pytest.mark.parametrize(
    ("chances", "sd", "prompts"),
    [
        ((0.9,), 0.3, 40),
        ((0.99,), 0.0, 40),
        # Without logits 89 %.
        ((0.95,), 0.5, 300),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (((0.9,), 0.0, 40), ((0.99,), 0.3, 40), ((0.99, 0.95), 0.5, 300))
        ),
    ],
)
def test_three_seeds_of_shares_cover_the_truth_as_often_as_they_should(chances, sd, prompts):
    rng, held, runs = np.random.default_rng(8), 0, 400
    truth = chances[0] - sum(chances[1:])
    thresholds = [NormalDist().inv_cdf(chance) * sqrt(1 + sd**2) for chance in chances]
    for _ in range(runs):
        sides = [
            [share(row) for row in rng.standard_normal((3, prompts)) < threshold + sd * rng.standard_normal((3, 1))]
            for threshold in thresholds
        ]
        found = over_seeds(*sides)
        held += found.low <= truth <= found.high
    assert held / runs >= 0.93 - 2 * 0.0128


def test_seeds_of_shares_vary_in_logits():
    # So many prompts that they add nothing to be seen; t with 2 degrees of freedom, 10,000 draws.
    found = over_seeds([share(first) for first in np.arange(100_000) < np.array([[90_000], [95_000], [99_000]])])
    share_S = np.array([0.9, 0.95, 0.99])
    half = 4.3027 * np.std(logit(share_S), ddof=1) / sqrt(3)
    assert logit(found.low) - logit(share_S.mean()) == pytest.approx(-half, rel=0.04)
    assert logit(found.high) - logit(share_S.mean()) == pytest.approx(half, rel=0.04)


def test_two_seeds_that_agree_are_less_sure_than_one_is_of_its_prompts():
    same = share(np.ones(500))
    # Var_s of w²/12 with w = 1/500; Student's t with 1 degree of freedom lies beyond 12.706 in 2.5 %.
    half = 12.706 * sqrt(1 / 12 / 2) / 500
    low_of_one = spread([same]).ends()[0]
    assert low_of_one - half < over_seeds([same] * 2).low < low_of_one - 0.1 * half


@pytest.mark.parametrize(("chances", "seeds"), [((0.99,), 2), ((0.99, 0.99), 5)])
def test_seeds_near_one_that_lie_far_apart_hold_the_truth(chances, seeds):
    # 99 and 96 %; with the variance of the values, and one logit for both policies, 92 and 90 %.
    rng, held, runs = np.random.default_rng(9), 0, 400
    threshold = NormalDist().inv_cdf(0.99) * sqrt(1 + 0.5**2)
    for _ in range(runs):
        levels = threshold + 0.5 * rng.standard_normal((len(chances), seeds, 1))
        sides = [[share(row) for row in rng.standard_normal((seeds, 500)) < level] for level in levels]
        found = over_seeds(*sides)
        held += found.low <= chances[0] - sum(chances[1:]) <= found.high
    assert held / runs >= 0.94


def test_a_difference_is_paired_by_prompt_and_seed():
    rng = np.random.default_rng(4)
    # Seeds and prompts differ much, and the second method adds 0.1 to each prompt of each.
    theirs_SP = measured(rng, 3, 50, 1.0, 1.0, 1.0)
    ours_SP = theirs_SP + 0.1 + rng.normal(0, 0.01, theirs_SP.shape)
    ours, theirs = [ratio(row) for row in ours_SP], [ratio(row) for row in theirs_SP]
    found = over_seeds(ours, theirs)
    assert found.value == pytest.approx((ours_SP - theirs_SP).mean(), rel=1e-9)
    assert 0.08 < found.low < found.high < 0.12 and found.p_value <= 0.01
    unpaired = over_seeds(ours)
    assert unpaired.high - unpaired.low > 1


def test_seeds_without_a_value_are_left_out_and_counted():
    some, none = ratio([1, 0, 1, 1]), ratio([0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0])
    found = over_seeds([some, none, some])
    assert (found.value, found.seeds) == (0.75, 2)
    nothing = over_seeds([none])
    assert (nothing.value, nothing.low, nothing.p_value, nothing.seeds) == (None, None, None, 0)
    assert over_seeds([]).value is None


def test_designs_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="2 seeds"):
        over_seeds([ratio([1, 0])] * 2, [ratio([1, 0])])
    with pytest.raises(ConfigError, match="same prompts"):
        over_seeds([ratio([1, 0]), ratio([1])])
    with pytest.raises(ConfigError, match="same prompts"):
        over_seeds([ratio([1, 0])], [ratio([1])])
