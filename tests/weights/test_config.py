"""The chain as settings: how links are named, what is added, and what is refused before anything is computed."""

import functools
import re

import numpy as np
import pytest

from drift.errors import ConfigError
from drift.registry import link
from drift.weights.config import WeightConfig
from drift.weights.schemes import SCHEMES
from drift.weights.steps import REGISTRY as STEPS
from drift.weights.steps import bound_negative, drop_unsolved, resample, skip_small
from drift.weights.turns import REGISTRY as TURNS
from drift.weights.turns import credited, terminal

BOUND, SKIP = {"bound_negative": {"share": 0.1}}, {"skip_small": {"share": 0.001}}

OWN = """
import numpy as np

def power(returns_N, group_N, *, success_N, exponent, floor=0.0):
    return np.maximum(np.asarray(returns_N, float) ** exponent * np.asarray(success_N, float), floor)

power.gamma = 0.5
power.turns = "all"
power.signed = False

def plain(returns_N, group_N):
    return returns_N

plain.turns = "extra_weights:later"

def cliff(weights_T, data, *, steepness, start=2.0):
    return np.where(weights_T > start, weights_T * steepness, weights_T)

def halved(weights_T, data):
    return weights_T / 2

def later(weights_N, data, *, decay=0.5):
    turn_T = np.arange(data.turns_N.sum()) - np.repeat(np.cumsum(data.turns_N) - data.turns_N, data.turns_N)
    return np.repeat(weights_N, data.turns_N) * decay**turn_T

NUMBER = 3
"""


def steps_of(**settings):
    return [each.record for each in WeightConfig(**settings).chain.steps]


