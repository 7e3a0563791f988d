"""TRL's own trainers on drift's exports and environments, against losses and updates computed by hand."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import drift
from drift.baselines.config import OnlineConfig, PreferenceConfig
from drift.baselines.live import Live
from drift.baselines.online import train_online
from drift.baselines.preference import train_preference
from drift.cli import main
from drift.dataset.store import read_trajectories
from drift.environments.arithmetic import Arithmetic
from drift.errors import DatasetError, TrainingError
from drift.exports.config import FORMATS
from drift.manifest import read_manifest
from drift.policies import DEFAULT_MODEL
from drift.policies.base import Sampling
from drift.policies.hf import load_model

pytest.importorskip("trl")
pytestmark = [pytest.mark.trl, pytest.mark.timeout(600)]

SHORT = Sampling(max_new_tokens=16)
FAST: dict[str, Any] = {
    "learning_rate": 1e-4, "warmup": 0.0, "arguments": {"weight_decay": 0.0, "logging_steps": 1}
}  # fmt: skip
# One step of the constant schedule, without decay or clipping: what AdamW does first is known.
ONE = {**FAST, "schedule": "constant", "arguments": {**FAST["arguments"], "max_grad_norm": 0.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight conversations of each of eight problems, by the built-in policy."""
    out = tmp_path_factory.mktemp("data")
    return drift.rollout(tasks=8, samples=8, max_new_tokens=16, out=out / "rollouts").path


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder), dtype="float32")[0].named_parameters())


def logprob(model: Any, prompt: list[int], completion: list[int], mask: list[int]) -> torch.Tensor:
    """Sum of the log-probabilities of the masked-in tokens, one row at a time."""
    ids = torch.tensor([prompt + completion])
    per_token = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1).gather(-1, ids[0, 1:, None])[:, 0]
    return (per_token[len(prompt) - 1 :] * torch.tensor(mask)).sum()


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_loads_in_trls_trainer_unchanged(data: Path, tmp_path: Path, format: Any) -> None:
    """As a user of TRL has it: the file, the trainer, its defaults. The policy starts as its own reference."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    drift.export(data, out=tmp_path / "rows.jsonl", format=format)
    rows = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "hf"))
    kind = KTOTrainer if format == "kto" else DPOTrainer
    settings = (KTOConfig if format == "kto" else DPOConfig)(
        output_dir=str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-4,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", bf16=False, use_cpu=True,
    )  # fmt: skip
    trainer = kind(model=str(DEFAULT_MODEL), args=settings, train_dataset=rows)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 4
    # Eq. 7 of DPO at π = π_0 is −log σ(0); KTO's is 1 − σ(0).
    assert losses[0] == pytest.approx(0.5 if format == "kto" else math.log(2), abs=1e-3)
    before = weights(DEFAULT_MODEL)
    after = dict(trainer.model.named_parameters())
    assert max(float((after[name] - before[name]).detach().abs().max()) for name in before) > 1e-5


def test_trl_sees_the_log_probabilities_that_the_policy_sampled_with(data: Path, tmp_path: Path) -> None:
    """The environment's words count for nothing: what TRL adds up is what was recorded while sampling."""
    config = PreferenceConfig(format="dpo", pairs=1, batch_size=64, micro_batch_size=64, max_steps=1, **ONE)
    train_preference(data, tmp_path / "masked", model="default", config=config, seed=1)
    recorded = {t.id: sum(sum(turn.completion.logprobs or ()) for turn in t.turns) for t in read_trajectories(data)}
    made = [json.loads(line) for line in (tmp_path / "masked" / "rows.jsonl").read_text().splitlines()]
    first = log(tmp_path / "masked")[0]
    for side in ("chosen", "rejected"):
        expected = sum(recorded[row[f"{side}_id"]] for row in made) / len(made)
        assert first[f"logps/{side}"] == pytest.approx(expected, abs=1e-3)
    # TRL as it comes adds the environment's words, which the policy never said.
    train_preference(data, tmp_path / "all", model="default", config=replace(config, ids="rendered"), seed=1)
    assert log(tmp_path / "all")[0]["logps/rejected"] < first["logps/rejected"] - 50


