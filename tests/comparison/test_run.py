import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from drift.comparison import Comparison, run_comparison, work
from drift.comparison import run as comparing
from drift.comparison.methods import find_methods
from drift.dataset.store import read_trajectories
from drift.errors import ConfigError, Interrupted, TrainingError
from drift.evaluation.config import EvaluationConfig
from drift.manifest import read_manifest
from drift.pipeline import split_steps
from drift.policies.base import Sampling
from drift.recipe import Recipe
from drift.rollouts.config import RolloutConfig
from drift.run_directory import check_claim, claim
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig

RECIPE = Recipe(
    environment={"name": "arithmetic", "max_turns": 2},
    sampling=Sampling(max_new_tokens=16),
    rollouts=RolloutConfig(tasks=16, samples=4),
    # Returns can be negative with this λ, which refit refuses; β is as quickstart has it.
    weights=WeightConfig(beta=0.1, repetition=0.5),
    training=TrainingConfig(max_steps=3, batch_size=8, learning_rate=1e-3, save_steps=1, rows_together=1),
    evaluation=EvaluationConfig(tasks=16, samples=1),
)
NAMES = ("sft", "drift-refresh", "refit")
ARGUMENTS = [
    "quickstart", "--environment.max_turns", "2", "--rollouts.tasks", "16", "--rollouts.samples", "4",
    "--weights.repetition", "0.5",
    "--training.max_steps", "3", "--training.batch_size", "8", "--training.learning_rate", "1e-3",
    "--training.save_steps", "1", "--evaluation.tasks", "16", "--seeds", "1", "--methods", "sft",
]  # fmt: skip


def comparison(names: tuple[str, ...] = NAMES, seeds: tuple[int, ...] = (1, 2)) -> Comparison:
    return Comparison(recipe=RECIPE, methods=find_methods(names, {}), seeds=seeds)


