import math
from statistics import NormalDist

import numpy as np
import pytest

from drift.evaluation.intervals import ratio_value, spread, student_quantile, student_tails
from drift.evaluation.metrics import Ratio

Z = NormalDist().inv_cdf(0.975)


def share(numerator, denominator=None, least=0.0):
    top = np.array(numerator, float)
    bottom = np.ones_like(top) if denominator is None else np.array(denominator, float)
    return Ratio(numerator_P=top, denominator_P=bottom, least=least)


def mean(numerator, denominator=None):
    return share(numerator, denominator, None)


def outcomes(prompts, chance, seed):
    return (np.random.default_rng(seed).random(prompts) < chance).astype(float)


def first(successes, prompts):
    return (np.arange(prompts) < successes).astype(float)


@pytest.mark.parametrize(("successes", "prompts"), [(0, 8), (3, 8), (49, 50), (50, 50), (120, 300)])
def test_a_share_of_single_conversations_has_the_interval_of_agresti_and_coull(successes, prompts):
    centre = (successes + 2) / (prompts + 4)
    half = Z * math.sqrt(centre * (1 - centre) / (prompts + 4))
    expected = max(0.0, centre - half), min(1.0, centre + half)
    assert spread([share(first(successes, prompts))]).ends() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("better", "worse", "prompts"), [(0, 0, 8), (5, 2, 40), (8, 0, 8), (0, 3, 100)])
def test_a_difference_of_single_conversations_has_the_interval_of_bonett_and_price(better, worse, prompts):
    ours, theirs = first(better, prompts), np.roll(first(worse, prompts), better)
    gained, lost = (better + 1) / (prompts + 2), (worse + 1) / (prompts + 2)
    half = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / (prompts + 2))
    expected = max(-1.0, gained - lost - half), min(1.0, gained - lost + half)
    assert spread([share(ours)], [share(theirs)]).ends() == pytest.approx(expected, rel=1e-12)


def test_a_mean_has_students_interval():
    values_P = [3.0, 5.0, 4.0, 1.0]
    # t with 3 degrees of freedom at 97.5 % (table): 3.1824; variance 35/12, over 4.
    half = 3.1824 * math.sqrt(35 / 12 / 4)
    assert spread([mean(values_P)]).ends() == pytest.approx((3.25 - half, 3.25 + half), rel=1e-4)
    assert spread([mean([2.0])]).ends() == (None, None) and spread([mean([2.0])]).p_value() is None


def test_nothing_but_successes_is_not_certainty():
    low, high = spread([share(np.ones(50))]).ends()
    # Of 50 prompts all succeed in one run of twenty where the chance is 94.2 %.
    assert 0.88 < low < 0.05 ** (1 / 50) and high == 1.0
    low, high = spread([share(np.zeros(50))], [share(np.zeros(50))]).ends()
    assert low == pytest.approx(-high) and 0.03 < high < 0.08
    # Four samples that all succeed may be four times the same.
    assert spread([share(np.full(50, 4.0), np.full(50, 4.0))]).ends()[0] == pytest.approx(
        spread([share(np.ones(50))]).ends()[0], rel=1e-12
    )


def test_samples_of_a_prompt_that_agree_do_not_narrow_the_interval_and_independent_ones_do():
    solved_P = outcomes(120, 0.4, 4)
    once, eightfold = spread([share(solved_P)]), spread([share(8 * solved_P, np.full(120, 8.0))])
    assert eightfold.ends() == pytest.approx(once.ends(), rel=1e-12)
    counts_P = np.random.default_rng(5).binomial(8, 0.4, 120)
    independent = spread([share(counts_P, np.full(120, 8.0))])
    assert math.sqrt(once.variance / independent.variance) == pytest.approx(math.sqrt(8), rel=0.15)


def test_a_share_above_a_floor_has_the_interval_of_the_share_stretched():
    solved_P, floor = outcomes(60, 0.9, 1), 0.25
    low, high = spread([share(solved_P)]).ends()
    above = share(solved_P - floor, np.full(60, 1 - floor), -floor / (1 - floor))
    stretched = ((low - floor) / (1 - floor), (high - floor) / (1 - floor))
    assert spread([above]).ends() == pytest.approx(stretched, rel=1e-9)


def test_paired_differences_have_the_error_of_the_differences():
    # The second policy solves what the first does, and a few prompts more.
    ours_P = outcomes(300, 0.5, 7)
    theirs_P = np.where(outcomes(300, 0.1, 8) > 0, 1.0, ours_P)
    paired = spread([share(theirs_P)], [share(ours_P)])
    assert math.sqrt(paired.variance) == pytest.approx((theirs_P - ours_P).std() / math.sqrt(300), rel=0.08)
    backward = spread([share(ours_P)], [share(theirs_P)])
    assert (backward.ends()[0], backward.ends()[1]) == (-paired.ends()[1], -paired.ends()[0])


