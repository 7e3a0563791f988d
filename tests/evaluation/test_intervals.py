import itertools
from collections import Counter

import numpy as np
import pytest

from drift.evaluation.intervals import bootstrap, interval, ratio_value
from drift.evaluation.metrics import Ratio


def ratio(numerator, denominator):
    return Ratio(numerator_P=np.array(numerator, float), denominator_P=np.array(denominator, float))


def outcomes(prompts, share, seed):
    return (np.random.default_rng(seed).random(prompts) < share).astype(float)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_standard_error_of_a_share_matches_the_binomial_formula(share):
    prompts, resamples = 200, 6000
    solved_P = outcomes(prompts, share, 1)
    drawn_B = bootstrap([ratio(solved_P, np.ones(prompts))], seed=0, resamples=resamples)[:, 0]
    observed = solved_P.mean()
    # 6,000 resamples know a standard deviation to 1/√12000 = 0.9 %; 4 % is four of those.
    assert drawn_B.std() == pytest.approx((observed * (1 - observed) / prompts) ** 0.5, rel=0.04)
    assert drawn_B.mean() == pytest.approx(observed, abs=4 * drawn_B.std() / resamples**0.5)


def test_interval_of_a_share_is_near_the_normal_one():
    prompts = 1000
    solved_P = outcomes(prompts, 0.5, 2)
    low, high = interval(bootstrap([ratio(solved_P, np.ones(prompts))], seed=3)[:, 0])
    observed = solved_P.mean()
    half = 1.96 * (observed * (1 - observed) / prompts) ** 0.5
    assert low == pytest.approx(observed - half, abs=0.15 * half)
    assert high == pytest.approx(observed + half, abs=0.15 * half)


def test_resampled_ratios_have_the_distribution_that_enumeration_gives():
    # Three prompts with 1, 2 and 4 conversations: all 27 draws can be listed.
    top, bottom = [1, 0, 3], [1, 2, 4]
    exact: Counter[float] = Counter()
    for draw in itertools.product(range(3), repeat=3):
        exact[round(sum(top[i] for i in draw) / sum(bottom[i] for i in draw), 9)] += 1 / 27
    resamples = 20_000
    drawn_B = bootstrap([ratio(top, bottom)], seed=5, resamples=resamples)[:, 0]
    seen = Counter(np.round(drawn_B, 9).tolist())
    assert set(seen) == set(exact)
    for value, probability in exact.items():
        error = (probability * (1 - probability) / resamples) ** 0.5
        assert abs(seen[value] / resamples - probability) < 4 * error


def test_identical_samples_of_a_prompt_do_not_narrow_the_interval():
    solved_P = outcomes(120, 0.4, 4)
    once = bootstrap([ratio(solved_P, np.ones(120))], seed=1)[:, 0]
    eightfold = bootstrap([ratio(8 * solved_P, np.full(120, 8.0))], seed=1)[:, 0]
    assert interval(eightfold) == pytest.approx(interval(once), rel=1e-12)
    # Taking the 960 conversations for independent would promise an interval √8 times as narrow.
    unclustered = bootstrap([ratio(np.repeat(solved_P, 8), np.ones(960))], seed=1)[:, 0]
    assert once.std() / unclustered.std() == pytest.approx(8**0.5, rel=0.1)


def test_all_metrics_are_drawn_on_the_same_prompts():
    solved_P = outcomes(50, 0.5, 6)
    one_P = np.ones(50)
    drawn_BM = bootstrap([ratio(solved_P, one_P), ratio(1 - solved_P, one_P), ratio(2 * solved_P, one_P)], seed=2)
    assert drawn_BM[:, 0] + drawn_BM[:, 1] == pytest.approx(np.ones(len(drawn_BM)), rel=1e-12)
    assert drawn_BM[:, 2] == pytest.approx(2 * drawn_BM[:, 0], rel=1e-12)


def test_paired_differences_have_the_standard_error_of_the_differences():
    # The second policy solves what the first does, and a few prompts more.
    ours_P = outcomes(300, 0.5, 7)
    theirs_P = np.where(outcomes(300, 0.1, 8) > 0, 1.0, ours_P)
    one_P = np.ones(300)
    ours_B, theirs_B = (bootstrap([ratio(x, one_P)], seed=3, resamples=4000)[:, 0] for x in (ours_P, theirs_P))
    closed_form = (theirs_P - ours_P).std() / 300**0.5
    assert (theirs_B - ours_B).std() == pytest.approx(closed_form, rel=0.05)
    independent_B = bootstrap([ratio(theirs_P, one_P)], seed=99, resamples=4000)[:, 0]
    assert (theirs_B - ours_B).std() < 0.5 * (independent_B - ours_B).std()


@pytest.mark.parametrize("resamples", [1, 99, 100, 101, 250])
def test_as_many_resamples_as_asked_for_are_drawn_and_none_twice(resamples):
    # Draws come in chunks; continuous values make repeated chunks visible.
    top = np.random.default_rng(0).random(30)
    drawn_BM = bootstrap([ratio(top, np.ones(30))], seed=0, resamples=resamples)
    assert len(drawn_BM) == resamples == len(set(drawn_BM[:, 0].tolist()))


def test_the_same_seed_gives_the_same_draws_and_another_seed_others():
    numbers = [ratio(outcomes(40, 0.5, 9), np.ones(40))]
    assert bootstrap(numbers, seed=4).tolist() == bootstrap(numbers, seed=4).tolist()
    assert bootstrap(numbers, seed=4).tolist() != bootstrap(numbers, seed=5).tolist()


def test_draws_that_leave_nothing_to_divide_by_are_nan_and_left_out_of_the_interval():
    # Two prompts, one with an empty denominator: (½)² of the draws hold it twice.
    drawn_B = bootstrap([ratio([0, 3], [0, 4])], seed=0, resamples=10_000)[:, 0]
    assert np.isnan(drawn_B).mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 10_000) ** 0.5)
    assert interval(drawn_B) == (0.75, 0.75)


def test_interval_is_the_middle_95_percent():
    # 0…1000: 25 values in a thousand lie below 25, as many above 975.
    values_B = np.arange(1001.0)
    assert interval(np.random.default_rng(0).permutation(values_B)) == pytest.approx((25, 975), rel=1e-12)


def test_interval_of_nothing_is_none():
    assert interval(np.array([np.nan, np.inf])) == (None, None)


def test_the_point_value_is_the_ratio_of_sums_and_none_over_nothing():
    # Not the mean of per-prompt ratios, which would be (1 + 0.25)/2.
    assert ratio_value(ratio([1, 1], [1, 4])) == pytest.approx(2 / 5, rel=1e-15)
    assert ratio_value(ratio([0, 0], [0, 0])) is None
    assert ratio_value(ratio([0], [3])) == 0.0