def told(out: Path) -> dict[str, Any]:
    """What a comparison says, but for the time it took."""
    values: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    for cost in values["costs"].values():
        assert cost.pop("seconds") >= cost.pop("rollout_seconds") >= 0
    return values


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def writers(log: Path) -> set[str]:
    """Processes that have a file open."""
    found = set()
    for stream in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            found |= {stream.parts[2]} if stream.readlink() == log else set()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never interrupted."""
    return run_comparison(comparison(), tmp_path_factory.mktemp("whole"))


def test_the_table_is_what_the_conversations_say(whole: Path) -> None:
    values = told(whole)
    rows = {(row["method"], row["metric"]): row for row in values["rows"]}
    differences = {(row["method"], row["metric"]): row for row in values["differences"]}
    for mode in ("greedy", "sampled"):
        share = {}
        for name in ("base", "sft", "drift-refresh"):
            held = [read_trajectories(whole / f"seed-{seed}" / "methods" / name / mode) for seed in (1, 2)]
            assert [len(found) for found in held] == [16, 16]
            share[name] = [sum(t.success for t in found) / len(found) for found in held]
            row = rows[name, f"{mode}/multi@2"]
            assert row["by_seed"] == pytest.approx(share[name])
            assert row["value"] == pytest.approx(sum(share[name]) / 2) and row["seeds"] == 2
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        gained = sum(share["drift-refresh"]) / 2 - sum(share["sft"]) / 2
        assert differences["drift-refresh", f"{mode}/multi@2"]["value"] == pytest.approx(gained, abs=1e-8)
        assert ("sft", f"{mode}/multi@2") not in differences
        # The base is none of the methods that the correction counts.
        assert differences["base", f"{mode}/multi@2"]["p_holm"] is None
    # One method beside sft: nothing to correct.
    for row in values["differences"]:
        if row["method"] != "base":
            assert row["p_holm"] == row["p_value"]


def test_methods_share_rollouts_tasks_and_steps(whole: Path) -> None:
    for seed in (1, 2):
        folder = whole / f"seed-{seed}"
        rollouts = read_manifest(folder / "rollouts", "trajectories")
        sft = read_manifest(folder / "methods/sft/model", "model")
        first, second = (read_manifest(folder / f"methods/drift-refresh/round-{n}/model", "model") for n in (1, 2))
        assert sft["spec"]["dataset_hash"] == first["spec"]["dataset_hash"] == rollouts["dataset_hash"]
        assert sft["spec"]["model"] == first["spec"]["model"] == rollouts["spec"]["policy"]
        # The second round: the first one's model, as many new conversations about the same tasks, the other steps.
        again = read_manifest(folder / "methods/drift-refresh/round-2/rollouts", "trajectories")
        assert again["spec"]["policy"] == second["spec"]["model"] != rollouts["spec"]["policy"]
        assert again["spec"]["task_hash"] == rollouts["spec"]["task_hash"]
        assert again["spec"]["seed"] != rollouts["spec"]["seed"]
        assert second["spec"]["dataset_hash"] == again["dataset_hash"]
        assert (sft["steps"], first["steps"], second["steps"]) == (3, 2, 1)
        held = [
            read_manifest(folder / "methods" / name / "greedy", "trajectories")["spec"]["task_hash"]
            for name in ("base", "sft", "drift-refresh")
        ]
        assert len(set(held)) == 1 and held[0] != rollouts["spec"]["task_hash"]
    assert rollouts["seed"] if "seed" in rollouts else rollouts["spec"]["seed"] == 2
    costs = told(whole)["costs"]
    shared = [
        read_manifest(whole / f"seed-{seed}" / "rollouts", "trajectories")["cost"]["tokens_sampled"] for seed in (1, 2)
    ]
    more = [
        read_manifest(whole / f"seed-{seed}/methods/drift-refresh/round-2/rollouts", "trajectories")["cost"]
        for seed in (1, 2)
    ]
    assert costs["sft"]["tokens_generated"] == sum(shared) / 2
    assert costs["drift-refresh"]["tokens_generated"] == sum(shared) / 2 + sum(m["tokens_sampled"] for m in more) / 2
    assert costs["sft"]["steps"] == costs["drift-refresh"]["steps"] == 3


def test_a_method_that_fails_is_told_and_stops_nothing(whole: Path) -> None:
    values = told(whole)
    assert list(values["failed"]) == ["refit"] and list(values["failed"]["refit"]) == ["1", "2"]
    assert "refit needs returns ≥ 0" in values["failed"]["refit"]["1"]
    assert {row["method"] for row in values["rows"]} == {"base", "sft", "drift-refresh"}
    page = (whole / "report.html").read_text()
    assert "refit needs returns" in page and page.count("<svg") == 4


def test_where_no_method_gets_to_its_end_that_is_an_error(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "runs")
    alone = Comparison(recipe=RECIPE, methods=find_methods(("refit",), {}), seeds=(1, 2), against="base")
    with pytest.raises(TrainingError, match=r"no method got to its end.*refit: .*needs returns ≥ 0"):
        run_comparison(alone, tmp_path / "runs")
    assert list(told(tmp_path / "runs")["failed"]) == ["refit"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_starts")
def test_killed_and_stopped_and_begun_with_less_it_ends_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed while it trains the first method of the first seed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "drift", "compare", *ARGUMENTS, "--jobs", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    model = tmp_path / "seed-1" / "methods" / "sft" / "model"
    deadline = time.monotonic() + 120
    while not (model / "checkpoints" / "checkpoint-1").is_dir() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    workers = writers(tmp_path / "worker-1.log") - {str(process.pid)}
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.05)
    assert (model / "checkpoints" / "checkpoint-1").is_dir() and not (tmp_path / "comparison.json").exists()
    kept = times(tmp_path / "seed-1" / "rollouts")

    # One seed and one method, then Ctrl-C between the stages of another.
    run_comparison(comparison(("sft",), (1,)), tmp_path)
    finished = times(tmp_path / "seed-1" / "methods" / "sft")

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(work, "_measure", stop)
        with pytest.raises(Interrupted, match="go on"):
            run_comparison(comparison(("sft", "drift-refresh"), (1,)), tmp_path)
    assert (tmp_path / "seed-1/methods/drift-refresh/round-2/model/manifest.json").is_file()

    # The rest in two processes.
    run_comparison(comparison(), tmp_path, jobs=2)
    assert told(tmp_path) == told(whole)
    assert times(tmp_path / "seed-1" / "methods" / "sft") == finished
    assert kept.items() <= times(tmp_path / "seed-1" / "rollouts").items()
    # All is there: nothing is sampled or trained, and nothing loads a model.
    monkeypatch.setattr(work, "sampler", stop)
    monkeypatch.setattr(comparing, "run_method", lambda *arguments: pytest.fail("trained again"))
    run_comparison(comparison(("sft", "drift-refresh")), tmp_path)
    assert "failed" not in (tmp_path / "report.html").read_text()


def test_another_recipe_or_method_of_the_same_name_is_refused_before_any_work(whole: Path) -> None:
    before = times(whole)
    other = replace(RECIPE, training=replace(RECIPE.training, max_steps=5))
    with pytest.raises(ConfigError, match=r"methods/sft was begun with another recipe: training.max_steps: 3 -> 5"):
        run_comparison(replace(comparison(), recipe=other), whole)
    assert times(whole) == before


def test_a_recipe_from_before_a_setting_was_there_is_read_with_its_default(tmp_path: Path) -> None:
    values = RECIPE.to_dict()
    claim(values, tmp_path)
    path = tmp_path / "recipe.yaml"
    older = yaml.safe_load(path.read_text())
    del older["weights"]["gamma"], older["rounds"]
    path.write_text(yaml.safe_dump(older))
    check_claim(values, tmp_path)
    with pytest.raises(ConfigError, match=r"recipe: weights.gamma: None -> 0.8\. "):
        check_claim(replace(RECIPE, weights=replace(RECIPE.weights, gamma=0.8)).to_dict(), tmp_path)


@pytest.mark.parametrize(
    ("steps", "rounds", "expected"), [(60, 1, [60]), (60, 2, [30, 30]), (7, 3, [3, 2, 2]), (3, 3, [1, 1, 1])]
)
def test_rounds_share_the_steps(steps: int, rounds: int, expected: list[int]) -> None:
    assert [config.max_steps for config in split_steps(TrainingConfig(max_steps=steps), rounds)] == expected


def test_rounds_share_the_epochs_where_they_are_given() -> None:
    found = split_steps(TrainingConfig(epochs=1.5), 2)
    assert [config.epochs for config in found] == [0.75, 0.75]


def test_the_command_prints_the_table_and_says_how_it_was_asked(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from drift.cli import main

    # The directory of the module's own comparison holds all that this asks for.
    seeds = [*ARGUMENTS[:-4], "--seeds", "1,2", "--methods", "sft,drift-refresh", "--against", "base"]
    assert main(["compare", *seeds, "--out", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert (
        re.search(r"drift-refresh +\d+\.\d", shown)
        and "p by Holm" in shown
        and "turns" in shown
        and "tokens generated" in shown
    )
    command = json.loads((whole / "comparison.json").read_text())["command"]
    assert command.startswith("drift compare quickstart --methods=sft,drift-refresh --seeds=1,2 --against=base ")
    assert "--rollouts.tasks=16 --rollouts.samples=4" in command and "--out" not in command
    assert str(whole) not in command
