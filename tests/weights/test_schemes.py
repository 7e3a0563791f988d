import functools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.registry import data_of, settings_of
from drift.weights.config import WeightConfig
from drift.weights.schemes import (
    SCHEMES,
    awr_weights,
    drift_weights,
    find_scheme,
    refit_weights,
    rft_weights,
    rwr_weights,
    sft_weights,
    shared_partition,
    swift_weights,
)

quick = settings(max_examples=40, derandomize=True, deadline=None)
ordinary = st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=1, max_size=24)


def columns(rows):
    return np.array([group for group, _ in rows]), np.array([value for _, value in rows], float)


def members(group_N):
    return [np.flatnonzero(group_N == label) for label in np.unique(group_N)]


# --- drift -----------------------------------------------------------------------------------------------------------


@quick
@given(ordinary, st.floats(0.02, 5))
def test_drift_weights_match_equation_13_written_as_a_loop(rows, beta):
    group_N, returns_N = columns(rows)
    found_N = drift_weights(returns_N, group_N, beta=beta)
    for (group, value), found in zip(rows, found_N, strict=True):
        siblings = [other for label, other in rows if label == group]
        partition = math.fsum(math.exp(other / beta) for other in siblings) / len(siblings)
        assert found == pytest.approx(math.exp(value / beta) / partition, rel=1e-9)


@quick
@given(ordinary, st.floats(1e-6, 1e3))
def test_drift_weights_average_one_and_never_exceed_the_group_size(rows, beta):
    group_N, returns_N = columns(rows)
    weights_N = drift_weights(returns_N, group_N, beta=beta)
    assert (weights_N >= 0).all()
    for rows_of_group in members(group_N):
        assert weights_N[rows_of_group].mean() == pytest.approx(1, rel=1e-12)
        assert weights_N[rows_of_group].max() <= len(rows_of_group) * (1 + 1e-14)


@quick
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**10), 2**10)), min_size=1, max_size=24),
    st.lists(st.integers(-(2**20), 2**20), min_size=4, max_size=4),
)
def test_drift_weights_ignore_a_constant_added_to_a_group(rows, shifts):
    # Multiples of 2⁻¹⁰ add without rounding, so that the weights must be the same to the last bit.
    group_N, returns_N = columns([(group, value / 2**10) for group, value in rows])
    shift_N = np.array(shifts)[group_N] / 2**10
    assert (
        drift_weights(returns_N + shift_N, group_N, beta=0.1).tolist()
        == drift_weights(returns_N, group_N, beta=0.1).tolist()
    )


@quick
@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=12),
    st.sampled_from([1e-6, 0.1, 1.0, 1e300]),
)
def test_drift_weights_are_finite_and_average_one_for_any_finite_returns(returns, beta):
    weights_N = drift_weights(returns, np.zeros(len(returns)), beta=beta)
    assert np.isfinite(weights_N).all()
    assert weights_N.mean() == pytest.approx(1, rel=1e-12)


def test_drift_weights_of_enormous_returns_go_to_the_best_alone():
    # exp(±10³⁰⁶) can't be written down; the limit can: the best of three takes the group's whole weight, 3.
    assert drift_weights([1e300, -1e300, 0.0], [0, 0, 0], beta=1e-6) == pytest.approx([3, 0, 0], rel=1e-14)


def test_drift_weights_of_equal_returns_are_one():
    assert drift_weights([0.3] * 7, ["p"] * 7, beta=1e-6).tolist() == [1.0] * 7


def test_a_group_of_one_has_weight_one_whatever_its_return():
    assert drift_weights([-5.0, 1e300], ["a", "b"], beta=0.1).tolist() == [1.0, 1.0]


def test_a_prompt_without_success_still_weighs_k_as_published():
    # method.md section 2: R = [0, −.1, −.25, −.4] at β = .1 gives [2.72, 1.00, .22, .05].
    weights_N = drift_weights([0, -0.1, -0.25, -0.4], [0, 0, 0, 0], beta=0.1)
    assert weights_N.sum() == pytest.approx(4, rel=1e-12)
    assert weights_N / weights_N[1] == pytest.approx([math.e, 1, math.exp(-1.5), math.exp(-3)], rel=1e-12)
    assert [round(float(w), 2) for w in weights_N] == [2.72, 1.00, 0.22, 0.05]


