from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml

from drift.baselines.config import OnlineConfig, PreferenceConfig
from drift.cli import main
from drift.comparison import Comparison, load_comparison
from drift.comparison.methods import METHODS, WEIGHTED, find_methods, own_methods
from drift.comparison.plans import plan_of
from drift.errors import ConfigError
from drift.recipe import Recipe, built_in_comparisons
from drift.rollouts.config import RolloutConfig
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig

# What each built-in method changes in a recipe, written out.
CHANGES = {
    "drift": {},
    "drift-no-repetition": {"weights.repetition": 0.0},
    "drift-format": {"weights.format_failure": 0.1},
    "drift-all-turns": {"weights.turns": "all"},
    "drift-mean": {"training.normalization": "mean"},
    "drift-drop": {"weights.steps": ["drop_unsolved"]},
    "drift-averaged": {"weights.scheme": "drift_averaged"},
    "drift-refresh": {"rounds": 2},
    "sft": {"weights.scheme": "sft"},
    "rft": {"weights.scheme": "rft"},
    "refit": {"weights.scheme": "refit"},
    "swift": {"weights.scheme": "swift"},
    "rwr": {"weights.scheme": "rwr"},
    "awr": {"weights.scheme": "awr"},
    "drift-credited": {"weights.turns": "credited"},
    "drift-shrink": {"weights.steps": ["shrink_unsolved"]},
    "drift-auto": {"weights.beta": "auto"},
    "star": {"weights.scheme": "star"},
    "star-gate": {"weights.scheme": "star_gate"},
    "bolt": {"weights.scheme": "bolt"},
    "refit-terminal": {"weights.scheme": "refit", "weights.turns": "terminal"},
    "swift-terminal": {"weights.scheme": "swift", "weights.turns": "terminal"},
    "group-relative": {"weights.scheme": "group_relative"},
    "asymre": {"weights.scheme": "asymre"},
    "topr-10": {"weights.scheme.topr.failures": 0.1, "training.loss": "tapered"},
    "topr-30": {"weights.scheme.topr.failures": 0.3, "training.loss": "tapered"},
    "advantage": {
        "weights.scheme": "rft",
        "weights.turns": "advantage",
        "weights.steps": [{"bound_negative": 0.43}],
        "training.loss": "tapered",
    },
    "importance": {"weights.scheme": "rft", "training.loss": "importance"},
    "token-probability": {"weights.scheme": "rft", "training.loss": "token_probability"},
    "anchored": {"weights.scheme": "rft", "training.loss": "anchored"},
    "regression": {
        "weights.turns": "all",
        "weights.steps": [{"skip_small": None}],
        "training.loss": "advantage_regression",
    },
    "rft-refresh": {"weights.scheme": "rft", "rounds": 2},
}
# And what each method of another trainer says of its own settings.
OTHERS = {"dpo": "dpo", "dpo-final": "dpo-final", "dpo-step": "dpo-step", "kto": "kto", "grpo": ""}


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_every_method_is_here() -> None:
    assert {*CHANGES, *OTHERS} == set(METHODS)
    assert all((method.trainer == WEIGHTED) == (name in CHANGES) for name, method in METHODS.items())


@pytest.mark.parametrize("name", CHANGES)
def test_a_method_changes_its_own_keys_and_no_other(name: str) -> None:
    recipe = Recipe()
    before, after = flat(recipe.to_dict()), flat(plan_of(recipe, METHODS[name], 5).to_dict())
    assert {key: value for key, value in after.items() if before.get(key) != value} == {"seed": 5, **CHANGES[name]}


