import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from drift.cli.main import VERBS, main
from drift.cli.weigh import describe_beta, describe_rollouts
from drift.manifest import read_manifest
from drift.recipe import built_in_recipes

# The whole pipeline on the shipped policy, as small as it can be and still be the real thing.
QUICK = [
    "--rollouts.tasks", "24", "--rollouts.samples", "4", "--training.max_steps", "4", "--training.batch_size", "16",
    "--evaluation.tasks", "20", "--evaluation.samples", "1",
]  # fmt: skip


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_help_names_every_verb_and_is_quick() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "drift", "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert all(verb in done.stdout for verb in VERBS)
    # 0.5 s on an idle machine; the tests share theirs.
    assert min(times) < 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: drift {verb}")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rolout"], 2, "unknown command 'rolout'. Did you mean 'rollout'?"),
        (["run", "quickstart", "--weights.bta", "1"], 2, "Did you mean '--weights.beta'?"),
        (["rollout", "guess", "--out", "x", "--environment.width", "9"], 2, "unknown option '--environment.width'"),
        (["rollout", "guess", "--out", "x", "--environment.settings={}"], 2, "Did you mean '--environment_settings'?"),
        (["rollout", "guess", "--out", "x", "--environment-settings.width=2"], 2, "guess with width 2 has"),
        (["run", "quickstart", "--weights.beta", "0"], 2, "weights.beta: got 0.0, expected a number > 0"),
        (["run", "quickstart", "--weights.beta", "much"], 2, "weights.beta"),
        (["run", "quickstart", "--weights.scheme", "drft", "--dry-run"], 2, "Did you mean 'drift'?"),
        (["run", "quickstart", "--rollouts.samples", "1", "--dry-run"], 2, "at least 2 with the weighting 'drift'"),
        (["run", "quickstart", "--weights.scheme", "bolt", "--dry-run"], 2, "turns: got 'terminal', expected first"),
        (["run", "nowhere.yaml"], 2, "no such file"),
        (["run", "quickstart", "--environment.name", "arithmetik", "--dry-run"], 2, "Did you mean 'arithmetic'?"),
        (["run", "quickstart", "--environment.settings", "{max_turn: 3}", "--dry-run"], 2, "Did you mean 'max_turns'?"),
        (["run", "quickstart", "--rollouts.tasks", "1000000", "--dry-run"], 2, "Ask for fewer tasks"),
        (["run", "quickstart", "--policy.model", "./nowhere", "--dry-run"], 2, "no model in nowhere"),
        (["rollout", "arithmetic", "--out", "x", "--policy.model", "./nowhere"], 2, "nothing there"),
        (["import", "nowhere.jsonl", "--out", "x"], 1, "nowhere.jsonl can't be read: No such file or directory"),
        (["import", "nowhere.jsonl", "--out", "x", "--format", "mathdail"], 2, "Did you mean 'mathdial'?"),
        (["weigh", "nowhere", "--out", "x"], 1, "nothing there, expected trajectories"),
        (["train", "nowhere", "nowhere", "--out", "x"], 1, "nothing there, expected trajectories"),
        (["report", "nowhere"], 1, "nothing there, expected evaluation"),
        (["check", "chess"], 2, "unknown environment 'chess'"),
        (["weigh", "nowhere"], 2, "out"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing_behind(
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("drift: ") and "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: {beta: 0.1, gama: 1}", "unknown key 'weights.gama' in {path}. Did you mean 'weights.gamma'?"),
        ("wieghts: {beta: 0.1}", "unknown key 'wieghts' in {path}. Did you mean 'weights'?"),
        ("weights: 3", "weights: got 3, expected keys and values"),
        ("a: [", "is not YAML"),
        ("training: {max_steps: many}", '"training.max_steps": Expected'),
    ],
)
def test_recipes_with_mistakes_are_refused_by_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["run", str(path), "--dry-run"]) == 2
    assert message.format(path=path) in capsys.readouterr().err