def test_drift_weights_of_a_group_do_not_depend_on_other_groups_or_on_order():
    returns_N, group_N = np.array([1.0, 0.2, -0.4, 0.9, 0.0]), np.array(["a", "b", "a", "b", "a"])
    together_N = drift_weights(returns_N, group_N, beta=0.3)
    for label in ("a", "b"):
        alone_N = drift_weights(returns_N[group_N == label], group_N[group_N == label], beta=0.3)
        assert together_N[group_N == label].tolist() == alone_N.tolist()
    order = [4, 1, 0, 3, 2]
    shuffled_N = drift_weights(returns_N[order], group_N[order], beta=0.3)
    assert shuffled_N == pytest.approx(together_N[order], rel=1e-14)


def test_a_lower_temperature_concentrates_the_weights():
    best = [drift_weights([1, 0.5, 0], [0, 0, 0], beta=beta)[0] for beta in (10, 1, 0.1, 0.01)]
    assert best == sorted(best)
    assert best[0] == pytest.approx(1, abs=0.06)  # β → ∞ is plain fine-tuning
    assert best[-1] == pytest.approx(3, abs=1e-12)  # β → 0 keeps the best alone


@pytest.mark.parametrize("beta", [0, -0.1, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused_where_it_is_no_limit(beta):
    if beta != 0:
        with pytest.raises(ConfigError, match=r"weights\.beta.*> 0, or its limits"):
            drift_weights([1.0], [0], beta=beta)
    with pytest.raises(ConfigError, match=r"weights\.beta.*> 0"):
        awr_weights([1.0], [0], beta=beta, w_max=20)
    with pytest.raises(ConfigError, match=r"weights\.beta: got .*, expected a number > 0"):
        WeightConfig(beta=beta)


# --- the others ------------------------------------------------------------------------------------------------------


def test_sft_weighs_every_trajectory_one():
    assert sft_weights([3.0, -1.0, 1e300], [0, 1, 1]).tolist() == [1.0, 1.0, 1.0]


def test_rft_keeps_successes_alone_whatever_their_return():
    assert rft_weights([0.2, 0.9, -5], [0, 0, 1], success_N=[True, False, True]).tolist() == [1.0, 0.0, 1.0]


def test_refit_weights_are_the_returns_and_a_copy_of_them():
    returns_N = np.array([0.0, 0.5, 2.0])
    weights_N = refit_weights(returns_N, [0, 0, 1])
    assert weights_N.tolist() == [0.0, 0.5, 2.0]
    weights_N[:] = -1
    assert returns_N.tolist() == [0.0, 0.5, 2.0]


def test_refit_refuses_negative_returns_and_counts_them():
    with pytest.raises(ConfigError, match=r"2 of 5 are negative.*-0\.4.*swift"):
        refit_weights([1, -0.1, 0, -0.4, 0.5], [0, 0, 0, 1, 1])


@quick
@given(ordinary)
def test_swift_weights_match_the_library_standard_score(rows):
    group_N, returns_N = columns([(group, round(value, 3)) for group, value in rows])
    weights_N = swift_weights(returns_N, group_N)
    for rows_of_group in members(group_N):
        values = [float(v) for v in returns_N[rows_of_group]]
        if len(set(values)) == 1:
            assert weights_N[rows_of_group].tolist() == [0.0] * len(values)
            continue
        mean, deviation = statistics.fmean(values), statistics.pstdev(values)
        assert weights_N[rows_of_group] == pytest.approx([(v - mean) / deviation for v in values], rel=1e-9, abs=1e-9)
        assert weights_N[rows_of_group].mean() == pytest.approx(0, abs=1e-12)
        assert weights_N[rows_of_group].std() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7e5, 1e-200])
def test_swift_gives_zero_to_a_prompt_whose_returns_are_equal(value):
    # The mean of equal numbers may differ from them in the last bit; that rounding must not become a weight.
    assert swift_weights([value] * 7, [0] * 7).tolist() == [0.0] * 7


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e6, 1e200])
def test_swift_weights_do_not_depend_on_the_unit_of_the_return(scale):
    assert swift_weights([scale, 0.0, -scale], [0, 0, 0]) == pytest.approx([1.5**0.5, 0, -(1.5**0.5)], rel=1e-12)


