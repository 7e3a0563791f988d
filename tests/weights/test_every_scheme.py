"""Every scheme beside a loop over prompts in exact fractions, on returns of every kind that makes one stumble."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.registry import data_of, settings_of
from drift.weights.schemes import FLAT, SCHEMES

thorough = settings(max_examples=40, derandomize=True, deadline=None)
# Ties and zeros often, and each of: huge, tiny, negative, the smallest float, and anything between.
AWKWARD = st.sampled_from([0.0, 1.0, 1.0, 0.9, -0.25, -0.25, 1e300, -1e300, 1e-300, -1e-300, 5e-324, 1e16, 0.1])
RETURN = AWKWARD | st.floats(-1, 1) | st.floats(-1e300, 1e300)
# Prompt, return, number of turns, whether the last and the first reply were right; prompts in any order, some of one.
ROW = st.tuples(st.integers(0, 3), RETURN, st.integers(1, 3), st.booleans(), st.booleans())
ROWS = st.lists(ROW, min_size=1, max_size=20)
BETA = st.sampled_from([1e-6, 0.1, 3.0, 1e300])


def members(rows):
    """Positions of each prompt's rows, in their order."""
    groups = {}
    for at, (group, *_) in enumerate(rows):
        groups.setdefault(group, []).append(at)
    return list(groups.values())


def power(exponent):
    """e to an exact fraction; what is below e^-1000 is 0 in floats, what is above e^700 is not asked for."""
    return math.exp(float(max(exponent, Fraction(-1000))))


def naive_drift(rows, named):
    weights = [0.0] * len(rows)
    for group in members(rows):
        exact = [Fraction(rows[at][1]) for at in group]
        raw = [power((value - max(exact)) / Fraction(named["beta"])) for value in exact]
        for at, each in zip(group, raw, strict=True):
            weights[at] = each * len(raw) / math.fsum(raw)
    return weights


def naive_rwr(rows, named):
    exact = [Fraction(row[1]) for row in rows]
    raw = [power((value - max(exact)) / Fraction(named["beta"])) for value in exact]
    return [each * len(raw) / math.fsum(raw) for each in raw]


def naive_awr(rows, named):
    weights = [0.0] * len(rows)
    for group in members(rows):
        mean = sum(Fraction(rows[at][1]) for at in group) / len(group)
        for at in group:
            exponent = (Fraction(rows[at][1]) - mean) / Fraction(named["beta"])
            weights[at] = power(min(exponent, Fraction(math.log(named["w_max"]))))
    return weights


def naive_star_gate(rows, named):
    weights = [0.0] * len(rows)
    for group in members(rows):
        best = group[0]
        for at in group:
            if rows[at][1] > rows[best][1]:
                best = at
        weights[best] = 1.0
    return weights


def centred(rows, *, standardised):
    weights = [0.0] * len(rows)
    for group in members(rows):
        exact = [Fraction(rows[at][1]) for at in group]
        mean = sum(exact) / len(exact)
        largest = max(abs(value) for value in exact)
        # In units of the largest, whose squares are floats.
        variance = sum(((v - mean) / (largest or 1)) ** 2 for v in exact) / len(exact)
        sigma = math.sqrt(variance)
        for at, value in zip(group, exact, strict=True):
            if sigma > FLAT:
                weights[at] = float((value - mean) / (largest or 1)) / sigma if standardised else float(value - mean)
    return weights


def naive_topr(rows, named):
    weights = [0.0] * len(rows)
    failed = [at for group in members(rows) if any(rows[at][3] for at in group) for at in group if not rows[at][3]]
    right = [at for at, row in enumerate(rows) if row[3]]
    for at in right:
        weights[at] = 1.0
    for at in failed:
        weights[at] = -named["failures"] / (1 - named["failures"]) * len(right) / len(failed)
    return weights


NAIVE = {
    "drift": naive_drift,
    # No two of these conversations say the same: there is nothing to average.
    "drift_averaged": naive_drift,
    "bolt": naive_drift,
    "sft": lambda rows, named: [1.0 for _ in rows],
    "rft": lambda rows, named: [1.0 if last else 0.0 for *_, last, _ in rows],
    "star": lambda rows, named: [float(turns == 2 and last and not first) for _, _, turns, last, first in rows],
    "star_gate": naive_star_gate,
    "refit": lambda rows, named: [row[1] for row in rows],
    "swift": lambda rows, named: centred(rows, standardised=True),
    "group_relative": lambda rows, named: centred(rows, standardised=False),
    "rwr": naive_rwr,
    "awr": naive_awr,
    "topr": naive_topr,
    "asymre": lambda rows, named: [w + named["delta"] for w in centred(rows, standardised=False)],
}