# --- how a link is named ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "known", "function", "settings"),
    [
        ("drop_unsolved", STEPS, drop_unsolved, {}),
        ({"drop_unsolved": {}}, STEPS, drop_unsolved, {}),
        ("bound_negative", STEPS, bound_negative, {"share": 0.1}),
        ({"bound_negative": 0.5}, STEPS, bound_negative, {"share": 0.5}),
        ({"bound_negative": {"share": 0}}, STEPS, bound_negative, {"share": 0}),
        ({"resample": 0.25}, STEPS, resample, {"share": 0.25, "seed": 1}),
        ({"resample": {"seed": 7}}, STEPS, resample, {"share": 0.5, "seed": 7}),
        ("terminal", TURNS, terminal, {}),
        ({"credited": -0.5}, TURNS, credited, {"rejected": -0.5}),
        ({"credited": {"rejected": -0.5}}, TURNS, credited, {"rejected": -0.5}),
    ],
)
def test_a_link_is_a_name_alone_or_with_its_settings(item, known, function, settings):
    found = link(item, known, "here")
    assert found.function is function
    assert found.settings == settings
    name = item if isinstance(item, str) else next(iter(item))
    assert found.name == name
    assert found.record == ({name: settings} if settings else name)
    # What is recorded is the link itself.
    assert link(found.record, known, "here") == found


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("drop_unsolvd", "unknown step 'drop_unsolvd'. Did you mean 'drop_unsolved'? Known: bound_negative, drop_"),
        ("drop", "unknown step 'drop'. Known: bound_negative"),
        ({"skip_smal": 0.1}, "unknown step 'skip_smal'. Did you mean 'skip_small'?"),
        ({"skip_smal": None}, "unknown step 'skip_smal'. Did you mean 'skip_small'?"),
        ({"skip_small": {"shar": 1}}, "unknown setting 'shar' in weights.steps of skip_small. Did you mean 'share'?"),
        ({"drop_unsolved": 3}, "weights.steps.drop_unsolved: got 3, expected nothing: it has no settings"),
        ({"drop_unsolved": {"share": 3}}, "unknown setting 'share' in weights.steps of drop_unsolved. Known: none."),
        ({"bound_negative": 0.1, "skip_small": 0.1}, "expected one name with its settings, such as {bound_negative"),
        ({}, "weights.steps: got {}, expected one name with its settings"),
        (3, "step: got 3, expected a name, module:attribute or a function"),
        (None, "step: got None, expected a name"),
        ("math:pi", "step: got 'math:pi', expected a name, module:attribute or a function"),
        ("no_such_module:f", "step 'no_such_module:f': 'no_such_module' can't be imported"),
        ("math:sqr", "unknown step 'sqr' in module 'math'. Did you mean 'sqrt'?"),
    ],
)
def test_a_step_that_is_none_is_refused_with_the_nearest(item, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        WeightConfig(steps=[item])


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ("last", "unknown spread over turns 'last'."),
        ("termnal", "Did you mean 'terminal'? Known: advantage, all, credited, first, own, terminal."),
        (
            {"credited": {"reject": -1}},
            "unknown setting 'reject' in weights.turns of credited. Did you mean 'rejected'?",
        ),
        ({"credited": None}, "weights.turns.credited: got None, expected a value, or the name alone"),
        ({"terminal": 1}, "weights.turns.terminal: got 1, expected nothing: it has no settings"),
        ({"credited": 0.5}, "weights.turns.credited: got 0.5, expected a number from -1 to 0"),
        ({"credited": "much"}, "credited"),
    ],
)
def test_turns_that_are_none_are_refused_with_the_nearest(turns, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        WeightConfig(turns=turns)


def test_steps_are_a_list_and_each_is_there_once():
    with pytest.raises(
        ConfigError, match=r"weights\.steps: got 'drop_unsolved', expected a list, \[drop_unsolved\] say"
    ):
        WeightConfig(steps="drop_unsolved")
    with pytest.raises(ConfigError, match=r"weights\.steps: resample is there twice\. Give it once\."):
        WeightConfig(steps=["resample", "drop_unsolved", {"resample": 0.5}])


# --- what is added to what is given ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [SKIP]),
        ({"scheme": "swift"}, [BOUND, SKIP]),
        ({"scheme": "group_relative", "turns": "terminal"}, [BOUND, SKIP]),
        ({"turns": "credited"}, [SKIP]),
        ({"turns": {"credited": -0.5}}, [BOUND, SKIP]),
        ({"steps": ["drop_unsolved"]}, ["drop_unsolved", SKIP]),
        ({"steps": ["bound_negative"]}, [BOUND, SKIP]),
        ({"steps": [{"skip_small": None}]}, []),
        ({"scheme": "swift", "steps": [{"bound_negative": None}]}, [SKIP]),
        ({"scheme": "swift", "steps": [{"bound_negative": None}, {"skip_small": None}]}, []),
        ({"scheme": "swift", "steps": [{"bound_negative": 0.5}]}, [{"bound_negative": {"share": 0.5}}, SKIP]),
        # What is named stays where it is; what is not comes last.
        (
            {"scheme": "swift", "steps": ["skip_small", "resample"]},
            [SKIP, {"resample": {"share": 0.5, "seed": 1}}, BOUND],
        ),
        ({"steps": [{"shrink_unsolved": 4}]}, [{"shrink_unsolved": {"prior": 4}}, SKIP]),
    ],
)
def test_negative_weights_are_bounded_and_small_ones_skipped_unless_told_otherwise(settings, expected):
    assert steps_of(**settings) == expected


@pytest.mark.parametrize("name", list(SCHEMES))
def test_what_is_left_out_is_as_in_the_paper_of_the_scheme(name):
    chain, scheme = WeightConfig(scheme=name).chain, SCHEMES[name]
    assert chain.scheme is scheme
    assert (chain.gamma, chain.repetition, chain.turns.record) == (scheme.gamma, scheme.repetition, scheme.turns)
    assert [each.name for each in chain.steps] == (["bound_negative"] if scheme.signed else []) + ["skip_small"]
    own = {"drift": {"beta": 0.1}, "drift_averaged": {"beta": 0.1}, "bolt": {"beta": 0.1}, "rwr": {"beta": 0.1}}
    own |= {"awr": {"beta": 0.1, "w_max": 20.0}, "refit": {"shift": False}}
    own |= {"topr": {"failures": 0.3}, "asymre": {"delta": 0.1}}
    assert chain.settings == own.get(name, {})


