import sys

import pytest

from drift.environments import ENVIRONMENTS, make_environment
from drift.environments.arithmetic import Arithmetic
from drift.environments.guess import Guess
from drift.errors import ConfigError
from drift.registry import Registry

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
"""


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Install a package for real: a module, and the dist-info that importlib.metadata reads."""

    def install(entries):
        (tmp_path / "extra_things.py").write_text(SOURCE)
        info = tmp_path / "extra_things-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-things\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[drift.test_things]\n{lines}\n")
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
    with pytest.raises(ConfigError, match=r"here: thing 'needs' can't be made from \{\}.*'path'"):
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
    assert make_environment("arithmetic", {"kinds": ["mul"], "digits": 3}) == Arithmetic(kinds=("mul",), digits=3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("arithmetics", {}, r"unknown environment 'arithmetics'\. Did you mean 'arithmetic'\?"),
        ("guess", {"max_turn": 2}, r"unknown setting 'max_turn' in environment\.settings.*Did you mean 'max_turns'\?"),
        ("guess", {"width": 1000}, r"environment\.settings\.width: got 1000, expected 2 to 99"),
        ("arithmetic", {"kinds": ["div"]}, r"kinds: got 'div'"),
    ],
)
def test_an_environment_that_can_not_be_made_says_why(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_environment(name, settings)
