"""A dry run finds what any stage would refuse; a run that failed is corrected and keeps what is valid."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import drift
from drift.environments.guess import Guess
from drift.errors import ConfigError, DriftError
from drift.recipe import make_recipe
from drift.run_directory import STAGES, first_stage
from drift.training.config import TrainingConfig
from drift.training.estimate import estimate


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of somebody's lies here under the name that a recipe gives its own."""
    monkeypatch.chdir(tmp_path)


SMALL: dict[str, Any] = {
    "max_new_tokens": 8, "rollouts.tasks": 3, "rollouts.samples": 2, "max_steps": 2, "training.batch_size": 4,
    "evaluation.tasks": 2, "evaluation.samples": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"training.arguments.lr_scheduler_type": "cosin"}, "schedule 'cosin'.*Did you mean 'cosine'"),
        ({"training.arguments.optim": "adamx"}, "adamx is not a valid"),
        ({"device": "cuda:9"}, "device: got 'cuda:9', expected auto, cpu"),
        ({"device": "gpu"}, "device: got 'gpu', expected auto, cpu"),
        ({"policy.dtype": "half"}, "policy.dtype: got 'half'"),
        ({"training.arguments.report_to": "wanndb"}, "report_to: wanndb is not supported"),
        ({"training.lora.target_modules": ["query"]}, "training.lora: .*query.*not found in the base model"),
        ({"training.lora.bits": 4}, "pip install 'drift-rl.qlora"),
        ({"engine": "zero3"}, "pip install 'drift-rl.deepspeed"),
        ({"policy.engine": "vllm"}, "pip install 'drift-rl.vllm"),
        ({"sampling.max_new_tokens": 250}, r"max_new_tokens: got 250, expected at most \d+: of the model's context"),
        ({"num_processes": 10**7}, "trained parameters of .* want at least .* of memory .*this machine has"),
        ({"rounds": 10**9, "max_steps": 10**9}, "out: model and checkpoints want .* are free there"),
    ],
)
def test_a_dry_run_finds_what_a_late_stage_would_refuse(
    keys: dict[str, Any], words: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DriftError, match=words):
        drift.run("quickstart", model=str(tiny_model), out=tmp_path / "run", dry_run=True, **{**SMALL, **keys})
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_is_told_at_once(tiny_model: Path) -> None:
    wrong = {"training.arguments.lr_scheduler_type": "cosin", "device": "cuda:9", "environment.digit": 2}
    with pytest.raises(ConfigError) as told:
        drift.run("quickstart", model=str(tiny_model), dry_run=True, **SMALL, **wrong)
    assert str(told.value).startswith("3 things stand in the way:\n- ")
    assert all(word in str(told.value) for word in ("cosine", "cuda:9", "'digits'"))


def test_what_a_run_will_want_is_told_and_counted_from_the_modules_alone(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**SMALL, "sampling.max_new_tokens": 100, "environment.max_turns": 3}
    assert drift.run("quickstart", model=str(tiny_model), dry_run=True, **keys) is None
    told = capsys.readouterr().err
    settings = AutoConfig.from_pretrained(tiny_model)
    count = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    assert f"{count:,} trained parameters of {count:,}" in told and "their 3 turns are over: 2 replies of 100" in told
    whole = estimate(settings, TrainingConfig(max_steps=200, save_steps=50), on_cpu=True)
    # Weight, gradient and two moments of 4 bytes each; the model and three checkpoints of weight and moments.
    assert (whole.trained, whole.memory, whole.disk) == (count, 16 * count, 4 * count + 3 * 12 * count)
    lora = TrainingConfig(lora={"r": 2, "target_modules": ["q_proj", "v_proj"]}, num_processes=2)
    adapted = estimate(settings, lora, on_cpu=False)
    # Of two layers, r · (in + out) of the queries (32 to 32) and of the values (32 to 16).
    trained = 2 * 2 * (32 + 32 + 32 + 16)
    assert (adapted.trained, adapted.memory) == (trained, 4 * count + 16 * trained)
    shared = estimate(settings, TrainingConfig(engine="fsdp", num_processes=4), on_cpu=False)
    assert shared.memory == 4 * count


@pytest.mark.parametrize(
    ("key", "recipe", "stage"),
    [
        ("seed", {}, "rollouts"),
        ("sampling.temperature", {}, "rollouts"),
        ("policy.dtype", {}, "rollouts"),
        ("policy.tuned", {}, "evaluation"),
        ("policy.tuned.engine", {"rounds": 2}, "rollouts"),
        ("weights.beta", {}, "weights"),
        ("training.arguments.weight_decay", {}, "training"),
        ("evaluation.tasks", {}, "evaluation"),
        ("data.columns.reward", {"data": "log.jsonl"}, "rollouts"),
        ("seed", {"data": "log.jsonl"}, "training"),
        ("environment.width", {"data": "log.jsonl"}, "evaluation"),
    ],
)
def test_a_key_belongs_to_the_first_stage_that_it_changes(key: str, recipe: dict[str, Any], stage: str) -> None:
    values = make_recipe(recipe, "test").to_dict()
    assert STAGES[first_stage(key, values)].name == stage


class Broken(Guess):
    """Numbers to guess that can't be asked for."""

    def start(self, task: drift.Task) -> Any:
        raise KeyError(task.payload["nothing"])


def test_a_task_that_can_not_begin_is_told_and_stops_nothing(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drift.run({"environment": Broken(width=12)}, model=str(tiny_model), dry_run=True, **SMALL)
    assert "can't begin: KeyError: 'nothing'. See drift check." in capsys.readouterr().err


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shards/*.parquet")}


def test_a_run_that_failed_late_is_corrected_and_goes_on(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    keys = {**SMALL, "model": str(tiny_model), "environment.max_turns": 2}
    # An untrained model solves nothing.
    with pytest.raises(ConfigError, match="leaves every weight 0"):
        drift.run("quickstart", out=out, steps=["drop_unsolved"], **keys)
    held = stamps(out / "rollouts")
    drift.run("quickstart", out=out, learning_rate=1e-3, **keys)
    told = capsys.readouterr().err
    assert "weights.steps: ['drop_unsolved'] -> []. Still valid and kept: rollouts." in told and held
    assert stamps(out / "rollouts") == held
    trained = (out / "model" / "model.safetensors").read_bytes()
    # Memory is nobody's result: what is finished stays.
    drift.run("quickstart", out=out, learning_rate=1e-3, tokens_per_batch=512, **keys)
    assert (out / "model" / "model.safetensors").read_bytes() == trained
    other = {"out": out, "learning_rate": 1e-2, **keys}
    with pytest.raises(ConfigError, match=r"--replace, and training, evaluation will .* kept: rollouts, weights\."):
        drift.run("quickstart", **other)
    assert not (out / "replaced-1").exists()
    drift.run("quickstart", dry_run=True, replace=True, **other)
    assert "learning_rate: 0.001 -> 0.01. Still valid and kept: rollouts, weights" in capsys.readouterr().err
    assert not (out / "replaced-1").exists()
    drift.run("quickstart", replace=True, **other)
    assert (out / "replaced-1" / "model" / "model.safetensors").read_bytes() == trained
    assert (out / "model" / "model.safetensors").read_bytes() != trained and stamps(out / "rollouts") == held
    assert json.loads((out / "model" / "manifest.json").read_text())["spec"]["config"]["learning_rate"] == 1e-2
    assert drift.check(out).failed == 0
