import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from drift.cli import VERBS, main
from drift.dataset.store import TrajectoryWriter
from drift.manifest import read_manifest
from drift.recipe import built_in_recipes
from drift.types import Trajectory


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of somebody's lies here under the name that a recipe gives its own."""
    monkeypatch.chdir(tmp_path)


# The whole pipeline on the shipped policy, as small as it can be and still be the real thing.
QUICK = [
    "--environment.max_turns", "2", "--rollouts.tasks", "24", "--rollouts.samples", "4",
    "--training.max_steps", "2", "--training.batch_size", "16", "--evaluation.tasks", "20", "--evaluation.samples", "1",
]  # fmt: skip


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_help_names_every_verb_and_is_quick() -> None:
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "drift", "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    assert all(verb in done.stdout for verb in VERBS)
    # Seconds of a processor, not of a clock: the tests share theirs.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: drift {verb}")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rolout"], 2, "unknown command 'rolout'. Did you mean 'rollout'?"),
        (["run", "quickstart", "--weights.bta", "1"], 2, "Did you mean '--weights.beta'?"),
        (["rollout", "guess", "--out", "x", "--environment_settings={}"], 2, "Did you mean '--environment'?"),
        (["rollout", "guess", "--out", "x", "--environment.settings={}"], 2, "unknown setting 'settings'"),
        (["rollout", "guess", "--tasks", "999", "--environment.width=2"], 2, "guess with width 2 has"),
        (["rollout", "guess", "--environment.widht", "9"], 2, "Did you mean 'width'?"),
        (["run", "quickstart", "--weights.beta", "0"], 2, "weights.beta: got 0.0, expected a number > 0"),
        (["run", "quickstart", "--weights.beta", "much"], 2, "--weights.beta: got much, expected a number or auto"),
        (
            ["run", "quickstart", "--weights.beta.auto", "0.3"],
            2,
            "--weights.beta: got {auto: 0.3}, expected a number or auto",
        ),
        (["run", "quickstart", "--dry-run", "maybe"], 2, "maybe"),
        (["run", "quickstart", "--samples", "3"], 2, "--samples may be --rollouts.samples or --evaluation.samples."),
        (["run", "quickstart", "--weights.scheme", "drft", "--dry-run"], 2, "Did you mean 'drift'?"),
        (["run", "quickstart", "--rollouts.samples", "1", "--dry-run"], 2, "at least 2 with the scheme 'drift'"),
        (
            ["run", "quickstart", "--weights.scheme", "bolt", "--weights.turns", "all", "--dry-run"],
            2,
            "weights.turns: got 'all', expected first",
        ),
        (["run", "quickstart", "--weights.steps", "[drop_unsolvd]", "--dry-run"], 2, "Did you mean 'drop_unsolved'?"),
        (["run", "quickstart", "--weights.turns", "{credited: {rejectd: 0}}", "--dry-run"], 2, "mean 'rejected'?"),
        (["run", "quickstart", "--weights.scheme", "{drift: {w_max: 9}}", "--dry-run"], 2, "setting 'w_max'"),
        (["run", "quickstart", "--weights.scheme", "{awr: {w_mx: 9}}", "--dry-run"], 2, "Did you mean 'w_max'?"),
        (["weigh", "nowhere", "--out", "x", "--scheme", "awr", "--w_mx", "9"], 2, "Did you mean '--w_max'?"),
        (["weigh", "nowhere", "--out", "x", "--scheme", "nowhere:mine"], 2, "'nowhere' can't be imported"),
        (["train", "nowhere", "nowhere", "--out", "x", "--turns", "all"], 2, "unknown option '--turns'"),
        (["run", "nowhere.yaml"], 2, "no such file"),
        (["run", "quickstart", "--environment", "arithmetik", "--dry-run"], 2, "Did you mean 'arithmetic'?"),
        (["run", "quickstart", "--environment.max_turn", "3", "--dry-run"], 2, "Did you mean 'max_turns'?"),
        (["run", "quickstart", "--rollouts.tasks", "1000000", "--dry-run"], 2, "Ask for fewer tasks"),
        (["run", "quickstart", "--model", "./nowhere", "--dry-run"], 2, "no model in nowhere"),
        (["rollout", "arithmetic", "--out", "x", "--model", "./nowhere"], 2, "nothing there"),
        (["import", "nowhere.jsonl", "--out", "x"], 1, "nowhere.jsonl can't be read: No such file or directory"),
        (["import", "nowhere.jsonl", "--out", "x", "--format", "mathdail"], 2, "Did you mean 'mathdial'?"),
        (["weigh", "nowhere", "--out", "x"], 1, "nothing there, expected trajectories"),
        (["train", "nowhere", "nowhere", "--out", "x"], 1, "nothing there, expected trajectories"),
        (["report", "nowhere"], 1, "nothing there, expected evaluation"),
        (["check", "chess"], 2, "unknown environment 'chess'"),
        (["weigh"], 2, "arguments are required: DATA"),
        (["weigh", "nowhere"], 1, "nothing there, expected trajectories"),
        (["compare", "quickstart", "--seeds", "1,b"], 2, "seeds: got '1,b', expected whole numbers"),
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
        ("a: [", "can't be read as YAML"),
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
        "seed: 7\nweights: {beta: 0.3, gamma: 0.8}\nenvironment: {name: guess, width: 30}\n"
        "rollouts: {tasks: 100}\nevaluation: {tasks: 100}\n"
    )
    assert main(["run", "--dry-run", str(path), "--weights.beta", "0.4"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["seed"], resolved["weights"]["beta"], resolved["weights"]["gamma"]) == (7, 0.4, 0.8)
    assert resolved["environment"] == {"name": "guess", "width": 30}
    assert resolved["weights"]["scheme"] == "drift"


def test_the_temperature_may_be_a_number_or_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("weights: {beta: auto}\n")
    assert main(["run", "--dry-run", str(path)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["weights"]["beta"] == "auto"
    for given, expected in (("auto", "auto"), ("0.3", 0.3)):
        assert main(["run", "--dry-run", "quickstart", "--beta", given]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["weights"]["beta"] == expected
    assert main(["run", "quickstart", "--dry-run", "--weights.beta", "auto", "--weights.scheme", "rwr"]) == 2
    assert "expected a number with the scheme rwr" in capsys.readouterr().err


@pytest.fixture
def six(make_trajectory: Callable[..., Trajectory], tmp_path: Path) -> str:
    """Two conversations of one turn about each of three prompts, of which one, none and both succeeded."""
    solved = {("a", 0), ("c", 0), ("c", 1)}
    with TrajectoryWriter(tmp_path / "data", {"trajectories": 6}, []) as writer:
        for task in "abc":
            for sample in range(2):
                writer.append(make_trajectory(task, sample, (str(sample),), (task, sample) in solved))
        writer.finish()
    return str(tmp_path / "data")


def test_weighing_says_in_a_few_sentences_what_came_of_it(
    six: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # w = ±1 about prompt a and 0 about the others; of −1 a tenth of 1 is left, 0.9 of 2 in all.
    assert main(["weigh", six, "--out", str(tmp_path / "swift"), "--scheme", "swift"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'swift'}:",
        "3 of 6 conversations succeeded (50%).",
        "1 of 3 prompts hold both successes and failures (33%); 1 without any success.",
        "bound_negative (share 0.1) took 45.0% of the weight.",
        "2 conversations have a weight; they count like 1 of equal weight.",
    ]
    # Half of prompt a's succeed, which is the best alone: 2, 0. Then b's 2 of 6 go; (2 + 1 + 1)²/(4 + 1 + 1) is 2.67.
    options = ["--beta", "auto", "--steps", "[drop_unsolved]"]
    assert main(["weigh", six, "--out", str(tmp_path / "drift"), *options]) == 0
    assert capsys.readouterr().out.splitlines()[3:6] == [
        "β was found to be 0, at which 50% of a prompt's conversations count.",
        "drop_unsolved took 33.3% of the weight; 2 conversations have no weight any more.",
        "3 conversations have a weight; they count like 3 of equal weight.",
    ]


def test_a_chain_is_given_by_options_and_its_scheme_may_be_a_function_of_the_working_directory(
    six: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_scheme_of_a_cli_test.py").write_text(
        "def mine(returns_N, group_N, *, success_N, failed: float):\n    return success_N - failed * (1 - success_N)\n"
    )
    monkeypatch.chdir(tmp_path)
    scheme = ["--scheme", "own_scheme_of_a_cli_test:mine", "--failed", "0.5"]
    chain = ["--turns", "{credited: -1}", "--steps", "[bound_negative: 0.25, skip_small: null]"]
    assert main(["weigh", six, "--out", "weights", *scheme, *chain]) == 0
    record = read_manifest(tmp_path / "weights", "weights")["chain"]
    assert (record["scheme"], record["settings"]) == ("own_scheme_of_a_cli_test:mine", {"failed": 0.5})
    assert (record["turns"], record["steps"]) == ({"credited": {"rejected": -1}}, [{"bound_negative": {"share": 0.25}}])
    # a: 1 and −0.5, of which 0.25 is left; b has no positive weight and loses its negative ones.
    rows = pq.read_table(tmp_path / "weights" / "weights.parquet").to_pylist()
    assert [row["weights"] for row in rows] == [[1.0], [-0.25], [0.0], [0.0], [1.0], [1.0]]


# Those of the papers and of logs want files: tests/test_paper_recipes.py and tests/test_logs_recipe.py.
@pytest.mark.parametrize(
    "name", [name for name in built_in_recipes() if name != "logs" and not name.endswith("-paper")]
)
def test_built_in_recipes_are_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name, "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["environment"]["name"]


def test_a_recipe_runs_end_to_end_and_again_without_doing_anything_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["quickstart", "--out", str(out), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "multi@2" in printed and "tuned" in printed and str(out / "report.html") in printed.replace("\n", "")
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["rollouts"]["tasks"] == 24
    page = (out / "report.html").read_text()
    chain = "success (γ 0.9, λ 0.5) → drift (beta 0.1) → terminal → skip_small (share 0.001)"
    assert "Conversations before and after" in page and chain in page
    kept = {name: stamp for name, stamp in files(out).items() if "shards" in name or name.startswith("model/model")}
    assert main(["run", str(out / "recipe.yaml"), "--out", str(out)]) == 0
    assert {name: files(out)[name] for name in kept} == kept
    assert main(["quickstart", "--out", str(out), *QUICK, "--seed", "2"]) == 2
    assert "seed: 1 -> 2" in capsys.readouterr().err
    # Where conversations are held is no part of what a run is: only the seed is refused.
    moved = ["--cluster.address", "auto", "--cluster.workers", "2", "--seed", "2"]
    assert main(["quickstart", "--out", str(out), *QUICK, *moved]) == 2
    assert "another recipe: seed: 1 -> 2. " in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_seed_twice_gives_the_same_data_weights_and_losses(tmp_path: Path) -> None:
    small = [*QUICK, "--rollouts.tasks", "8", "--evaluation.tasks", "8", "--evaluation.samples", "0"]
    for name in "ab":
        assert main(["quickstart", "--out", str(tmp_path / name), *small]) == 0
    for stage, kind, key in (("rollouts", "trajectories", "dataset_hash"), ("weights", "weights", "weights_hash")):
        first, second = (read_manifest(tmp_path / name / stage, kind)[key] for name in "ab")
        assert first == second
    for file in ("model/metrics.jsonl", "evaluation/estimates.json"):
        assert (tmp_path / "a" / file).read_text() == (tmp_path / "b" / file).read_text()


# In the ordinary tests the guide's commands do the same.
@pytest.mark.slow
def test_stages_one_by_one_do_what_the_recipe_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, weights, model = (str(tmp_path / name) for name in ("data", "weights", "model"))
    rollout = ["rollout", "guess", "--out", data, "--tasks", "12", "--samples", "4"]
    assert main([*rollout, "--max_new_tokens", "16"]) == 0
    assert "48 conversations of 12 prompts" in capsys.readouterr().out
    assert main(["weigh", data, "--out", weights, "--scheme", "swift"]) == 0
    assert "prompts hold both successes and failures" in capsys.readouterr().out
    train = ["train", data, weights, "--out", model, "--max_steps", "2", "--batch_size", "8"]
    assert main([*train, "--plan", "balanced", "--normalization", "mean"]) == 0
    printed = capsys.readouterr().out
    assert "2 steps on " in printed and "{" not in printed
    evaluate = ["evaluate", "guess", "--out", str(tmp_path / "evaluation"), "--tasks", "10", "--samples", "0"]
    models = ["--models.base", "default", "--models.tuned", model]
    assert main([*evaluate, *models, "--seen", data, "--max-new-tokens", "16"]) == 0
    assert "tuned - base" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "evaluation")]) == 0


def test_import_says_what_came_in_and_what_did_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "log.jsonl", str(tmp_path / "data")
    said = [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}]
    good = {"messages": said, "score": 1, "channel": "shop"}
    log.write_text("\n".join([json.dumps(good), *["[]"] * 30]))
    assert main(["import", str(log), "--out", out, "--columns.reward", "score", "--strict"]) == 1
    assert "30 rows can't be imported as they are (not_object 30)" in capsys.readouterr().err
    assert main(["import", str(log), "--out", out, "--columns", "{reward: score}"]) == 0
    printed = capsys.readouterr()
    assert "left out 30 of 31 rows: not_object 30" in printed.out and "1 conversation of 1 prompt;" in printed.out
    assert "1 of 31: doesn't say whether the task was solved" in printed.out
    assert "fields that were not used: channel (1)" in printed.out
    assert printed.err.count("  line ") == 20 and "line 2: not_object: got [], expected an object" in printed.err


def test_check_passes_and_fails_by_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "guess", "--tasks", "3"]) == 0
    assert "0 failed" in capsys.readouterr().out