def test_the_default_configuration_is_the_published_one():
    config = WeightConfig()
    assert (config.scheme, config.outcome, config.format_failure, config.baseline) == ("drift", None, 0.0, None)
    assert (config.chain.settings, config.chain.gamma, config.chain.repetition) == ({"beta": 0.1}, 0.9, 0.5)
    assert config.chain.turns.function is terminal
    # Less than a thousandth of a prompt's weight is not computed.
    assert [each.function for each in config.chain.steps] == [skip_small]


def test_what_is_given_goes_before_the_paper():
    chain = WeightConfig(scheme="drift", beta=0.3, gamma=1.0, repetition=0.0, turns="all").chain
    assert (chain.settings, chain.gamma, chain.repetition, chain.turns.name) == ({"beta": 0.3}, 1.0, 0.0, "all")
    chain = WeightConfig(scheme={"awr": {"w_max": 3.0}}, beta=2, gamma=0.5).chain
    assert (chain.settings, chain.gamma) == ({"beta": 2, "w_max": 3.0}, 0.5)
    assert WeightConfig(beta="auto").chain.settings == {"beta": "auto"}


# --- one's own -------------------------------------------------------------------------------------------------------


def weigh_flat(returns_N, group_N, *, height: float = 2.0):
    """A scheme of one's own."""
    return np.full(len(returns_N), height)


def doubled(weights_T, data, *, steepness: float):
    """A step of one's own, with a setting that has no default."""
    return weights_T * steepness


def test_functions_are_links_as_they_are():
    config = WeightConfig(scheme=weigh_flat, steps=[{doubled: 3.0}, drop_unsolved])
    chain = config.chain
    here = f"{__name__}:"
    assert chain.scheme.function is weigh_flat and chain.settings == {"height": 2.0}
    assert chain.scheme.name == here + "weigh_flat"
    assert [each.function for each in chain.steps] == [doubled, drop_unsolved, bound_negative, skip_small]
    assert chain.steps[0].record == {here + "doubled": {"steepness": 3.0}}
    # Manifests and recipes hold names.
    recorded = config.to_dict()
    assert recorded["scheme"] == here + "weigh_flat"
    assert recorded["steps"] == [{here + "doubled": 3.0}, "drift.weights.steps:drop_unsolved"]


def test_a_setting_of_ones_own_is_checked_by_name():
    with pytest.raises(
        ConfigError, match=r"unknown setting 'steep' in weights\.steps of .*:doubled\. Did you mean 'steep"
    ):
        WeightConfig(steps=[{doubled: {"steep": 4}}])
    with pytest.raises(ConfigError, match=r"weights\.steps: .*:doubled needs steepness\. Give a value"):
        WeightConfig(steps=[doubled])
    with pytest.raises(ConfigError, match=r"unknown setting 'heigth' in weights\.scheme\..*:weigh_flat\. .*'height'"):
        WeightConfig(scheme={weigh_flat: {"heigth": 4}})
    with pytest.raises(ConfigError, match=r"unknown setting 'betta' in weights\.scheme\.drift\..*'beta'"):
        WeightConfig(scheme={"drift": {"betta": 0.3}})
    with pytest.raises(ConfigError, match=r"weights\.scheme: got .*, expected one scheme with its settings, such as"):
        WeightConfig(scheme={"awr": {"w_max": 9}, "refit": {"shift": True}})


