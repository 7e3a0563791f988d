"""Verdicts that may be wrong, beside the joint distribution of truth and verdict written out."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.noise import chance_right, equivalent_return

rates = st.floats(0, 0.49)


def test_a_verifier_that_never_errs_is_believed():
    success = [True, False, False, True]
    found_N = chance_right(success, [1, 5, 2, 3], ["a", "a", "b", "b"], false_positive=0, false_negative=0)
    assert found_N.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("right", "wrongly", "refused"), [("1/2", "1/10", "1/5"), ("1/8", "1/4", "0"), ("3/4", "0", "1/3")]
)
def test_chances_are_bayes_rule_where_a_prompts_replies_are_in_exact_proportion(right, wrongly, refused):
    q, p0, p1 = Fraction(right), Fraction(wrongly), Fraction(refused)
    accepted = q * (1 - p1) + (1 - q) * p0
    count = 10 * accepted.denominator
    success = [True] * int(accepted * count) + [False] * int((1 - accepted) * count)
    rate = {"false_positive": float(p0), "false_negative": float(p1)}
    found_N = chance_right(success, [1] * len(success), [7] * len(success), **rate)
    assert found_N[0] == pytest.approx(float(q * (1 - p1) / accepted), rel=1e-12)
    assert found_N[-1] == pytest.approx(float(q * p1 / (1 - accepted)), rel=1e-12)
    assert len(set(found_N.tolist())) == 2


def test_replies_of_all_turns_count_and_prompts_are_apart():
    # a: two of eight replies accepted; b: none; c: fewer than errors alone would bring.
    success = [True, True, False, False, False, True, False]
    graded, prompt = [1, 3, 4, 5, 5, 5, 15], list("aaabbcc")
    found_N = chance_right(success, graded, prompt, false_positive=0.1, false_negative=0.2)
    q = (2 / 8 - 0.1) / 0.7
    assert found_N[:2] == pytest.approx([q * 0.8 / 0.25] * 2, rel=1e-12)
    assert found_N[2] == pytest.approx(q * 0.2 / 0.75, rel=1e-12)
    assert found_N[3:].tolist() == [0, 0, 0, 0]


def test_a_success_was_judged_also_where_no_answer_was_asked_for():
    found_N = chance_right([True, False], [0, 0], [0, 0], false_positive=0.1, false_negative=0.1)
    assert found_N.tolist() == [1, 1]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 3)), min_size=1), rates, rates)
def test_chances_are_chances_and_acceptance_never_lowers_them(found, false_positive, false_negative):
    success, graded, prompt = map(list, zip(*found, strict=True))
    found_N = chance_right(success, graded, prompt, false_positive=false_positive, false_negative=false_negative)
    assert ((found_N >= 0) & (found_N <= 1)).all()
    for group in set(prompt):
        of = [(s, c) for s, c, g in zip(success, found_N, prompt, strict=True) if g == group]
        accepted, refused = ([c for s, c in of if s is kind] for kind in (True, False))
        assert not accepted or not refused or min(accepted) >= max(refused) - 1e-12


@pytest.mark.parametrize(("positive", "negative"), [(-0.1, 0), (1, 0), (0, 1.5), (0.5, 0.5), (0.9, 0.2)])
def test_rates_that_leave_a_verdict_without_meaning_are_refused(positive, negative):
    with pytest.raises(ConfigError, match=r"weights\.false_"):
        chance_right([True], [1], [0], false_positive=positive, false_negative=negative)


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0, 1), st.floats(0.05, 10))
def test_the_equivalent_return_has_the_mean_exponential(low, gain, chance, beta):
    found = equivalent_return([low], [gain], [chance], beta)[0]
    mean = chance * math.exp((low + gain) / beta) + (1 - chance) * math.exp(low / beta)
    assert math.exp(found / beta) == pytest.approx(mean, rel=1e-9)
    assert low - 1e-9 <= found <= low + gain + 1e-9


def test_the_equivalent_return_at_its_limits():
    gains = np.array([1.0, 1.0, 1e300, 1e300])
    found_N = equivalent_return(np.zeros(4), gains, [0.0, 1.0, 0.0, 0.5], 1e-3)
    assert found_N.tolist() == [0.0, 1.0, 0.0, 1e300]