def apply(name, rows, beta, **more):
    function, turns_N = SCHEMES[name].function, np.array([row[2] for row in rows])
    data = {
        "success_N": np.array([row[3] for row in rows]),
        "turns_N": turns_N,
        "first_wrong_N": np.array([not row[4] for row in rows]),
        "reply_T": np.arange(turns_N.sum()),
        "feedback_T": np.zeros(turns_N.sum(), np.int64),
    }
    named = {
        key: value
        for key, value in {"beta": beta, "w_max": 20.0, "failures": 0.3, "delta": 0.25, **more}.items()
        if key in settings_of(function)
    }
    returns_N, group_N = np.array([row[1] for row in rows]), np.array([row[0] for row in rows])
    return function(returns_N, group_N, **{key: data[key] for key in data_of(function)}, **named), named


def slack(rows):
    """What rounding may do to a difference of a prompt's returns, in the units of the return, per row."""
    slacks = [0.0] * len(rows)
    for group in members(rows):
        for at in group:
            slacks[at] = 4e-16 * len(group) * max(abs(rows[other][1]) for other in group)
    return slacks


ONE = [(0, -0.4, 1, False, False)]
EQUAL = [(0, 1e300, 1, True, True)] * 3 + [(1, 0.1, 2, False, False)] * 7
TIED = [(0, 1.0, 1, True, True), (0, 1.0, 1, True, True), (0, 0.0, 3, False, False)]


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in ("refit", "swift")])
@thorough
@given(ROWS, BETA)
@example(ONE, 0.1)
@example(EQUAL, 1e-6)
@example(TIED, 0.1)
def test_a_scheme_is_what_a_loop_over_prompts_gives(name, rows, beta):
    found_N, named = apply(name, rows, beta)
    assert np.isfinite(found_N).all()
    expected = NAIVE[name](rows, named)
    exact = name in ("sft", "rft", "star", "star_gate")
    for found, wanted, error in zip(found_N.tolist(), expected, slack(rows), strict=True):
        if exact:
            assert found == wanted
        elif name in ("group_relative", "asymre"):
            # Deviations at the edge of rounding noise may be taken for it.
            assert found == pytest.approx(wanted, rel=1e-9, abs=max(4 * error, 4 * FLAT / 4e-16 * error))
        elif name == "awr":
            # An exponent is only as exact as the advantage is beside β.
            blur = math.expm1(min(error / beta, 1.0)) if error / beta < 1 else None
            low, high = (0.0, 20.0) if blur is None else (wanted * (1 - 2 * blur), wanted * (1 + 2 * blur))
            assert low - 1e-9 * wanted - 1e-300 <= found <= high + 1e-9 * max(wanted, found) + 1e-300
        else:
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@thorough
@given(ROWS)
@example(ONE)
@example(EQUAL)
def test_swift_is_the_standard_score_of_each_prompt(rows):
    found_N, _ = apply("swift", rows, 0.1)
    assert np.isfinite(found_N).all()
    for group in members(rows):
        exact = [Fraction(rows[at][1]) for at in group]
        largest = max(abs(value) for value in exact) or Fraction(1)
        mean = sum(exact) / len(exact)
        sigma = math.sqrt(sum(((value - mean) / largest) ** 2 for value in exact) / len(exact))
        if sigma < FLAT / 2:
            assert [found_N[at] for at in group] == [0.0] * len(group)
        elif sigma > 2 * FLAT:
            for at, value in zip(group, exact, strict=True):
                assert found_N[at] == pytest.approx(float((value - mean) / largest) / sigma, abs=1e-9 + 4e-15 / sigma)


@thorough
@given(ROWS)
@example(ONE)
def test_refit_is_the_return_or_a_refusal_and_shifted_it_is_never_negative(rows):
    if any(row[1] < 0 for row in rows):
        with pytest.raises(ConfigError, match=f"{sum(row[1] < 0 for row in rows)} of {len(rows)} are negative"):
            apply("refit", rows, 0.1)
    else:
        assert apply("refit", rows, 0.1)[0].tolist() == [row[1] for row in rows]
    shifted_N, _ = apply("refit", rows, 0.1, shift=True)
    for group in members(rows):
        lowest = min(0.0, *(rows[at][1] for at in group))
        assert [shifted_N[at] for at in group] == [rows[at][1] - lowest for at in group]
    assert (shifted_N >= 0).all()


def test_no_scheme_lacks_a_loop():
    assert set(NAIVE) == set(SCHEMES)
