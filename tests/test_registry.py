import colorsys
import inspect
import json
import sys

import pytest

from drift.environments import ENVIRONMENTS, make_environment
from drift.environments.arithmetic import Arithmetic
from drift.environments.guess import Guess
from drift.errors import ConfigError
from drift.registry import Registry, check_settings, data_of, load_attribute, path_of, settings_of
from drift.weights.config import WeightConfig

SOURCE = """
class Echo:
    def __init__(self, times: int = 1, words: tuple = ()):
        if times < 0:
            raise TypeError("times below zero")
        self.times, self.words = times, words

def anything(**settings):
    return settings

def needs(path):
    return path

def doubled(weights, data, *, times=2.0):
    return times * weights
"""


OWN = """
import json as _json
FACTOR = 2
class Twice:
    @staticmethod
    def of(value):
        return FACTOR * value
def double(value):
    return FACTOR * value
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the working directory, which is on no path."""
    (tmp_path / "own_module_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield "own_module_of_a_test"
    sys.modules.pop("own_module_of_a_test", None)


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Install a package for real: a module, and the dist-info that importlib.metadata reads."""

    def install(entries, group="drift.test_things"):
        (tmp_path / "extra_things.py").write_text(SOURCE)
        info = tmp_path / "extra_things-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-things\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("extra_things", None)


def things(builtin=None):
    return Registry("thing", "drift.test_things", {"guess": "drift.environments.guess:Guess"} | (builtin or {}))


def test_a_built_in_name_gives_the_object_it_names():
    assert things().get("guess") is Guess
    assert things().make("guess", {"width": 7}, where="here") == Guess(width=7)


def test_a_built_in_module_is_imported_only_when_asked_for():
    registry = things({"broken": "drift.no_such_module:Thing"})
    assert registry.names() == ["broken", "guess"]
    with pytest.raises(ModuleNotFoundError):
        registry.get("broken")


def test_another_package_adds_a_name_through_its_entry_point(declare):
    declare({"echo": "extra_things:Echo"})
    registry = things()
    assert registry.names() == ["echo", "guess"]
    made = registry.make("echo", {"times": 3}, where="here")
    assert (type(made).__name__, made.times, made.words) == ("Echo", 3, ())


def test_a_built_in_name_wins_over_an_entry_point_of_the_same_name(declare):
    declare({"guess": "extra_things:Echo"})
    assert things().names() == ["guess"]
    assert things().get("guess") is Guess


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names(declare):
    declare({"echo": "extra_things:Echo"})
    with pytest.raises(ConfigError, match=r"unknown thing 'ecko'\. Did you mean 'echo'\? Known: echo, guess\."):
        things().get("ecko")


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ConfigError) as caught:
        things().get("zzzz")
    assert str(caught.value) == "unknown thing 'zzzz'. Known: guess."


@pytest.mark.parametrize("value", ["no_such_module_at_all:Thing", "extra_things:NoSuchAttribute"])
def test_an_entry_point_that_can_not_be_loaded_names_itself_and_the_remedy(declare, value):
    declare({"gone": value})
    with pytest.raises(ConfigError, match=rf"thing 'gone' is declared by '{value}'.*Reinstall"):
        things().get("gone")


def test_an_unknown_setting_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown setting 'widht' in here of thing 'guess'\. Did you mean 'width'\?"):
        things().make("guess", {"widht": 7}, where="here")


def test_a_missing_setting_is_refused_by_name(declare):
    declare({"needs": "extra_things:needs"})
    with pytest.raises(ConfigError, match=r"thing 'needs' needs path\. Give here\.path\."):
        things().make("needs", {}, where="here")


def test_lists_of_a_recipe_become_tuples(declare):
    declare({"echo": "extra_things:Echo"})
    assert things().make("echo", {"words": ["a", "b"]}, where="here").words == ("a", "b")


def test_a_constructor_that_takes_anything_is_given_anything(declare):
    declare({"anything": "extra_things:anything"})
    assert things().make("anything", {"colour": "red"}, where="here") == {"colour": "red"}


def test_environments_are_made_by_name_with_their_settings():
    assert {"arithmetic", "guess"} <= set(ENVIRONMENTS.names())
    assert make_environment("guess") == Guess()
    # A recipe is YAML: kinds come as a list.
    assert make_environment({"name": "arithmetic", "kinds": ["mul"], "digits": 3}) == Arithmetic(
        kinds=("mul",), digits=3
    )


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("arithmetics", {}, r"unknown environment 'arithmetics'\. Did you mean 'arithmetic'\?"),
        ("guess", {"max_turn": 2}, r"unknown setting 'max_turn' in environment.*Did you mean 'max_turns'\?"),
        ("guess", {"width": 1000}, r"environment\.width: got 1000, expected 2 to 99"),
        ("arithmetic", {"kinds": ["div"]}, r"kinds: got 'div'"),
    ],
)
def test_an_environment_that_can_not_be_made_says_why(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_environment({"name": name, **settings})


def test_a_thing_is_found_by_name_by_path_or_is_there_already(declare, own_module):
    declare({"echo": "extra_things:Echo"})
    registry = things()
    assert registry.find("guess") is Guess and registry.find("drift.environments.guess:Guess") is Guess
    assert registry.find(Guess) is Guess and registry.find(len) is len
    assert registry.find("echo") is registry.find("extra_things:Echo")
    assert registry.find(f"{own_module}:double")(21) == 42
    with pytest.raises(ConfigError, match=r"unknown thing 'ecko'\. Did you mean 'echo'\?"):
        registry.find("ecko")
    with pytest.raises(ConfigError, match=r"thing: got 3, expected a name, module:attribute or a function\."):
        registry.find(3)


def test_a_path_names_what_lies_in_the_working_directory_and_leaves_the_search_path_as_it_was(own_module):
    before = list(sys.path)
    double = load_attribute(f"{own_module}:double", "thing")
    assert double(4) == 8 and load_attribute(f"{own_module}:Twice.of", "thing")(5) == 10
    assert load_attribute(path_of(double), "thing") is double and path_of(double) == f"{own_module}:double"
    assert path_of(json.JSONDecoder.decode) == "json.decoder:JSONDecoder.decode"
    assert load_attribute(path_of(json.JSONDecoder.decode), "thing") is json.JSONDecoder.decode
    assert sys.path == before


def test_what_is_installed_comes_before_a_file_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("rgb_to_hsv = None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys")
    found = load_attribute("colorsys:rgb_to_hsv", "thing")
    # The module was imported anew, and it is the library's.
    assert found is not colorsys.rgb_to_hsv and found(1.0, 0.0, 0.0) == colorsys.rgb_to_hsv(1.0, 0.0, 0.0)


def test_a_path_that_leads_nowhere_says_where_it_ends(own_module, tmp_path):
    (tmp_path / "broken_module_of_a_test.py").write_text("import no_such_module\n")
    before = list(sys.path)
    # Where pytest rewrites a module, names of its own are among those it knows.
    known = r"Known: (@\w+, )*FACTOR, Twice, double\.$"
    for path, message in (
        (
            f"{own_module}:dubble",
            rf"^unknown thing 'dubble' in module '{own_module}'\. Did you mean 'double'\? {known}",
        ),
        (f"{own_module}:Twice.off", rf"^unknown thing 'Twice\.off' in .*\. Did you mean 'Twice'\? {known}"),
        ("no_such_module:x", r"^thing 'no_such_module:x': 'no_such_module' can't be imported: No module named"),
        ("broken_module_of_a_test:x", r"'broken_module_of_a_test' can't be imported: No module named 'no_such_module'"),
        (":x", r"^thing ':x': '' can't be imported"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_attribute(path, "thing")
    assert sys.path == before


def weighed(returns_N, group_N, *, success_N, reply_T, beta: float = 0.1, w_max: float, shift=None):
    """A function whose arguments are of every kind."""


def test_keyword_only_arguments_are_data_by_their_suffix_and_settings_else():
    assert data_of(weighed) == ["success_N", "reply_T"]
    assert settings_of(weighed) == {"beta": 0.1, "w_max": inspect.Parameter.empty, "shift": None}
    check_settings(weighed, ["shift", "w_max", "beta"], where="here")
    check_settings(weighed, {}, where="here")


@pytest.mark.parametrize(
    ("key", "hint"),
    # Neither data nor what is positional is a setting.
    [("bta", " Did you mean 'beta'?"), ("wmax", " Did you mean 'w_max'?"), ("success_N", ""), ("returns_N", "")],
)
def test_a_setting_that_a_function_does_not_take_is_refused_with_the_nearest(key, hint):
    with pytest.raises(ConfigError) as caught:
        check_settings(weighed, {"beta": 1, key: 2}, where="here")
    assert str(caught.value) == f"unknown setting {key!r} in here.{hint} Known: beta, shift, w_max."


@pytest.mark.parametrize("group", ["drift.schemes", "drift.turns", "drift.steps"])
def test_another_package_adds_a_link_of_the_chain_of_weights(declare, group):
    declare({"doubled": "extra_things:doubled"}, group)
    given = {
        "drift.schemes": {"scheme": {"doubled": {"times": 3.0}}},
        "drift.turns": {"turns": {"doubled": 3.0}},
        "drift.steps": {"steps": ["drop_unsolved", {"doubled": {"times": 3.0}}]},
    }
    chain = WeightConfig(**given[group]).chain
    if group == "drift.schemes":
        function, settings = chain.scheme.function, chain.settings
    else:
        link = chain.turns if group == "drift.turns" else chain.steps[1]
        function, settings = link.function, link.settings
    assert path_of(function) == "extra_things:doubled" and settings == {"times": 3.0}
    nearest = {"drift.schemes": "dobled", "drift.turns": {"dobled": 3.0}, "drift.steps": ["dobled"]}[group]
    with pytest.raises(ConfigError, match=r"unknown .* 'dobled'\. Did you mean 'doubled'\?"):
        WeightConfig(**{group.removeprefix("drift.").replace("schemes", "scheme"): nearest})