def test_options_may_be_spelled_with_either_dash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quickstart", "--dry_run", "--training.max-steps=7", "--training.batch_size", "64"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["training"]["max_steps"], resolved["training"]["batch_size"]) == (7, 64)


def test_the_command_line_overrides_the_file_which_overrides_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seed: 7\nweights: {beta: 0.3, gamma: 0.8}\nenvironment: {name: guess, settings: {width: 30}}\n"
        "rollouts: {tasks: 100}\nevaluation: {tasks: 100}\n"
    )
    assert main(["run", "--dry-run", str(path), "--weights.beta", "0.4"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["seed"], resolved["weights"]["beta"], resolved["weights"]["gamma"]) == (7, 0.4, 0.8)
    assert resolved["environment"] == {"name": "guess", "settings": {"width": 30}}
    assert resolved["weights"]["scheme"] == "drift"


def test_the_temperature_may_be_a_number_or_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("weights: {beta: auto, kl_target: 0.4}\n")
    assert main(["run", "--dry-run", str(path)]) == 0
    weights = yaml.safe_load(capsys.readouterr().out)["weights"]
    assert (weights["beta"], weights["kl_target"]) == ("auto", 0.4)
    for given, expected in (("auto", "auto"), ("0.3", 0.3)):
        assert main(["run", "quickstart", "--dry-run", "--weights.beta", given]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["weights"]["beta"] == expected
    assert main(["run", "quickstart", "--dry-run", "--weights.beta", "auto", "--weights.scheme", "rwr"]) == 2
    assert "expected a number with the scheme rwr" in capsys.readouterr().err


def test_what_samples_told_is_said_in_a_few_lines() -> None:
    needed = {
        "0.5": {"median": 54.0, "most": 60.2, "more": 10021.0},
        "0.1": {"median": None, "most": None, "more": 0.0},
    }
    rollouts = {"k": [1, 2], "mixed_share": [0.0, 0.25], "error": [3.7, None], "bound": [9.0, 8.0], "needed": needed}
    assert list(describe_rollouts(rollouts)) == [
        "mixed prompts by samples: 1: 0.0%, 2: 25.0%",
        "relative error of Ẑ by samples, median of mixed prompts: 1: 3.7, 2: –",
        "for an error of 50%: 54 samples of the median mixed prompt, 60 of nine in ten; "
        "10,021 conversations more in all",
    ]
    assert list(describe_rollouts({"k": [1], "mixed_share": [0.0]})) == ["mixed prompts by samples: 1: 0.0%"]
    found = {"per": "dataset", "quantiles": [0.25] * 5, "clamped": 0}
    assert list(describe_beta(found)) == ["beta, one for all prompts: 0.25"]
    out_of_reach = {"per": "dataset", "quantiles": None, "clamped": 1}
    assert list(describe_beta(out_of_reach)) == ["beta, one for all prompts: 0, the best of each prompt alone"]
    all_alike = {"per": "dataset", "quantiles": None, "clamped": 0, "success_share": 1.0}
    assert list(describe_beta(all_alike)) == [
        "beta, one for all prompts: any, all weigh the same; 100.0 % succeed, and as many are to count"
    ]
    each = {"per": "group", "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5], "clamped": 3, "equal_returns": 0}
    assert "0.1, 0.2, 0.3, 0.4, 0.5; 3 prompts can't reach" in next(describe_beta(each))
    assert list(describe_beta(None)) == []


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipes_are_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name, "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["environment"]["name"]


def test_a_recipe_runs_end_to_end_and_again_without_doing_anything_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["quickstart", "--out", str(out), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "multi@5" in printed and "tuned" in printed and str(out / "report.html") in printed.replace("\n", "")
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["rollouts"]["tasks"] == 24
    assert "Conversations before and after" in (out / "report.html").read_text()
    kept = {name: stamp for name, stamp in files(out).items() if "shards" in name or name.startswith("model/model")}
    assert main(["run", str(out / "recipe.yaml"), "--out", str(out)]) == 0
    assert {name: files(out)[name] for name in kept} == kept
    assert main(["quickstart", "--out", str(out), *QUICK, "--seed", "2"]) == 2
    assert "seed: 1 -> 2" in capsys.readouterr().err
    # Where conversations are held is no part of what a run is: only the seed is refused.
    moved = ["--rollouts.cluster.address", "auto", "--rollouts.cluster.workers", "2", "--seed", "2"]
    assert main(["quickstart", "--out", str(out), *QUICK, *moved]) == 2
    assert "another recipe: seed: 1 -> 2. " in capsys.readouterr().err


def test_the_same_seed_twice_gives_the_same_data_weights_and_losses(tmp_path: Path) -> None:
    for name in "ab":
        assert main(["quickstart", "--out", str(tmp_path / name), *QUICK, "--evaluation.samples", "0"]) == 0
    for stage, kind, key in (("rollouts", "trajectories", "dataset_hash"), ("weights", "weights", "weights_hash")):
        first, second = (read_manifest(tmp_path / name / stage, kind)[key] for name in "ab")
        assert first == second
    for file in ("model/metrics.jsonl", "evaluation/estimates.json"):
        assert (tmp_path / "a" / file).read_text() == (tmp_path / "b" / file).read_text()


def test_stages_one_by_one_do_what_the_recipe_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, weights, model = (str(tmp_path / name) for name in ("data", "weights", "model"))
    rollout = ["rollout", "guess", "--out", data, "--tasks", "12", "--samples", "4"]
    assert main([*rollout, "--sampling.max_new_tokens", "16"]) == 0
    assert "trajectories 48" in capsys.readouterr().out
    assert main(["weigh", data, "--out", weights, "--scheme", "swift", "--beta", "0.2"]) == 0
    assert "mixed_share" in capsys.readouterr().out
    train = ["train", data, weights, "--out", model, "--max_steps", "2", "--batch_size", "8"]
    assert main([*train, "--turns", "all", "--normalization", "mean"]) == 0
    assert "2 steps; rows" in capsys.readouterr().out
    evaluate = ["evaluate", "guess", "--out", str(tmp_path / "evaluation"), "--tasks", "10", "--samples", "0"]
    policies = json.dumps({"base": "default", "tuned": model})
    assert main([*evaluate, "--policies", policies, "--seen", data, "--sampling.max_new_tokens", "16"]) == 0
    assert "tuned - base" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "evaluation")]) == 0


def test_import_says_what_came_in_and_what_did_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "log.jsonl", str(tmp_path / "data")
    good = {"messages": [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}], "score": 1}
    log.write_text("\n".join([json.dumps(good), *["[]"] * 30]))
    assert main(["import", str(log), "--out", out, "--settings", "{reward: score}", "--strict"]) == 1
    assert "30 rows can't be imported (not_object 30)" in capsys.readouterr().err
    assert main(["import", str(log), "--out", out, "--settings", "{reward: score}"]) == 0
    printed = capsys.readouterr()
    assert "left out 30 of 31 rows: not_object 30" in printed.out and "trajectories 1" in printed.out
    assert printed.err.count("  line ") == 20 and "line 2: not_object: got [], expected an object" in printed.err


def test_check_passes_and_fails_by_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "guess", "--tasks", "3"]) == 0
    assert "0 failed" in capsys.readouterr().out


def test_make_policy_prints_its_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "2", "--knowing_steps", "1", "--hidden", "16", "--layers", "1", "--heads", "1", "--rows", "4"]
    assert main(["make-policy", "--out", str(tmp_path / "policy"), *small, "--feed_forward", "16"]) == 0
    assert "insist/add/plain" in capsys.readouterr().out
    assert (tmp_path / "policy" / "model.safetensors").is_file()