def test_a_method_of_one_s_own_is_nested_or_dotted_and_keeps_what_the_recipe_says() -> None:
    own = own_methods({"soft": {"weights": {"beta": 0.3}, "weights.turns": "all"}}, "mine.yaml")
    recipe = plan_of(Recipe(weights=WeightConfig(gamma=0.8)), own["soft"], 2).recipe
    assert (recipe.weights.beta, recipe.weights.gamma, recipe.weights.turns, recipe.seed) == (0.3, 0.8, "all", 2)
    # Schemes, turns and steps are mappings and lists themselves, and replace the recipe's as a whole.
    changes = {"scheme": {"awr": {"w_max": 3.0}}, "turns": {"credited": -0.5}, "steps": [{"skip_small": 0.01}]}
    own = own_methods({"nested": {"weights": changes}}, "mine.yaml")
    own |= own_methods({"dotted": {f"weights.{key}": value for key, value in changes.items()}}, "mine.yaml")
    start = Recipe(weights=WeightConfig(scheme={"awr": {"w_max": 9.0}}, beta=0.3, steps=["drop_unsolved"]))
    for name in ("nested", "dotted"):
        recipe = plan_of(start, own[name], 1).recipe
        assert recipe.weights == WeightConfig(beta=0.3, **changes)
    # YAML reads 1e-3 as text; β may be a number or a word.
    own = own_methods({"mine": {"training.learning_rate": "1e-3", "weights.beta": "auto"}}, "mine.yaml")
    recipe = plan_of(Recipe(), own["mine"], 1).recipe
    assert (recipe.training.learning_rate, recipe.weights.beta) == (0.001, "auto")


def test_changes_are_made_at_once_so_that_their_order_does_not_matter() -> None:
    # rwr takes no β of auto: each change alone makes no sense.
    start = Recipe(weights=WeightConfig(beta="auto"))
    for overrides in ({"weights.beta": 0.2, "weights.scheme": "rwr"}, {"weights.scheme": "rwr", "weights.beta": 0.2}):
        plan = plan_of(start, own_methods({"mine": overrides}, "mine.yaml")["mine"], 1)
        assert (plan.recipe.weights.scheme, plan.recipe.weights.beta) == ("rwr", 0.2)


def test_what_belongs_to_the_scheme_of_the_recipe_does_not_go_with_another() -> None:
    weights = WeightConfig(scheme={"awr": {"w_max": 9.0}}, beta=0.3, gamma=0.8, turns="all")
    recipe = Recipe(weights=weights)
    # A β goes with any scheme that has one, settings and turns with awr alone.
    assert plan_of(recipe, METHODS["awr"], 1).recipe.weights == weights
    assert plan_of(recipe, METHODS["rwr"], 1).recipe.weights == WeightConfig(scheme="rwr", beta=0.3, gamma=0.8)
    assert plan_of(recipe, METHODS["rft"], 1).recipe.weights == WeightConfig(scheme="rft", gamma=0.8)
    # A β that is to be found is for drift and bolt; awr has its own again.
    found = Recipe(weights=WeightConfig(beta="auto"))
    assert plan_of(found, METHODS["awr"], 1).recipe.weights == WeightConfig(scheme="awr")
    assert plan_of(found, METHODS["drift-drop"], 1).recipe.weights.beta == "auto"


@pytest.mark.parametrize("name", ["dpo", "dpo-final", "dpo-step", "kto"])
def test_preferences_get_the_recipe_s_return_optimizer_and_conversations_per_step(name: str) -> None:
    recipe = Recipe(
        weights=WeightConfig(gamma=0.8, format_failure=0.1),
        training=TrainingConfig(max_steps=70, batch_size=48, learning_rate=1e-4, warmup=0.2),
    )
    settings = plan_of(recipe, METHODS[name], 5).settings
    assert isinstance(settings, PreferenceConfig) and settings.format == OTHERS[name]
    assert (settings.gamma, settings.repetition, settings.format_failure) == (0.8, 0.5, 0.1)
    assert (settings.max_steps, settings.learning_rate, settings.warmup) == (70, 1e-4, 0.2)
    # A pair is two conversations.
    assert settings.batch_size == (48 if name == "kto" else 24)


