"""The report on K beside brute force: all subsets, and a bootstrap that resamples."""

import itertools
import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.choosing import (
    ERRORS,
    RolloutReport,
    mixed_share_at,
    partition_bound,
    partition_error,
    rollouts_for_bound,
    rollouts_for_error,
)
from drift.weights.diagnostics import group_effective_sample_size, mixed_share
from drift.weights.exponential import drift_weights

quick = settings(max_examples=60, derandomize=True, deadline=None)
PROMPTS = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5)


@quick
@given(PROMPTS, st.integers(1, 6))
def test_the_expected_mixed_share_is_the_mean_over_all_subsets(prompts, k):
    kept = [prompt for prompt in prompts if len(prompt) >= k]
    found = mixed_share_at([sum(p) for p in prompts], [len(p) for p in prompts], k)
    if not kept:
        assert found is None
        return
    # Every choice of k of the K rollouts, one by one.
    shares = [statistics.fmean(len({*chosen}) == 2 for chosen in itertools.combinations(p, k)) for p in kept]
    assert found == pytest.approx(statistics.fmean(shares), abs=1e-12)


def test_at_k_the_share_is_that_of_the_data_and_one_rollout_is_never_mixed():
    prompts = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    success_N, group_N = np.concatenate(prompts), np.repeat(range(4), 4)
    counts, sizes = [sum(p) for p in prompts], [4] * 4
    assert mixed_share_at(counts, sizes, 4) == mixed_share(success_N, group_N) == 0.5
    assert mixed_share_at(counts, sizes, 1) == 0
    # Two of four: 1 − (1 + 1)/6 for two successes, 1 − 3/6 for one.
    assert mixed_share_at(counts, sizes, 2) == pytest.approx((4 / 6 + 3 / 6) / 4, rel=1e-12)
    with pytest.raises(ConfigError, match="k: got 0"):
        mixed_share_at(counts, sizes, 0)


def test_the_error_of_the_partition_is_that_of_a_bootstrap_over_the_rollouts():
    rng = np.random.default_rng(0)
    values = np.exp(np.array([1.0, 0.9, 0.9, 0.0, -0.1, -0.25, -0.4, -0.4]) / 0.3)
    cv = values.std() / values.mean()
    for k in (2, 8, 32):
        means = rng.choice(values, size=(40_000, k)).mean(axis=1)
        assert partition_error([cv], k)[0] == pytest.approx(means.std() / values.mean(), rel=0.02)


def test_prop_7_and_its_inverse_agree_with_the_formula():
    spread, error, confidence = math.exp(1 / 0.5) - math.exp(-0.4 / 0.5), 0.8, 0.9
    # K ≥ Δ² log(2/δ) / (2ε²) with δ = 0.1.
    needed = math.ceil(spread**2 * math.log(2 / 0.1) / (2 * error**2))
    assert rollouts_for_bound([spread], error, confidence).tolist() == [needed]
    assert partition_bound([spread], needed, confidence)[0] <= error
    assert partition_bound([spread], needed - 1, confidence)[0] > error


@quick
@given(st.floats(0, 50), st.sampled_from([0.5, 0.1, 0.03]))
def test_the_rollouts_for_an_error_are_the_fewest(variation, error):
    needed = int(rollouts_for_error([variation], error)[0])
    assert partition_error([variation], needed)[0] <= error * (1 + 1e-9)
    assert needed == 1 or partition_error([variation], needed - 1)[0] > error * (1 - 1e-9)


def naive_report(prompts, beta):
    """The report, a prompt at a time: prompts are lists of (return, success)."""
    everything = [value for prompt in prompts for value, _ in prompt]
    low, high = min(everything), max(everything)
    spreads, variations, sizes = [], [], []
    for prompt in prompts:
        values = [math.exp(value / beta) for value, _ in prompt]
        mean = statistics.fmean(values)
        spreads.append((math.exp(high / beta) - math.exp(low / beta)) / mean)
        if len({success for _, success in prompt}) == 2:
            variations.append(statistics.pstdev(values) / mean)
            sizes.append(len(prompt))
    return spreads, variations, sizes


@quick
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([1.0, 0.9, 0.0, -0.25, -0.4]), st.booleans()), min_size=1, max_size=8),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 3),
)
def test_the_report_is_what_a_loop_over_prompts_gives_however_they_are_parted(prompts, parts):
    report = RolloutReport()
    for piece in (prompts[at::parts] for at in range(parts)):
        if piece:
            rows = [(at, *row) for at, prompt in enumerate(piece) for row in prompt]
            index_N, returns_N, success_N = (np.array(column) for column in zip(*rows, strict=True))
            report.add(returns_N, index_N, success_N, 0.2)
    found = report.report()
    assert json.loads(json.dumps(found)) == found
    largest = max(len(prompt) for prompt in prompts)
    assert found["k"] == sorted({k for k in (1, 2, 4, 8) if k <= largest} | {largest})
    spreads, variations, sizes = naive_report(prompts, 0.2)
    for at, k in enumerate(found["k"]):
        counts = [(sum(success for _, success in prompt), len(prompt)) for prompt in prompts]
        assert found["mixed_share"][at] == pytest.approx(mixed_share_at(*zip(*counts, strict=True), k), abs=1e-12)
        bound = statistics.median(spreads) * math.sqrt(math.log(2 / 0.05) / 2 / k)
        assert found["bound"][at] == pytest.approx(bound, rel=1e-9)
        wanted = statistics.median(variations) / math.sqrt(k) if variations else None
        assert found["error"][at] == (pytest.approx(wanted, rel=1e-9, abs=1e-12) if variations else None)
    for error in ERRORS:
        needs = [max(1, math.ceil((cv / error) ** 2 * (1 - 1e-9))) for cv in variations]
        got = found["needed"][str(error)]
        assert got["median"] == (statistics.median(needs) if needs else None)
        assert got["more"] == sum(max(0, need - size) for need, size in zip(needs, sizes, strict=True))


def test_the_variation_is_told_by_the_effective_sample_size():
    returns_N, group_N = np.array([1.0, 0.9, 0.0, -0.4, 0.0, -0.1]), np.array([0, 0, 0, 0, 1, 1])
    weights_N = drift_weights(returns_N, group_N, beta=0.3)
    ess_G = group_effective_sample_size(weights_N, group_N)
    by_hand = [np.std(weights_N[group_N == g]) / np.mean(weights_N[group_N == g]) for g in (0, 1)]
    assert by_hand == pytest.approx(np.sqrt(np.array([4, 2]) / ess_G - 1), rel=1e-9)


def test_without_a_partition_the_report_is_on_mixed_prompts_alone_and_limits_of_beta_are_no_numbers():
    returns_N, index_N, success_N = np.array([1.0, 0.0, 0.5, 0.5]), np.array([0, 0, 1, 1]), [True, False, True, True]
    plain = RolloutReport()
    plain.add(returns_N, index_N, success_N, None)
    assert plain.report() == {"k": [1, 2], "mixed_share": [0.0, 0.5]}
    limits = RolloutReport()
    limits.add(returns_N, index_N, success_N, np.array([0.0, 0.0, np.inf, np.inf]))
    found = limits.report()
    # The best alone of two: deviation 1/2 over mean 1/2.
    assert found["error"] == pytest.approx([1.0, 0.5**0.5], rel=1e-12)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
