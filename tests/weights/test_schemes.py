import math
import statistics
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.weights.config import WeightConfig
from drift.weights.schemes import (
    SCHEMES,
    apply_scheme,
    awr_weights,
    drift_weights,
    get_scheme,
    refit_weights,
    rft_weights,
    rwr_weights,
    sft_weights,
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
def test_drift_and_awr_refuse_a_temperature_that_is_not_positive(beta):
    with pytest.raises(ConfigError, match=r"weights\.beta.*> 0"):
        drift_weights([1.0], [0], beta=beta)
    with pytest.raises(ConfigError, match=r"weights\.beta.*> 0"):
        awr_weights([1.0], [0], beta=beta, w_max=20)


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
    with pytest.raises(ConfigError, match=r"weights\.w_max: got 0"):
        awr_weights([1.0], [0], beta=1, w_max=0)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_every_scheme_leaves_its_input_alone_and_accepts_interleaved_text_groups(name):
    returns_N, group_N = np.array([0.0, 1.0, 0.5, 0.25]), np.array(["q", "p", "q", "p"])
    before = returns_N.tolist()
    data = {"success_N": [0, 1, 1, 0], "turns_N": [1, 2, 2, 2], "first_wrong_N": [1, 1, 1, 0]}
    named = {"beta": 0.5, "w_max": 20.0, **{key: np.array(values) for key, values in data.items()}}
    weights_N = apply_scheme(name, returns_N, group_N, named)
    assert returns_N.tolist() == before
    order = [2, 3, 0, 1]
    named |= {key: named[key][order] for key in data}
    assert apply_scheme(name, returns_N[order], group_N[order], named) == pytest.approx(weights_N[order], rel=1e-14)


# --- names, other packages, errors -----------------------------------------------------------------------------------


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Install a package with one weighting for real: a module and the dist-info that importlib.metadata reads."""

    def install(name, value, source):
        (tmp_path / "extra_weightings.py").write_text(source)
        info = tmp_path / "extra_weightings-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-weightings\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[drift.weightings]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("extra_weightings", None)


POWER = """
import numpy as np

def power(returns_N, group_N, *, success_N, exponent, floor=0.0):
    return np.maximum(np.asarray(returns_N, float) ** exponent * np.asarray(success_N, float), floor)

power.grouped = True
"""


def test_a_scheme_of_another_package_is_found_and_given_what_it_names(declare):
    declare("power", "extra_weightings:power", POWER)
    info = get_scheme("power")
    assert info.grouped
    assert info.repetition == 0.0
    named = {"success_N": [1, 0, 1], "exponent": 2, "beta": 0.1, "w_max": 20.0}
    # 2², 0 for the failure, 0.5²; beta and w_max are not its business, floor keeps its default.
    assert apply_scheme("power", [2.0, 3.0, 0.5], ["a", "a", "a"], named).tolist() == [4.0, 0.0, 0.25]
    assert apply_scheme("power", [2.0, 3.0, 0.5], ["a", "a", "a"], {**named, "floor": 1}).tolist() == [4.0, 1.0, 1.0]


def test_a_scheme_that_misses_a_parameter_says_which_and_where_to_give_it(declare):
    declare("power", "extra_weightings:power", POWER)
    with pytest.raises(ConfigError, match=r"'power' needs exponent\..*weights\.parameters"):
        apply_scheme("power", [1.0], [0], {"success_N": [1]})


def test_weights_that_are_not_finite_are_refused_and_counted(declare):
    declare(
        "bad",
        "extra_weightings:bad",
        "def bad(returns_N, group_N):\n    return [float('nan'), 1.0, float('inf')]\n",
    )
    with pytest.raises(ConfigError, match=r"'bad' gave weights of shape \(3,\), 2 of them not finite"):
        apply_scheme("bad", [0.0, 1.0, 2.0], [0, 0, 0], {})


def test_weights_of_another_shape_are_refused(declare):
    declare("short", "extra_weightings:short", "def short(returns_N, group_N):\n    return [1.0]\n")
    with pytest.raises(ConfigError, match=r"'short' gave weights of shape \(1,\).*expected \(3,\)"):
        apply_scheme("short", [0.0, 1.0, 2.0], [0, 0, 0], {})


def test_a_declared_scheme_that_can_not_be_imported_is_the_users_error_and_not_a_crash(declare):
    declare("gone", "extra_weightings:gone", "")
    with pytest.raises(ConfigError, match="gone"):
        get_scheme("gone")


def test_an_unknown_scheme_is_refused_with_the_nearest_name_and_all_names(declare):
    declare("power", "extra_weightings:power", POWER)
    with pytest.raises(ConfigError, match=r"unknown weighting 'drif'.*Did you mean 'drift'\?.*awr.*power.*swift"):
        get_scheme("drif")
    with pytest.raises(ConfigError, match=r"Did you mean 'power'\?"):
        apply_scheme("powr", [1.0], [0], {})


def test_a_built_in_scheme_can_not_be_replaced_by_another_package(declare):
    declare("sft", "extra_weightings:power", POWER)
    assert get_scheme("sft").function is sft_weights


def test_only_drift_charges_for_repetition_unless_told_to():
    # DRIFT publishes λ = 0.5; the other papers have no such term.
    assert {name: info.repetition for name, info in SCHEMES.items() if info.repetition} == {"drift": 0.5}


def test_schemes_that_compare_within_a_prompt_say_so():
    # Exactly those whose formula holds a per-prompt mean or partition: of one trajectory it is degenerate.
    assert {name for name, info in SCHEMES.items() if info.grouped} == {
        *("drift", "bolt", "star_gate", "swift", "group_relative", "awr")
    }


# --- configuration ---------------------------------------------------------------------------------------------------


def test_the_default_configuration_is_the_published_one():
    config = WeightConfig()
    assert (config.scheme, config.beta, config.gamma, config.format_failure) == ("drift", 0.1, 0.9, 0.0)
    assert (config.base, config.no_success, config.equal_returns) == ("success", "keep", "keep")
    assert config.repetition is None  # the scheme's own


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("beta", 0.0, "a number > 0"),
        ("beta", -1.0, "a number > 0"),
        ("beta", float("nan"), "a number > 0"),
        ("beta", "much", "a number > 0, or auto"),
        ("beta_per", "prompt", "group or dataset"),
        ("ess_target", 0.0, "success, or a share above 0 and below 1"),
        ("ess_target", 1.0, "success, or a share above 0 and below 1"),
        ("ess_target", "much", "success, or a share above 0 and below 1"),
        ("kl_target", 0.0, "nats above 0"),
        ("shrink_prior", -1.0, "a number ≥ 0"),
        ("gamma", 0.0, r"a number in \(0, 1\]"),
        ("gamma", 1.01, r"a number in \(0, 1\]"),
        ("repetition", -0.5, "a number ≥ 0"),
        ("format_failure", -0.1, "a number ≥ 0"),
        ("w_max", 0.0, "a number > 0"),
        ("no_success", "skip", "keep, drop or shrink"),
        ("equal_returns", "", "keep or drop"),
        ("base", "profit", "success or reward"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting, value, expected):
    with pytest.raises(ConfigError, match=rf"weights\.{setting}: got {value!r}, expected {expected}"):
        WeightConfig(**{setting: value})


def test_shrinking_needs_a_partition_and_one_temperature():
    assert WeightConfig(scheme="bolt", no_success="shrink", beta="auto").no_success == "shrink"
    with pytest.raises(
        ConfigError, match=r"weights\.no_success: got 'shrink', expected keep or drop with the scheme rft"
    ):
        WeightConfig(scheme="rft", no_success="shrink")
    with pytest.raises(
        ConfigError, match=r"weights\.no_success: got 'shrink', expected keep or drop with a β per prompt"
    ):
        WeightConfig(no_success="shrink", beta="auto", beta_per="group", ess_target=0.1)


@pytest.mark.parametrize(
    "settings_in_range",
    [{"beta": 1e-6}, {"gamma": 1.0}, {"repetition": 0.0}, {"w_max": 1e-3}, {"no_success": "drop"}, {"base": "reward"}],
)
def test_a_setting_at_the_edge_of_its_range_is_accepted_and_recorded(settings_in_range):
    recorded = WeightConfig(**settings_in_range).to_dict()
    assert {key: recorded[key] for key in settings_in_range} == settings_in_range
    assert WeightConfig(**recorded) == WeightConfig(**settings_in_range)