def test_online_holds_as_many_conversations_as_there_are_rollouts() -> None:
    recipe = Recipe(rollouts=RolloutConfig(tasks=400, samples=16), training=TrainingConfig(max_steps=50))
    settings = plan_of(recipe, METHODS["grpo"], 5).settings
    assert isinstance(settings, OnlineConfig) and settings.tasks == 400
    assert settings.rounds * settings.prompts * settings.samples == 6400
    # As the sweep left it, on the policy that the sweep was made with; another has the recipe's learning rate.
    assert (settings.prompts, settings.samples, settings.learning_rate) == (16, 4, 3e-4)
    other = plan_of(replace(recipe, model="org/model"), METHODS["grpo"], 5).settings
    assert isinstance(other, OnlineConfig) and other.learning_rate == recipe.training.learning_rate
    own = own_methods({"g": {"trainer": "online", "online": {"samples": 8, "learning_rate": 1e-5}}}, "m.yaml")
    settings = plan_of(recipe, own["g"], 5).settings
    assert isinstance(settings, OnlineConfig)
    assert (settings.samples, settings.learning_rate, settings.rounds) == (8, 1e-5, 100)


def test_a_missing_trainer_is_found_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from drift.baselines import shared

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(shared, "version", absent)
    out = tmp_path / "out"
    assert main(["compare", "quickstart", "--methods", "sft,dpo", "--out", str(out)]) == 2
    assert "pip install 'drift-rl[trl]'" in capsys.readouterr().err and not out.exists()
    assert main(["compare", "quickstart", "--methods", "sft,rft", "--out", str(out), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"weights.bta": 1}}, "unknown key 'weights.bta' in mine.yaml, method 'a'. Did you mean 'weights.beta'?"),
        ({"a": {"weights": {"gama": 1}}}, "Did you mean 'weights.gamma'?"),
        ({"a": {"rollouts.samples": 4}}, "got rollouts.samples, expected keys of weights, training, rounds"),
        ({"a": {"weights.beta": "much"}}, "method 'a'"),
        ({"a": {"weights.shceme": {"awr": {"w_max": 1}}}}, "Did you mean 'weights.scheme'?"),
        ({"a": {"training.turns": "all"}}, "unknown key 'training.turns'"),
        ({"a": {"trainer": "preferences"}}, "trainer: got 'preferences', expected weighted, preference, online"),
        ({"a": {"preference.beta": 1}}, "got preference.beta, expected keys of weights, training, rounds"),
        ({"a": {"trainer": "preference", "weights.beta": 1}}, "got weights.beta, expected keys of preference"),
        ({"a": {"trainer": "preference", "preference.bta": 1}}, "Did you mean 'preference.beta'?"),
        ({"a": 3}, "got 3, expected recipe keys and values"),
        ({"drift": {"weights.beta": 1}}, "there is a method of that name already"),
        ({"base": {"weights.beta": 1}}, "there is a method of that name already"),
        ({"../a": {"weights.beta": 1}}, "expected a name of letters, digits, -, _ and dots"),
        ({"..": {"weights.beta": 1}}, "expected a name of letters, digits, -, _ and dots"),
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
    alone = Recipe(rollouts=RolloutConfig(samples=1), weights=WeightConfig(scheme="sft"))
    comparison = Comparison(recipe=alone, methods=find_methods(["sft", "swift"], {}))
    comparison.plan_of("sft", 1)
    with pytest.raises(ConfigError, match=r"method 'swift': rollouts.samples: got 1, expected at least 2"):
        comparison.plan_of("swift", 1)


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


@pytest.mark.parametrize("name", built_in_comparisons())
def test_comparisons_that_come_with_the_package_are_whole(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Seeds differ in which tasks they draw.
    assert main(["compare", name, "--dry-run", "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    given = yaml.safe_load(built_in_comparisons()[name].read_text())
    methods, against = given.get("methods", ()), given.get("against", "")
    assert all(f"{method}: " in shown for method in methods) and f"compared with {against}" in shown
    # What it defines it also compares.
    assert set(given.get("define", ())) <= set(methods) and not (tmp_path / "out").exists()


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
        (["--model", "./nowhere"], "no model in nowhere"),
        (["--evaluation.kl", "10"], "evaluation: got 'kl or a judge', expected neither in a comparison"),
        (["--rollouts.samples", "1"], "at least 2 with the scheme 'drift'"),
        (["--training.max_steps", "1", "--methods", "sft,drift-refresh"], "method 'drift-refresh': rounds: got 2"),
    ],
)
def test_mistakes_on_the_command_line_are_found_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "quickstart", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