def test_modules_of_the_working_directory_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "my_weights.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_weights", raising=False)
    scheme = {"scheme": {"my_weights:power": {"exponent": 2}}}
    config = WeightConfig(**scheme, turns={"my_weights:later": 0.9}, steps=[{"my_weights:cliff": {"steepness": 4}}])
    chain = config.chain
    assert (chain.scheme.name, chain.settings) == ("my_weights:power", {"exponent": 2, "floor": 0.0})
    assert (chain.gamma, chain.repetition) == (0.5, 0.0)
    assert chain.turns.record == {"my_weights:later": {"decay": 0.9}}
    # Whether spreading of one's own gives negative weights can't be known.
    assert [each.record for each in chain.steps] == [
        {"my_weights:cliff": {"steepness": 4, "start": 2.0}}, BOUND, SKIP
    ]  # fmt: skip
    assert WeightConfig(**config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"unknown setting 'steep' .* Did you mean 'steepness'\?"):
        WeightConfig(steps=[{"my_weights:cliff": {"steep": 4}}])
    with pytest.raises(ConfigError, match=r"unknown step 'clif' in module 'my_weights'\. Did you mean 'cliff'\?"):
        WeightConfig(steps=["my_weights:clif"])
    with pytest.raises(ConfigError, match="needs exponent"):
        WeightConfig(scheme="my_weights:power")
    with pytest.raises(ConfigError, match=r"got 'my_weights:NUMBER', expected a name, module:attribute or a function"):
        WeightConfig(scheme="my_weights:NUMBER")


def test_schemes_turns_and_steps_of_another_package_are_found_by_their_names(declare):
    declare(
        OWN,
        schemes={"power": "extra_weights:power", "plain": "extra_weights:plain"},
        turns={"later": "extra_weights:later"},
        steps={"halved": "extra_weights:halved", "cliff": "extra_weights:cliff"},
    )
    chain = WeightConfig(
        scheme={"power": {"exponent": 2}},
        turns="later",
        steps=["halved", {"cliff": 4}, {"bound_negative": None}],
    ).chain
    assert (chain.turns.record, chain.settings) == ({"later": {"decay": 0.5}}, {"exponent": 2, "floor": 0.0})
    assert [each.record for each in chain.steps] == ["halved", {"cliff": {"steepness": 4, "start": 2.0}}, SKIP]
    with pytest.raises(
        ConfigError, match=r"unknown step 'clif'\. Did you mean 'cliff'\? Known: bound_negative, cliff, drop"
    ):
        WeightConfig(steps=["clif"])
    with pytest.raises(ConfigError, match=r"unknown spread over turns 'latr'\. Did you mean 'later'\?"):
        WeightConfig(turns="latr")
    # It has said which turns it wants.
    assert WeightConfig(scheme="plain").chain.turns.name == "extra_weights:later"
    # Nor can it be known of another package's whether weights are negative.
    own = {"scheme": {"power": {"exponent": 2}}}
    assert steps_of(**own) == [SKIP]
    assert steps_of(**own, turns="later") == [BOUND, SKIP]


