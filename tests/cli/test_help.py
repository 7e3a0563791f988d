"""Help describes every option, the wanted ones first; what is misspelled gets the nearest known name."""

import inspect
import re
from pathlib import Path

import pytest

from drift.cli import VERBS, main, parser_of
from drift.recipe import Recipe, keys_of
from drift.weights.schemes import SCHEMES


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of somebody's lies here under the name that a recipe gives its own."""
    monkeypatch.chdir(tmp_path)


# What help says before the options that few need: two screens of a terminal.
SCREENS = 48


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """What a command prints on 80 columns, and its exit code."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[str, int]:
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return "".join(capsys.readouterr()), code

    return run


def function_of(verb: str):
    """The Python call that a verb is made from."""
    from importlib import import_module

    module, _, name = VERBS[verb].function.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_description(verb: str) -> None:
    for action in parser_of(verb)._actions:
        assert len((action.help or "").strip()) > 3, action.option_strings or action.dest


@pytest.mark.parametrize("scheme", SCHEMES)
def test_settings_of_a_scheme_are_options_once_it_is_named(scheme: str) -> None:
    actions = {action.dest: action for action in parser_of("weigh", ["--scheme", scheme])._actions}
    for name in SCHEMES[scheme].function.__kwdefaults__ or {}:
        assert (actions[name].help or "").strip(), name
    assert "w_max" not in {action.dest for action in parser_of("weigh")._actions}


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_the_arguments_of_the_python_call(verb: str) -> None:
    options = {action.dest.partition(".")[0] for action in parser_of(verb)._actions} - {"help"}
    options = {name.lower() for name in options}
    signature = inspect.signature(function_of(verb)).parameters
    arguments = {name for name, each in signature.items() if each.kind is not each.VAR_KEYWORD} - {"config"}
    assert arguments <= options
    if VERBS[verb].record.endswith(":Recipe"):
        assert options == arguments | {name.partition(".")[0] for name in keys_of(Recipe)}
    elif not VERBS[verb].record:
        assert options == arguments


@pytest.mark.parametrize("verb", ["run", "quickstart", "rollout", "evaluate", "weigh"])
def test_what_is_wanted_first_fits_two_screens(verb: str, told) -> None:
    said, code = told(verb, "--help")
    first, _, rest = said.partition("\nfurther ")
    assert code == 0 and rest and len(first.splitlines()) <= SCREENS
    assert all(f"--{name}" in first for name in VERBS[verb].first)
    assert first.splitlines()[0].startswith(f"usage: drift {verb}") and f"Example: {VERBS[verb].example}" in first
    assert max(map(len, first.partition("positional arguments:")[2].splitlines()), default=0) <= 80


def test_what_the_first_screens_leave_out_is_told_by_the_stage(told) -> None:
    run, weigh = told("run", "--help")[0], told("weigh", "--help")[0]
    assert "repetition_over" not in run.partition("\nfurther ")[0] and "--repetition_over" in weigh
    # Comparisons are no recipes.
    # A line may end at a hyphen.
    named = "built in: drift-paper, guess, logs, quickstart, reasoning, refit-paper, swift-paper."
    assert named.replace(" ", "") in "".join(run.split()) and "weightings-guess" not in run
    assert "weightings-guess" in "".join(told("compare", "--help")[0].split())


def test_a_recipe_has_few_keys() -> None:
    # Beside two that cut nothing unless set, said so that no server takes them from the model's own settings.
    assert len(keys_of(Recipe).keys() - {"sampling.top_k", "sampling.min_p"}) <= 50


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["rollout", "guess", "--task", "5"], "--tasks"),
        (["run", "quickstart", "--rollouts.task", "5"], "--rollouts.tasks"),
        (["quickstart", "--dry"], "--dry_run"),
        (["quickstart", "--max_step", "5"], "--training.max_steps"),
        (["weigh", "nowhere", "--base", "task"], "--baseline"),
        (["check", "guess", "--rep"], "--repair"),
    ],
)
def test_nothing_is_abbreviated(arguments: list[str], near: str, told) -> None:
    said, code = told(*arguments)
    assert code == 2 and "unknown option" in said and f"Did you mean {near!r}?" in said
    # Nobody reads the names of ninety options.
    assert len(said.split(", ")) < 24


def test_help_is_a_verb_too(told) -> None:
    top, code = told("help")
    assert code == 0 and (top, code) == told("--help") == told("-h") == told()
    assert all(f"  {verb} " in top and each.summary in top for verb, each in VERBS.items())
    assert told("help", "run") == told("run", "--help") == told("run", "-h")
    said, code = told("help", "rolout")
    assert code == 2 and "Did you mean 'rollout'?" in said
    said, code = told("--verson")
    assert code == 2 and "Did you mean '--version'?" in said


def test_a_flag_takes_no_word_that_is_not_its_own(told) -> None:
    # Its last words are how much of the disk is free at that moment.
    free = re.compile(r"[\d.]+ \w+ are free")
    plain, code = told("run", "quickstart", "--dry_run")
    assert code == 0 and plain
    for arguments in (
        ["--dry_run", "quickstart"],
        ["--dry-run", "true", "quickstart"],
        ["--dry_run=true", "quickstart"],
    ):
        again, code = told("run", *arguments)
        assert (free.sub("", again), code) == (free.sub("", plain), 0)


def test_a_key_within_a_mapping_may_be_named(told) -> None:
    for line in (["--training.lora.r", "4"], ["--lora.r", "4"], ["--lora", "{r: 4}"]):
        out = told("run", "quickstart", *line, "--dry_run")[0]
        assert "r: 4" in out.partition("lora:")[2]
    assert "Did you mean 'weight_decay'?" in told("run", "quickstart", "--arguments.wieght_decay", "0", "--dry_run")[0]
