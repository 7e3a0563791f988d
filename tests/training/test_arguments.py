"""Settings by the names of transformers and PEFT: what is wrong with them is said before a model is loaded."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from drift.api import train
from drift.cli import main
from drift.errors import ConfigError
from drift.manifest import read_manifest
from drift.training.arguments import lora_config, training_arguments
from drift.training.config import SET_BY_TRAINING, TrainingConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arguments": {"weight_dekay": 0.1}}, r"TrainingArguments 'weight_dekay'.*Did you mean 'weight_decay'"),
        ({"arguments": {"weight_decay": "1e-2"}}, r"weight_decay: got '1e-2', expected a value such as 0\.0\. Write"),
        ({"lora": {"rank": 4}}, r"peft\.LoraConfig 'rank' in training\.lora\. Did you mean 'rank_pattern'"),
        ({"lora": {"r": 4, "task_type": "SEQ_CLS"}}, r"unknown setting of peft\.LoraConfig 'task_type'"),
        ({"lora": {"r": 4, "layers_to_transform": [1]}}, r"training\.lora: "),
        (
            {"arguments": {"lr_scheduler_type": "cosin"}},
            r"learning-rate schedule 'cosin' in training\.arguments\.lr_scheduler_type\. Did you mean 'cosine'",
        ),
        ({"arguments": {"report_to": "tensorboard"}}, r"training\.arguments\.report_to: .*tensorboard"),
        ({"arguments": {"report_to": ["wandby"]}}, r"training\.arguments\.report_to: wandby is not supported"),
        ({"device": "cuda"}, r"device: got 'cuda', expected auto, cpu or a device that torch finds here"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    weighed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("drift.training.run.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "tensorboard" in name else find(name, *a))
    with pytest.raises(ConfigError, match=said) as caught:
        train(*weighed, out=tmp_path / "model", max_steps=1, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arguments": {"learning_rate": 1}}, r"training\.arguments\.learning_rate: .* Use training\.learning_rate\."),
        ({"arguments": {"seed": 1}}, r"training\.arguments\.seed: .* Use the argument seed\."),
        ({"arguments": {"fsdp": "full"}}, r"training\.arguments\.fsdp: .* Use training\.engine\."),
        (
            {"arguments": {"logging_steps": 0}},
            r"training\.arguments\.logging_steps: got 0, expected a whole number ≥ 1",
        ),
        ({"arguments": {"save_total_limit": 0.5}}, r"training\.arguments\.save_total_limit: got 0\.5"),
        ({"lora": {"r": 0}}, r"training\.lora\.r: got 0.*Leave lora empty to train the whole model"),
        ({"lora": {"init_lora_weights": "pissa"}}, r"training\.lora\.init_lora_weights: got 'pissa'"),
    ],
    ids=str,
)
def test_what_training_sets_itself_or_can_not_take_is_refused_at_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainingConfig(**settings)


def test_settings_reach_the_libraries(tmp_path: Path) -> None:
    config = TrainingConfig(arguments={"adam_beta2": 0.95, "weight_decay": 0.0, "save_total_limit": 5})
    found = training_arguments(config, tmp_path, 7, 1, "cpu")
    assert (found.adam_beta2, found.weight_decay, found.save_total_limit, found.max_steps) == (0.95, 0.0, 5, 7)
    plain = training_arguments(TrainingConfig(), tmp_path, 7, 1, "cpu")
    assert (plain.weight_decay, plain.max_grad_norm, plain.save_total_limit) == (0.1, 1.0, 2)
    assert (plain.logging_steps, plain.report_to) == (10, [])
    with pytest.raises(ConfigError, match=r"training\.arguments: .*sophia"):
        training_arguments(TrainingConfig(arguments={"optim": "sophia"}), tmp_path, 7, 1, "cpu")
    adapter = lora_config({"r": 3, "lora_dropout": 0.5, "bits": 4})
    assert (adapter.r, adapter.lora_dropout, adapter.target_modules) == (3, 0.5, "all-linear")
    assert "weight_decay" not in SET_BY_TRAINING


def test_the_command_line_takes_them_by_name_and_a_run_is_its_settings(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", *map(str, weighed), "--out", str(tmp_path / "m"), "--model", str(tiny_model), "--device", "cpu"]
    line += ["--max-steps", "2", "--batch-size", "4", "--save-steps", "0", "--arguments.logging_steps", "1"]
    line += ["--lora.r", "2", "--lora.target_modules", "[q_proj, v_proj]"]
    assert main([*line, "--arguments.weight_decay", "0.25"]) == 0
    config = read_manifest(tmp_path / "m", "model")["spec"]["config"]
    assert config["lora"] == {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    assert (config["arguments"]["weight_decay"], config["arguments"]["max_grad_norm"]) == (0.25, 1.0)
    # Nothing on stdout but what was trained.
    place, said, *left_out = capsys.readouterr().out.splitlines()
    assert place == f"{tmp_path / 'm'}:" and said.startswith("2 steps on ")
    assert all(each.startswith("Left out: ") for each in left_out)
    # What is left out is the same run as what it stands for.
    assert main([*line, "--arguments.weight_decay", "0.25", "--arguments.max_grad_norm", "1.0"]) == 0
    assert main([*line, "--arguments.weight_decay", "0.5"]) == 1
    assert "config.arguments.weight_decay: 0.25 -> 0.5" in capsys.readouterr().err


def test_trackers_are_told_the_name_of_the_run_unless_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drift.training.trackers import names_of

    # Set first, so that it is as it was afterwards.
    monkeypatch.setenv("WANDB_PROJECT", "other")
    monkeypatch.delenv("WANDB_PROJECT")
    assert names_of(TrainingConfig(), tmp_path / "sums" / "model") == {} and "WANDB_PROJECT" not in os.environ
    config = TrainingConfig(arguments={"report_to": "wandb"})
    assert names_of(config, tmp_path / "sums" / "model") == {"run_name": "sums", "project": "drift"}
    assert names_of(config, tmp_path / "sums" / "round-2" / "model")["run_name"] == "sums-round-2"
    assert os.environ["WANDB_PROJECT"] == "drift"
    given = TrainingConfig(arguments={"report_to": "tensorboard", "run_name": "mine"})
    assert training_arguments(given, tmp_path / "sums" / "model", 3, 1, "cpu").run_name == "mine"
