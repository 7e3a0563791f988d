"""Training by several processes: the same losses as one, one message for an error, nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.errors import ConfigError, DatasetError, TrainingError
from drift.manifest import read_manifest
from drift.training.checkpoints import last_checkpoint
from drift.training.config import TrainingConfig
from drift.training.distributed import locked

pytestmark = pytest.mark.usefixtures("quick_starts")


def settings(**changes: Any) -> TrainingConfig:
    defaults = {"max_steps": 10, "batch_size": 12, "tokens_per_batch": 200, "learning_rate": 1e-3, "save_steps": 0}
    return TrainingConfig(**{**defaults, "arguments": {"logging_steps": 1}, **changes})


def losses(folder: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


# In the ordinary tests two ranks of uneven load have the gradient of one, and stop where one does.
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_as_one(uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, engine: str) -> None:
    one = train(*uneven, out=tmp_path / "one", model=str(tiny_model), config=settings(), device="cpu")
    config = settings(num_processes=2, engine=engine)
    two = train(*uneven, out=tmp_path / "two", model=str(tiny_model), config=config, device="cpu")
    assert read_manifest(two, "model")["ranks"] == 2
    assert len(losses(one)) == 10 and torch.allclose(losses(two), losses(one), rtol=1e-4, atol=1e-4)
    first, second = parameters(one), parameters(two)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert json.loads((two / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"r": 2, "lora_alpha": 32}},
        {"arguments": {"gradient_checkpointing": True, "logging_steps": 1}},
        {"attention": "sdpa"},
        {"dtype": "bfloat16"},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_as_one_whatever_is_trained(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, engine: str, changes: dict[str, Any]
) -> None:
    given = settings(max_steps=6, save_steps=3, **changes)
    one = train(*uneven, out=tmp_path / "one", model=str(tiny_model), config=given, device="cpu")
    two = settings(max_steps=6, save_steps=3, num_processes=2, engine=engine, **changes)
    out = train(*uneven, out=tmp_path / "two", model=str(tiny_model), config=two, device="cpu")
    # Half the bits of a bfloat16 for what is summed in another order.
    close = 2e-2 if "dtype" in changes else 1e-4
    assert torch.allclose(losses(out), losses(one), rtol=close, atol=close * float(losses(one).abs().max()))
    first, second = parameters(one), parameters(out)
    # In 16 bits small gradients differ in sign, which Adam turns into whole steps.
    if "dtype" not in changes:
        assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    whole = losses(out)
    # From the middle it goes on to the same end.
    for path in (out / "manifest.json", out / "model.safetensors"):
        path.unlink()
    shutil.rmtree(out / "checkpoints" / "checkpoint-6")
    again = train(*uneven, out=tmp_path / "two", model=str(tiny_model), config=two, device="cpu")
    assert torch.equal(losses(again), whole)
    assert all(torch.equal(second[name], value) for name, value in parameters(again).items())


@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_accumulation_changes_nothing(uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, share: bool) -> None:
    runs = {}
    for tokens in (100_000, 900, 450, 1):
        config = settings(tokens_per_batch=tokens, attention="auto" if share else "sdpa", max_steps=4)
        runs[tokens] = train(*uneven, out=tmp_path / str(tokens), model=str(tiny_model), config=config)
    whole = losses(runs[100_000])
    for tokens, out in runs.items():
        assert torch.allclose(losses(out), whole, rtol=1e-5, atol=1e-5), tokens


def command(uneven: tuple[Path, Path], model: Path, out: Path, **changes: Any) -> list[str]:
    """What comes after ``drift`` to train as ``settings`` say."""
    given = {name: value for name, value in vars(settings(**changes)).items() if name not in ("lora", "arguments")}
    given["arguments.logging_steps"] = 1
    options = [part for name, value in given.items() for part in (f"--{name}", str(value).lower())]
    return ["train", *map(str, uneven), "--out", str(out), "--model", str(model), "--device", "cpu", *options]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_the_launchers_people_know_start_it_too(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, launcher: str
) -> None:
    one = train(*uneven, out=tmp_path / "one", model=str(tiny_model), config=settings(max_steps=4), device="cpu")
    how = ["--standalone", "--nproc-per-node=2"]
    if launcher.startswith("accelerate"):
        how = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0", "--mixed_precision=no"]
        how += ["--dynamo_backend=no", "--num_cpu_threads_per_process=1"]
    line = [
        sys.executable,
        "-m",
        launcher,
        *how,
        "-m",
        "drift",
        *command(uneven, tiny_model, tmp_path / "two", max_steps=4),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_manifest(tmp_path / "two", "model")["ranks"] == 2
    assert torch.allclose(losses(tmp_path / "two"), losses(one), rtol=1e-4, atol=1e-4)
    assert done.stdout.count("4 steps on ") == 1
    # Each of them refuses alike, and one of them says so.
    again = subprocess.run([*line, "--learning_rate", "0.5"], capture_output=True, text=True, timeout=120)
    assert again.returncode != 0
    assert again.stderr.count("drift: ") == again.stderr.count("config.learning_rate: 0.001 -> 0.5") == 1


def test_an_error_of_a_rank_comes_back_as_it_was_raised(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = settings(num_processes=2, learning_rate=1e30, warmup=0.0, arguments={"max_grad_norm": 0.0})
    with pytest.raises(TrainingError, match=r"went wrong by step \d+: (loss|grad_norm) is (nan|inf)"):
        train(*uneven, out=tmp_path / "model", model=str(tiny_model), config=config, device="cpu")
    assert "Traceback" not in capfd.readouterr().err
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks_and_keeps_the_checkpoint(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    line = command(uneven, tiny_model, tmp_path / "m", max_steps=5_000, save_steps=2, num_processes=2)
    child = subprocess.Popen(
        [sys.executable, "-m", "drift", *line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(child, lambda: last_checkpoint(tmp_path / "m") is not None)
    ranks = descendants(child.pid)
    assert len(ranks) >= 2
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert told.count("drift: stopped at step") == 1 and "is kept. Run the same command again" in told
    assert "Traceback" not in told and "ProcessGroup" not in told
    assert not alive(ranks)
    print("left after", time.monotonic() - start)


def wait_for(child: "subprocess.Popen[Any]", ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is None and ready()


def descendants(pid: int) -> list[int]:
    """Processes that ``pid`` started, and those that they started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found] + [below for child in found for below in descendants(int(child))]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_numbers_that_contradict_one_another_and_a_directory_in_use_are_refused(
    uneven: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"training\.engine: got 'zero9', expected one of ddp, fsdp, zero2, zero3"):
        settings(engine="zero9")
    with pytest.raises(ConfigError, match=r"training\.num_processes: got 0"):
        settings(num_processes=0)
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=r"training\.num_processes: got 3, expected 2, which is what the launcher"):
        train(*uneven, out=tmp_path / "m", model=str(tiny_model), config=settings(num_processes=3), device="cpu")
    monkeypatch.undo()
    monkeypatch.setattr("drift.training.distributed.LOCK_SECONDS", 0.2)
    with locked(tmp_path / "m"), pytest.raises(DatasetError, match=f"is being trained into by process {os.getpid()}"):
        train(*uneven, out=tmp_path / "m", model=str(tiny_model), config=settings(), device="cpu")