def test_partial_functions_keep_what_they_were_given():
    chain = WeightConfig(steps=[functools.partial(doubled, steepness=3.0)]).chain
    assert chain.steps[0].settings == {"steepness": 3.0}


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("beta", 0.0, "a number > 0"),
        ("beta", -1.0, "a number > 0"),
        ("beta", float("nan"), "a number > 0"),
        ("beta", "much", "a number > 0, or auto"),
        ("beta", {"auto": 0.3}, "a number > 0, or auto"),
        ("gamma", 0.0, r"a number in \(0, 1\]"),
        ("gamma", 1.01, r"a number in \(0, 1\]"),
        ("repetition", -0.5, "a number ≥ 0"),
        ("format_failure", -0.1, "a number ≥ 0"),
        ("outcome", "profit", "success, reward, or a sum such as {reward: 1, success: 0.5}"),
        ("outcome", {"above": 3}, "success, reward, or a sum"),
        ("baseline", "prompt", "task, leave_one_out, dataset, fitted, or {column: NAME}"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting, value, expected):
    with pytest.raises(ConfigError, match=rf"weights\.{setting}: got {value!r}, expected {expected}"):
        WeightConfig(**{setting: value})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheme": {"awr": {"w_max": 0.0}}}, "weights.scheme.awr.w_max: got 0.0, expected a number > 0"),
        ({"scheme": {"drift": {"beta": 0.3}}}, "weights.scheme.drift.beta: got 0.3, expected weights.beta instead"),
        ({"steps": [{"shrink_unsolved": -1.0}]}, "weights.steps.shrink_unsolved: got -1.0, expected a number ≥ 0"),
        ({"steps": [{"bound_negative": -0.1}]}, "weights.steps.bound_negative: got -0.1, expected a number ≥ 0"),
        ({"steps": [{"skip_small": 1.0}]}, "weights.steps.skip_small: got 1.0, expected a share of at least 0"),
        ({"steps": [{"resample": 0.0}]}, "weights.steps.resample: got 0.0, expected a share above 0"),
        ({"steps": [{"skip_small": "much"}]}, "skip_small"),
        ({"scheme": {"awr": {"w_max": "much"}}}, "awr"),
    ],
)
def test_settings_of_what_is_built_in_are_refused_before_anything_is_sampled(settings, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        WeightConfig(**settings)


@pytest.mark.parametrize("scheme", ["sft", "rft", "star", "star_gate", "refit", "swift", "group_relative"])
@pytest.mark.parametrize("beta", [0.1, "auto"])
def test_a_beta_is_refused_where_there_is_none(scheme, beta):
    with pytest.raises(ConfigError, match=rf"weights\.beta: got {beta!r}, and the scheme {scheme} has no β\. Leave"):
        WeightConfig(scheme=scheme, beta=beta)


@pytest.mark.parametrize("scheme", ["rwr", "awr", "drift_averaged"])
def test_auto_is_refused_where_no_partition_is_estimated(scheme):
    with pytest.raises(ConfigError, match=rf"weights\.beta: got 'auto', expected a number with the scheme {scheme}"):
        WeightConfig(scheme=scheme, beta="auto")


@pytest.mark.parametrize("turns", ["terminal", "all", "credited"])
def test_what_judges_first_replies_trains_first_replies(turns):
    said = rf"weights\.turns: got '{turns}', expected first\. The weights of bolt judge first replies alone"
    with pytest.raises(ConfigError, match=said):
        WeightConfig(scheme="bolt", turns=turns)
    assert WeightConfig(scheme="bolt", turns="first").chain.turns.name == "first"


def test_shrinking_needs_a_partition():
    for scheme in ("drift", "bolt"):
        assert "shrink_unsolved" in str(steps_of(scheme=scheme, steps=["shrink_unsolved"], beta="auto"))
    for scheme in ("rft", "rwr", "drift_averaged"):
        with pytest.raises(
            ConfigError, match="shrink_unsolved needs a scheme that divides by a prompt's Ẑ, drift or bolt"
        ):
            WeightConfig(scheme=scheme, steps=["shrink_unsolved"])


@pytest.mark.parametrize(
    "settings_in_range",
    [
        {"beta": 1e-6},
        {"gamma": 1.0},
        {"repetition": 0.0},
        {"scheme": {"awr": {"w_max": 1e-3}}},
        {"steps": ["drop_unsolved", {"skip_small": 0}, {"bound_negative": {"share": 0.0}}]},
        {"steps": [{"skip_small": None}], "turns": {"credited": {"rejected": -1}}},
        {"outcome": "reward", "baseline": "leave_one_out"},
        {"beta": "auto"},
    ],
)
def test_a_setting_at_the_edge_of_its_range_is_accepted_and_recorded(settings_in_range):
    recorded = WeightConfig(**settings_in_range).to_dict()
    assert {key: recorded[key] for key in settings_in_range} == settings_in_range
    assert WeightConfig(**recorded) == WeightConfig(**settings_in_range)


@pytest.mark.parametrize("settings", [{"baseline": "dataset"}, {"scheme": "drift_averaged"}])
def test_adaptive_sampling_can_be_undone_for_tasks_alone(settings):
    config = WeightConfig(**settings)
    config.check_adaptive(0)
    WeightConfig(scheme="rft").check_adaptive(2)
    said = r"rollouts\.first: got 2, expected 0 with weights\.baseline \w+ and weights\.scheme \w+\. Adaptive sampling"
    with pytest.raises(ConfigError, match=said):
        config.check_adaptive(2)