def test_a_ratio_of_sums_has_the_error_that_resampling_gives():
    rng = np.random.default_rng(3)
    bottom_P = rng.integers(1, 9, 400).astype(float)
    top_P = bottom_P * rng.random(400) + rng.normal(0, 0.3, 400)
    times_BP = rng.multinomial(400, np.full(400, 1 / 400), size=4000)
    resampled_B = (times_BP @ top_P) / (times_BP @ bottom_P)
    assert math.sqrt(spread([mean(top_P, bottom_P)]).variance) == pytest.approx(resampled_B.std(), rel=0.05)


@pytest.mark.parametrize("make", [share, mean])
@pytest.mark.parametrize("seed", range(40))
def test_p_is_below_five_per_cent_exactly_where_the_interval_leaves_out_zero(make, seed):
    rng = np.random.default_rng(seed)
    prompts = int(rng.integers(4, 60))
    ours, theirs = rng.random(prompts) < 0.7, rng.random(prompts) < rng.random()
    found = spread([make(ours)], [make(theirs)])
    low, high = found.ends()
    assert (found.p_value() < 0.05) == (low > 0 or high < 0)


def test_no_difference_at_all_has_p_1():
    assert spread([mean([1, 2, 3])], [mean([1, 2, 3])]).p_value() == 1.0
    assert spread([share([1, 0, 1])], [share([1, 0, 1])]).p_value() == 1.0


@pytest.mark.parametrize(
    # Tables of Student's distribution: the point beyond whose ± lie 5 %.
    ("freedom", "point"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (7, 2.3646), (10, 2.2281), (30, 2.0423), (1000, 1.9623), (math.inf, Z)],
)
def test_students_distribution_is_that_of_the_tables(freedom, point):
    assert student_quantile(freedom) == pytest.approx(point, abs=6e-5)
    assert student_tails(point, freedom) == pytest.approx(0.05, abs=2e-5)
    assert student_tails(0.0, freedom) == 1.0


# Cells of the table in docs/method.md (benchmarks/coverage.py), where the percentile bootstrap covered 8 to 90 %.
@pytest.mark.parametrize(("prompts", "samples", "r"), [(8, 4, 0.0), (50, 1, 0.0), (50, 4, 0.3), (8, 4, 1.0)])
@pytest.mark.parametrize("chance", [0.5, 0.9, 0.99])
def test_intervals_of_shares_hold_as_often_as_they_say(prompts, samples, r, chance):
    rng, runs = np.random.default_rng(6), 600
    own, noise = rng.standard_normal((runs, prompts, 1)), rng.standard_normal((runs, prompts, samples))
    below = math.sqrt(r) * own + math.sqrt(1 - r) * noise < NormalDist().inv_cdf(chance)
    held = [spread([share(row, np.full(prompts, samples))]).ends() for row in below.sum(axis=-1)]
    # 600 runs know 93 % to 1.04 points.
    assert np.mean([low <= chance <= high for low, high in held]) >= 0.93 - 2 * 0.0104


@pytest.mark.parametrize("pair", [(0.5, 0.5), (0.99, 0.9), (0.99, 0.99)])
@pytest.mark.parametrize(("prompts", "samples"), [(8, 4), (50, 1), (50, 4)])
def test_intervals_of_paired_differences_hold_as_often_as_they_say(prompts, samples, pair):
    rng, runs = np.random.default_rng(7), 600
    shared = math.sqrt(0.4) * rng.standard_normal((runs, prompts, 1))
    ours, theirs = (
        (shared + math.sqrt(0.6) * rng.standard_normal((runs, prompts, samples)) < NormalDist().inv_cdf(chance)).sum(
            axis=-1
        )
        for chance in pair
    )
    counts = np.full(prompts, samples)
    held = [spread([share(a, counts)], [share(b, counts)]).ends() for a, b in zip(ours, theirs, strict=True)]
    assert np.mean([low <= pair[0] - pair[1] + 1e-12 and pair[0] - pair[1] - 1e-12 <= high for low, high in held]) >= (
        0.93 - 2 * 0.0104
    )


def test_the_point_value_is_the_ratio_of_sums_and_none_over_nothing():
    # Not the mean of per-prompt ratios, which would be (1 + 0.25)/2.
    assert ratio_value(share([1, 1], [1, 4])) == pytest.approx(2 / 5, rel=1e-15)
    assert ratio_value(share([0, 0], [0, 0])) is None
    assert ratio_value(share([0], [3])) == 0.0
