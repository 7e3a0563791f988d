"""Training by two processes under DeepSpeed's ZeRO, with the real library on CPUs: the losses and weights of one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.errors import ConfigError, TrainingError
from drift.manifest import read_manifest
from drift.training.checkpoints import last_checkpoint
from drift.training.config import TrainingConfig

STAGES = ["zero2", "zero3"]


def settings(**changes: Any) -> TrainingConfig:
    defaults = {"max_steps": 20, "batch_size": 12, "tokens_per_batch": 200, "learning_rate": 1e-3, "save_steps": 0}
    return TrainingConfig(**{**defaults, "arguments": {"logging_steps": 1}, **changes})


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in curve(folder)], dtype=torch.float64)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def test_a_missing_library_is_named_with_its_extra(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drift.training.run import train_model

    monkeypatch.setattr("drift.training.sharding.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"training\.engine: zero3 needs DeepSpeed.*pip install 'drift-rl\[deepspeed\]'"
    ):
        train_model(*weighed, settings(engine="zero3"), tmp_path / "m", model=str(tiny_model), seed=1, device="cpu")
    assert not (tmp_path / "m" / "rows.arrow").exists()


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.engine: got 'zero2', expected ddp with lora\.bits"):
        settings(engine="zero2", lora={"r": 2, "bits": 4})
    with pytest.raises(ConfigError, match=r"training\.kl_limit: got 1\.0, expected 0 with engine zero3"):
        settings(engine="zero3", kl_limit=1.0)


@pytest.mark.deepspeed
@pytest.mark.parametrize("engine", STAGES)
def test_two_processes_train_as_one(uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, engine: str) -> None:
    one = train(*uneven, out=tmp_path / "one", model=str(tiny_model), config=settings(), device="cpu")
    config = settings(num_processes=2, engine=engine)
    two = train(*uneven, out=tmp_path / "two", model=str(tiny_model), config=config, device="cpu")
    assert read_manifest(two, "model")["ranks"] == 2
    assert len(losses(one)) == 20 and torch.allclose(losses(two), losses(one), rtol=1e-4, atol=1e-4)
    norms = [[row["grad_norm"] for row in curve(out)] for out in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    first, second = parameters(one), parameters(two)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert json.loads((two / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    print(engine, "losses differ by at most", float((losses(two) - losses(one)).abs().max()))


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"r": 2, "lora_alpha": 32}},
        {"arguments": {"gradient_checkpointing": True, "logging_steps": 1}},
        {"attention": "sdpa"},
        {"dtype": "bfloat16"},
        {"tokens_per_batch": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("engine", STAGES)
def test_two_processes_train_as_one_whatever_is_trained(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, engine: str, changes: dict[str, Any]
) -> None:
    given = {"max_steps": 6, "save_steps": 3, **changes}
    one = train(*uneven, out=tmp_path / "one", model=str(tiny_model), config=settings(**given), device="cpu")
    config = settings(num_processes=2, engine=engine, **given)
    out = train(*uneven, out=tmp_path / "two", model=str(tiny_model), config=config, device="cpu")
    # Half the bits of a bfloat16 for what is summed in another order.
    close = 2e-2 if "dtype" in changes else 1e-4
    assert torch.allclose(losses(out), losses(one), rtol=close, atol=close * float(losses(one).abs().max()))
    first, second = parameters(one), parameters(out)
    # In 16 bits small gradients differ in sign, which Adam turns into whole steps.
    if "dtype" not in changes:
        assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    else:
        # What is saved are the float32 weights that the optimizer moves, not their rounding.
        assert any(not torch.equal(value, value.to(torch.bfloat16).float()) for value in second.values())
    whole = curve(out)
    # From the middle it goes on to the same end.
    for path in (out / "manifest.json", out / "model.safetensors"):
        path.unlink()
    shutil.rmtree(out / "checkpoints" / "checkpoint-6")
    with pytest.raises(TrainingError, match=r"written by 2 processes and DeepSpeed can't go on from it with 1"):
        train(*uneven, out=out, model=str(tiny_model), config=settings(engine=engine, **given), device="cpu")
    again = train(*uneven, out=out, model=str(tiny_model), config=config, device="cpu")
    assert curve(again) == whole
    assert all(torch.equal(second[name], value) for name, value in parameters(again).items())


@pytest.mark.deepspeed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", STAGES)
def test_killed_at_random_moments_it_ends_as_unbroken(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, engine: str
) -> None:
    given = {"max_steps": 120, "save_steps": 4, "num_processes": 2, "engine": engine}
    logged = {"arguments": {"logging_steps": 3}}
    whole = train(
        *uneven, out=tmp_path / "whole", model=str(tiny_model), config=settings(**given, **logged), device="cpu"
    )
    out = tmp_path / "broken"
    line = [sys.executable, "-m", "drift", "train", *map(str, uneven), "--out", str(out), "--model", str(tiny_model)]
    line += ["--device", "cpu", "--batch_size", "12", "--tokens_per_batch", "200"]
    line += ["--arguments.logging_steps", "3"]
    line += ["--learning_rate", "1e-3", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]
    moments, killed_after = random.Random(7), []
    for number in range(3):
        before = last_checkpoint(out)
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while last_checkpoint(out) == before and child.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 1.0))
        # The launcher, or one of its ranks.
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(child.pid)], capture_output=True, text=True)
        ranks = list(map(int, found.stdout.split()))
        os.kill(ranks[0] if number == 1 else child.pid, signal.SIGKILL)
        child.wait(timeout=60)
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            time.sleep(0.01)
        assert not (out / "manifest.json").exists(), "it ended before it was killed: make it longer"
        newest = last_checkpoint(out)
        killed_after.append(newest.name if newest else None)
    again = train(*uneven, out=out, model=str(tiny_model), config=settings(**given, **logged), device="cpu")
    print(engine, "killed after", killed_after)
    assert curve(again) == curve(whole)
    first, second = parameters(whole), parameters(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
