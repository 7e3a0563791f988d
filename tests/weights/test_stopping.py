"""Adaptive sampling's bias, by enumerating every sequence of outcomes, and the factors that undo it."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from drift.dataset.outcomes import outcomes
from drift.dataset.weighing import compute_weights
from drift.weights.config import WeightConfig
from drift.weights.stopping import stopping_factors

# Kinds of trajectory with their chance and success; a function of the trajectory that is not its success.
CHANCE = [Fraction(1, 10), Fraction(1, 10), Fraction(3, 10), Fraction(1, 2)]
SOLVED = [True, True, False, False]
VALUE = [Fraction(7), Fraction(-2), Fraction(3), Fraction(0)]


def prompts(first, samples):
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
    for kinds, chance in prompts(first, samples):
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


@pytest.mark.parametrize("scheme", ["drift", "rft", "sft"])
def test_weights_of_adaptive_data_count_prompts_alike_and_divide_by_the_corrected_partition(make_trajectory, scheme):
    # Two first: prompt a was undecided and got five, prompt b was decided.
    made = [make_trajectory("a", k, ("1",) if k in (1, 3) else ("1", "2"), k in (1, 3)) for k in range(5)]
    made += [make_trajectory("b", k, ("1", "1", "1"), False) for k in range(2)]
    found, config = outcomes(made), WeightConfig(scheme=scheme, beta=0.5)
    returns_N, weights_N, _ = compute_weights(found, config, first=2)
    plain_N = compute_weights(found, config)[1]
    assert weights_N[5:].tolist() == plain_N[5:].tolist()
    factors_N = stopping_factors([t.success for t in made[:5]], [True] * 2 + [False] * 3, np.zeros(5, np.intp))
    if scheme == "drift":
        raw = [c * math.exp(r / 0.5) for c, r in zip(factors_N, returns_N, strict=False)]
        partition = math.fsum(raw) / 2  # (1/k) Σ c e^{R/β}
        assert weights_N[:5] == pytest.approx([each / partition for each in raw], rel=1e-12)
        assert weights_N[:5].sum() == pytest.approx(2, rel=1e-12) and weights_N[5:].sum() == pytest.approx(2)
    else:
        assert weights_N[:5] == pytest.approx(factors_N * plain_N[:5], rel=1e-12)