@quick
@given(ordinary, st.floats(0.05, 5))
def test_rwr_weights_are_exponentials_over_one_constant_with_mean_one(rows, beta):
    group_N, returns_N = columns(rows)
    found_N = rwr_weights(returns_N, group_N, beta=beta)
    raw = [math.exp(value / beta) for _, value in rows]
    assert found_N == pytest.approx([w * len(raw) / math.fsum(raw) for w in raw], rel=1e-9)
    assert found_N.mean() == pytest.approx(1, rel=1e-12)


def test_rwr_favours_the_easy_prompt_and_drift_does_not():
    returns_N, group_N = [1, 1, 0, 0], ["easy", "easy", "hard", "hard"]
    rwr_N = rwr_weights(returns_N, group_N, beta=1.0)
    assert rwr_N[0] / rwr_N[2] == pytest.approx(math.e, rel=1e-12)
    assert drift_weights(returns_N, group_N, beta=1.0).tolist() == [1.0] * 4


@quick
@given(ordinary, st.floats(0.05, 5), st.floats(0.5, 30))
def test_awr_weights_match_the_clipped_exponential_of_the_advantage(rows, beta, w_max):
    group_N, returns_N = columns(rows)
    found_N = awr_weights(returns_N, group_N, beta=beta, w_max=w_max)
    for (group, value), found in zip(rows, found_N, strict=True):
        advantage = value - statistics.fmean(other for label, other in rows if label == group)
        assert found == pytest.approx(min(math.exp(advantage / beta), w_max), rel=1e-9)


def test_awr_clips_where_the_exponential_would_overflow():
    # A/β = ±10⁶ here, and e^(10⁶) is no float.
    assert awr_weights([1.0, -1.0], [0, 0], beta=1e-6, w_max=20) == pytest.approx([20, 0], rel=1e-12)


def test_awr_refuses_a_clip_that_is_not_positive():
    with pytest.raises(ConfigError, match=r"weights\.scheme\.awr\.w_max: got 0"):
        awr_weights([1.0], [0], beta=1, w_max=0)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_every_scheme_leaves_its_input_alone_and_accepts_interleaved_text_groups(name):
    function, returns_N, group_N = (
        SCHEMES[name].function,
        np.array([0.0, 1.0, 0.5, 0.25]),
        np.array(["q", "p", "q", "p"]),
    )
    before = returns_N.tolist()
    data = {"success_N": [0, 1, 1, 0], "turns_N": [1, 1, 1, 1], "first_wrong_N": [1, 1, 1, 0], "reply_T": [7, 8, 7, 9]}
    data = {key: np.array(values) for key, values in {**data, "feedback_T": [0, 0, 0, 0]}.items()}

    def weigh(order):
        named = {key: data[key][order] for key in data_of(function)}
        return function(returns_N[order], group_N[order], **named)

    weights_N = weigh([0, 1, 2, 3])
    assert returns_N.tolist() == before
    assert weigh([2, 3, 0, 1]) == pytest.approx(weights_N[[2, 3, 0, 1]], rel=1e-14)


def test_rwr_of_many_small_terms_is_that_of_exact_sums():
    returns_N = np.random.default_rng(0).normal(size=5000)
    weights_N = rwr_weights(returns_N, np.arange(5000), beta=0.05)
    assert math.fsum(weights_N) / 5000 == pytest.approx(1, rel=1e-15)
    # In whatever order, and so in whatever parts, they come.
    order = np.random.default_rng(1).permutation(5000)
    assert shared_partition(returns_N[order], 0.05) == shared_partition(returns_N, 0.05)
    top = max(returns_N.tolist())
    exact = math.fsum(math.exp((value - top) / 0.05) for value in returns_N.tolist()) / 5000
    assert shared_partition(returns_N, 0.05) == pytest.approx((top, exact), rel=1e-14)


# --- what papers bring with them -------------------------------------------------------------------------------------


def test_only_drift_charges_for_repetition_and_discounts_unless_told_to():
    # DRIFT publishes λ = 0.5 and γ = 0.9; the other papers have neither.
    own = {name: (scheme.gamma, scheme.repetition) for name, scheme in SCHEMES.items()}
    assert {name: pair for name, pair in own.items() if pair != (1.0, 0.0)} == {
        "drift": (0.9, 0.5),
        "drift_averaged": (0.9, 0.5),
    }