def test_one_step_of_dpo_moves_the_weights_as_computed_by_hand(data: Path, tmp_path: Path) -> None:
    config = PreferenceConfig(format="dpo", pairs=1, batch_size=8, micro_batch_size=4, max_steps=2, **ONE)
    train_preference(data, tmp_path / "model", model="default", config=config, seed=1)
    rows = [json.loads(line)["sampled_ids"] for line in (tmp_path / "model" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    model, _ = load_model(str(DEFAULT_MODEL), dtype="float32")
    reference, _ = load_model(str(DEFAULT_MODEL), dtype="float32")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(2):
        adam.zero_grad()
        for ids in rows:
            gaps = []
            for side in ("chosen", "rejected"):
                given = ids["prompt"], ids[side], ids[f"{side}_mask"]
                with torch.no_grad():
                    fixed = logprob(reference, *given)
                gaps.append(logprob(model, *given) - fixed)
            (-torch.nn.functional.logsigmoid(0.1 * (gaps[0] - gaps[1])) / len(rows)).backward()
        adam.step()
    after, before = weights(tmp_path / "model"), weights(DEFAULT_MODEL)
    for name, parameter in model.named_parameters():
        assert (after[name] - before[name]).abs().max() > 1e-5
        # AdamW's first steps divide by |gradient|: rounding shows where a gradient is next to nothing.
        near = (after[name] - parameter).abs() < 2e-5
        assert near.float().mean() > 0.999, name


def test_one_step_of_grpo_moves_the_weights_as_computed_by_hand(tmp_path: Path) -> None:
    """``−Σ_i A_i Σ_t log π / Σ tokens`` at ratio 1, A the returns less their mean over their deviation in the group."""
    config = OnlineConfig(
        tasks=4, rounds=1, prompts=4, samples=4, micro_batch_size=8, sampling=SHORT, **ONE, scale="group"
    )
    factory = Arithmetic()
    train_online({"name": "arithmetic"}, factory, tmp_path / "model", model="default", config=config, seed=9)
    model, tokenizer = load_model(str(DEFAULT_MODEL), dtype="float32")
    tasks = factory.tasks("train", 4, 9)

    class Trainer:
        processing_class = tokenizer

        class accelerator:
            unwrap_model = staticmethod(lambda model: model)

    Trainer.model = model  # type: ignore[attr-defined]
    live = Live(factory, tasks, config, seed=9, source="default")
    held = live([task.id for task in tasks for _ in range(4)], Trainer)
    returns = torch.tensor(held["shaped_return"]).view(4, 4)
    advantages = ((returns - returns.mean(1, keepdim=True)) / (returns.std(1, keepdim=True) + 1e-4)).flatten()
    tokens = sum(map(sum, held["env_mask"]))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    for advantage, *given in zip(
        advantages.tolist(), held["prompt_ids"], held["completion_ids"], held["env_mask"], strict=True
    ):
        (-advantage * logprob(model, *given) / tokens).backward()
    adam.step()
    after = weights(tmp_path / "model")
    for name, parameter in model.named_parameters():
        near = (after[name] - parameter).abs() < 2e-5
        assert near.float().mean() > 0.99, name
    manifest = read_manifest(tmp_path / "model", "model")
    assert manifest["cost"]["tokens_sampled"] == tokens
    row = json.loads((tmp_path / "model" / "rounds.jsonl").read_text())
    assert row["return"] == pytest.approx(float(returns.mean()), abs=1e-6)
    assert row["tokens_sampled"] == tokens


@pytest.mark.parametrize("format", FORMATS)
def test_a_preference_training_is_repeatable_and_run_once(data: Path, tmp_path: Path, format: Any) -> None:
    config = PreferenceConfig(format=format, batch_size=8, micro_batch_size=8, max_steps=3, **FAST)
    one = train_preference(data, tmp_path / "one", model="default", config=config, seed=1)
    train_preference(data, tmp_path / "two", model="default", config=config, seed=1)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert one["steps"] == 3 and one["cost"]["tokens_trained"] > 0
    assert one["objective"] == ("kto" if format == "kto" else "dpo")
    assert one["rendered"]["other_ids"] == one["rendered"]["refused"] == 0
    assert not (tmp_path / "one" / "cache").exists() and not (tmp_path / "one" / "trl").exists()
    written = (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns
    assert train_preference(data, tmp_path / "one", model="default", config=config, seed=1) == one
    assert (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(DatasetError, match="seed: 1 -> 2"):
        train_preference(data, tmp_path / "one", model="default", config=config, seed=2)


def test_rows_that_do_not_fit_the_model_are_left_out_or_refused(data: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(DEFAULT_MODEL, small)
    settings = json.loads((small / "config.json").read_text())
    longest = max(len(t.turns[-1].prompt_ids + t.turns[-1].completion.token_ids) for t in read_trajectories(data))
    (small / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": longest - 1}))
    config = PreferenceConfig(format="kto", batch_size=8, micro_batch_size=8, max_steps=1)
    found = train_preference(data, tmp_path / "out", model=str(small), config=config, seed=1)
    assert found["counts"]["too_long"] >= 1
    (small / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 4}))
    with pytest.raises(TrainingError, match="none of 64 rows fits the model's context of 4 tokens"):
        train_preference(data, tmp_path / "none", model=str(small), config=config, seed=1)


def test_another_policys_conversations_are_refused(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="was sampled by another policy"):
        train_preference(data, tmp_path / "out", model=str(tiny_model), config=PreferenceConfig(), seed=1)


def test_online_training_is_repeatable_and_run_once(tmp_path: Path) -> None:
    config = OnlineConfig(
        tasks=8, rounds=2, prompts=4, samples=4, minibatches=2, passes=2, micro_batch_size=4, kl=0.01, sampling=SHORT,
        save_rounds=1, **FAST,
    )  # fmt: skip
    given: dict[str, Any] = {"model": "default", "config": config, "seed": 4}
    one = train_online({"name": "arithmetic"}, Arithmetic(), tmp_path / "one", **given)
    train_online({"name": "arithmetic"}, Arithmetic(), tmp_path / "two", **given)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one["rounds"], one["steps"], one["counts"]["conversations"]) == (2, 8, 32)
    rounds = [json.loads(line) for line in (tmp_path / "one" / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rounds] == [1, 2]
    assert rounds[1]["tokens_sampled"] == one["cost"]["tokens_sampled"] > rounds[0]["tokens_sampled"]
    assert sorted(path.name for path in (tmp_path / "one" / "rounds").iterdir()) == ["1", "2"]
    last = weights(tmp_path / "one" / "rounds" / "2")
    assert all(torch.equal(last[name], first[name]) for name in first)
    assert train_online({"name": "arithmetic"}, Arithmetic(), tmp_path / "one", **given) == one
    with pytest.raises(DatasetError, match=r"config\.prompts: 4 -> 2"):
        given["config"] = replace(config, prompts=2)
        train_online({"name": "arithmetic"}, Arithmetic(), tmp_path / "one", **given)


def test_online_training_learns(tmp_path: Path) -> None:
    config = OnlineConfig(
        tasks=16, rounds=6, prompts=16, samples=4, minibatches=4, sampling=SHORT,
        **{**FAST, "learning_rate": 3e-4},
    )  # fmt: skip
    train_online({"name": "arithmetic"}, Arithmetic(), tmp_path / "one", model="default", config=config, seed=4)
    rounds = [json.loads(line) for line in (tmp_path / "one" / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["return"] > rounds[0]["return"] + 0.1


def test_the_command_line_trains_both_ways(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preference = [
        "train-preference", str(data), "--out", str(tmp_path / "dpo"), "--format", "dpo-step", "--max_steps", "1",
        "--learning_rate", "1e-5",
    ]  # fmt: skip
    assert main(preference) == 0
    assert "1 steps on " in capsys.readouterr().out
    online = [
        "train-online", "arithmetic", "--out", str(tmp_path / "grpo"), "--tasks", "2", "--prompts", "2", "--samples",
        "2", "--rounds", "1", "--sampling.max_new_tokens", "16", "--model", str(tmp_path / "dpo"),
    ]  # fmt: skip
    assert main(online) == 0
    assert "1 rounds of 4 conversations in all, 1 steps." in capsys.readouterr().out
    assert read_manifest(tmp_path / "grpo", "model")["base"] == str(tmp_path / "dpo")
