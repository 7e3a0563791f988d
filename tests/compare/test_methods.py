from pathlib import Path

import pytest
import yaml

from drift.cli.main import main
from drift.compare import Comparison, load_comparison
from drift.compare.methods import METHODS, apply_method, find_methods, own_methods
from drift.errors import ConfigError
from drift.recipe import Recipe, RolloutSettings, to_dict
from drift.weights.config import WeightConfig

# What each built-in method changes in a recipe, written out.
CHANGES = {
    "drift": {},
    "drift-no-repetition": {"weights.repetition": 0.0},
    "drift-format": {"weights.format_failure": 0.1},
    "drift-all-turns": {"training.turns": "all"},
    "drift-mean": {"training.normalization": "mean"},
    "drift-drop": {"weights.no_success": "drop"},
    "drift-refresh": {"rounds": 2},
    "sft": {"weights.scheme": "sft"},
    "rft": {"weights.scheme": "rft"},
    "refit": {"weights.scheme": "refit"},
    "swift": {"weights.scheme": "swift"},
    "rwr": {"weights.scheme": "rwr"},
    "awr": {"weights.scheme": "awr"},
}


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_its_own_keys_and_no_other(name: str) -> None:
    recipe = Recipe()
    before, after = flat(to_dict(recipe)), flat(to_dict(apply_method(recipe, METHODS[name], 5)))
    assert {key: after[key] for key in before if before[key] != after[key]} == {"seed": 5, **CHANGES[name]}


def test_a_method_of_one_s_own_is_nested_or_dotted_and_keeps_what_the_recipe_says() -> None:
    own = own_methods({"soft": {"weights": {"beta": 0.3}, "training.turns": "all"}}, "mine.yaml")
    recipe = apply_method(Recipe(weights=WeightConfig(gamma=0.8)), own["soft"], 2)
    assert (recipe.weights.beta, recipe.weights.gamma, recipe.training.turns, recipe.seed) == (0.3, 0.8, "all", 2)
    own = own_methods({"mine": {"weights.parameters.power": 2.0}}, "mine.yaml")
    start = Recipe(weights=WeightConfig(parameters={"other": 1.0}))
    assert apply_method(start, own["mine"], 1).weights.parameters == {"other": 1.0, "power": 2.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"weights.bta": 1}}, "unknown key 'weights.bta' in mine.yaml, method 'a'. Did you mean 'weights.beta'?"),
        ({"a": {"weights": {"gama": 1}}}, "Did you mean 'weights.gamma'?"),
        ({"a": {"rollouts.samples": 4}}, "got rollouts.samples, expected keys of weights, training, rounds"),
        ({"a": {"weights.beta": "much"}}, "method 'a'"),
        ({"a": 3}, "got 3, expected recipe keys and values"),
        ({"drift": {"weights.beta": 1}}, "there is a method of that name already"),
        ({"base": {"weights.beta": 1}}, "there is a method of that name already"),
        ({"../a": {"weights.beta": 1}}, "can't be a folder's"),
        ({"..": {"weights.beta": 1}}, "can't be a folder's"),
    ],
)
def test_methods_with_mistakes_are_refused_by_key(given: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        own_methods(given, "mine.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": (1, 1)}, "seeds: got (1, 1), expected each seed once"),
        ({"seeds": ()}, "at least one whole number"),
        ({"methods": {}}, "expected some of drift,"),
        ({"against": "srt"}, "unknown method 'srt' in against. Did you mean 'sft'?"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Comparison(recipe=Recipe(), **settings)
    assert message in str(error.value)


def test_a_method_that_the_recipe_forbids_is_named() -> None:
    alone = Recipe(rollouts=RolloutSettings(samples=1), weights=WeightConfig(scheme="sft"))
    comparison = Comparison(recipe=alone, methods=find_methods(["sft", "swift"], {}))
    comparison.recipe_of("sft", 1)
    with pytest.raises(ConfigError, match=r"method 'swift': rollouts.samples: got 1, expected at least 2"):
        comparison.recipe_of("swift", 1)


def test_a_file_says_what_to_compare(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 9\nrollouts: {tasks: 7}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "recipe": "base.yaml",
                "methods": ["sft", "soft"],
                "define": {"soft": {"weights.beta": 0.3}},
                "seeds": [4, 5],
                "against": "soft",
            }
        )
    )
    given = load_comparison(str(path))
    # The seed is the comparison's to say.
    assert given.recipe == {"rollouts": {"tasks": 7}}
    assert (given.methods, given.seeds, given.against) == (("sft", "soft"), (4, 5), "soft")
    assert given.own["soft"].overrides == {"weights.beta": 0.3}
    # A recipe alone is compared by default settings.
    plain = load_comparison(str(tmp_path / "base.yaml"))
    assert plain.seeds == (1, 2, 3) and len(plain.methods) == 8 and plain.against_among(plain.methods) == "sft"
    assert plain.against_among(("rft", "drift")) == "rft"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: nowhere\n", "no such file"),
        ("recipe: quickstart\nmetods: [sft]\n", "Did you mean 'methods'?"),
        ("recipe: quickstart\nmethods: [sftt]\n", "unknown method 'sftt'. Did you mean 'sft'?"),
        ("recipe: quickstart\nmethods: sft\n", "expected a list of names"),
        ("recipe: quickstart\nseeds: [a]\n", "expected a list of whole numbers"),
        ("recipe: {weights: {bta: 1}}\n", "unknown key 'recipe.weights.bta'"),
        ("recipe: quickstart\ndefine: {a: {weights.bta: 1}}\n", "Did you mean 'weights.beta'?"),
        ("recipe: quickstart\ndefine: [a]\n", "expected methods by name"),
        ("recipe: quickstart\nagainst: rft\nmethods: [sft]\n", "unknown method 'rft' in against"),
        ("wieghts: {}\n", "Did you mean 'weights'?"),
    ],
)
def test_files_with_mistakes_are_refused_before_any_work(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["compare", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sft,rfft"], "unknown method 'rfft'. Did you mean 'rft'?"),
        (["--seeds", "1,b"], "seeds: got '1,b', expected whole numbers"),
        (["--against", "drif"], "unknown method 'drif' in against. Did you mean 'drift'?"),
        (["--weights.bta", "1"], "Did you mean '--weights.beta'?"),
        (["--rollouts.tasks", "1000000"], "Ask for fewer tasks"),
        (["--policy.model", "./nowhere"], "no model in nowhere"),
        (["--rollouts.samples", "1"], "at least 2 with the weighting 'drift'"),
        (["--training.max_steps", "1", "--methods", "sft,drift-refresh"], "method 'drift-refresh': rounds: got 2"),
    ],
)
def test_mistakes_on_the_command_line_are_found_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "quickstart", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