def test_schemes_that_compare_within_a_prompt_say_so():
    # Exactly those whose formula holds a per-prompt mean or partition: of one trajectory it is degenerate.
    assert {name for name, scheme in SCHEMES.items() if scheme.grouped} == {
        *("drift", "drift_averaged", "bolt", "star_gate", "swift", "group_relative", "awr", "asymre")
    }


def test_the_replies_that_a_paper_trains_and_the_signs_of_its_weights_are_told():
    assert {name: scheme.turns for name, scheme in SCHEMES.items() if scheme.turns != "terminal"} == {
        **dict.fromkeys(("star_gate", "refit", "swift", "group_relative"), "all"),
        "bolt": "first",
    }
    assert [name for name, scheme in SCHEMES.items() if scheme.signed] == ["swift", "group_relative"]
    assert [name for name, scheme in SCHEMES.items() if scheme.partitioned] == ["drift", "bolt"]
    assert [name for name, scheme in SCHEMES.items() if scheme.first_turn] == ["bolt"]


# --- names, other packages, errors -----------------------------------------------------------------------------------

POWER = """
import numpy as np

def power(returns_N, group_N, *, success_N, exponent, floor=0.0):
    return np.maximum(np.asarray(returns_N, float) ** exponent * np.asarray(success_N, float), floor)

power.grouped = True
power.turns = "all"
"""


def test_a_scheme_of_another_package_is_found_with_what_it_says_of_itself(declare):
    declare(POWER, schemes={"power": "extra_weights:power"})
    scheme = find_scheme("power")
    assert (scheme.grouped, scheme.turns, scheme.signed) == (True, "all", True)
    assert (scheme.gamma, scheme.repetition, scheme.partitioned, scheme.first_turn) == (1.0, 0.0, False, False)
    assert scheme.function([2.0, 0.5], [0, 0], success_N=[1, 1], exponent=2).tolist() == [4.0, 0.25]


def test_a_function_is_a_scheme_that_is_called_by_where_it_is():
    def mine(returns_N, group_N):
        return returns_N

    scheme = find_scheme(mine)
    assert scheme.function is mine
    assert scheme.name.endswith(":test_a_function_is_a_scheme_that_is_called_by_where_it_is.<locals>.mine")
    assert (scheme.turns, scheme.signed, scheme.grouped) == ("terminal", True, False)


def test_a_scheme_is_named_by_its_module_too(declare):
    declare(POWER)
    assert find_scheme("extra_weights:power").name == "extra_weights:power"
    with pytest.raises(ConfigError, match=r"unknown scheme 'powr' in module 'extra_weights'\. Did you mean 'power'\?"):
        find_scheme("extra_weights:powr")
    with pytest.raises(ConfigError, match=r"scheme 'no_such_module:power': 'no_such_module' can't be imported"):
        find_scheme("no_such_module:power")


def test_a_declared_scheme_that_can_not_be_imported_is_the_users_error_and_not_a_crash(declare):
    declare("", schemes={"gone": "extra_weights:gone"})
    with pytest.raises(ConfigError, match="scheme 'gone' is declared by 'extra_weights:gone'"):
        find_scheme("gone")


def test_an_unknown_scheme_is_refused_with_the_nearest_name_and_all_names(declare):
    declare(POWER, schemes={"power": "extra_weights:power"})
    with pytest.raises(ConfigError, match=r"unknown scheme 'drif'.*Did you mean 'drift'\?.*awr.*power.*swift"):
        find_scheme("drif")
    with pytest.raises(ConfigError, match=r"Did you mean 'power'\?"):
        find_scheme("powr")


def test_a_built_in_scheme_can_not_be_replaced_by_another_package(declare):
    declare(POWER, schemes={"sft": "extra_weights:power"})
    assert find_scheme("sft").function is sft_weights


def test_what_is_called_without_having_a_name_is_called_by_its_class():
    scheme = find_scheme(functools.partial(awr_weights, w_max=3.0))
    assert scheme.name == "functools:partial"
    assert settings_of(scheme.function) == {"beta": 0.1, "w_max": 3.0}


@pytest.mark.parametrize("thing", [3, None, "math:pi"])
def test_what_is_no_function_is_no_scheme(thing):
    with pytest.raises(ConfigError, match="expected a name, module:attribute or a function"):
        find_scheme(thing)
