"""Training that is killed, at any moment, and started again ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.dataset.store import TrajectoryWriter
from drift.manifest import read_manifest
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.training.checkpoints import FOLDER, discard_unfinished, last_checkpoint, publish, unfinished
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset

STEPS = 400


@pytest.fixture
def weighed(tmp_path: Path, tiny_model: Path, make_trajectory: Callable[..., Trajectory]) -> tuple[Path, Path]:
    policy = fingerprint(*load_model(str(tiny_model)))
    made = [
        make_trajectory(f"t{i}", k, ("1", str(k) * (1 + i)), solved=(i + k) % 3 == 0, policy=policy)
        for i in range(8)
        for k in range(2 + i % 3)
    ]
    with TrajectoryWriter(tmp_path / "data", {"trajectories": len(made), "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    weigh_dataset(tmp_path / "data", WeightConfig(), tmp_path / "weights")
    return tmp_path / "data", tmp_path / "weights"


def settings(**changes: Any) -> dict[str, Any]:
    # Lines of the log and checkpoints fall on different steps, so that a resume lies between two lines.
    defaults = {"max_steps": STEPS, "batch_size": 6, "tokens_per_batch": 100, "learning_rate": 1e-3}
    return {**defaults, "save_steps": 2, "arguments": {"logging_steps": 3}, **changes}


def curve(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def same(one: Path, other: Path) -> bool:
    first, second = parameters(one), parameters(other)
    return curve(one) == curve(other) and all(torch.equal(first[name], second[name]) for name in first)


def step_of(out: Path) -> int:
    newest = last_checkpoint(out)
    return int(newest.name.split("-")[1]) if newest else 0


def half_written(out: Path) -> bool:
    """Whether a checkpoint is being written; the folder for that can go while it is looked at."""
    with suppress(FileNotFoundError):
        return any(unfinished(out / FOLDER).glob("checkpoint-*"))
    return False


def check_checkpoints(out: Path) -> None:
    """Every checkpoint can be read, and there are no more than may be kept and one that is being swapped."""
    found = list((out / FOLDER).glob("checkpoint-*"))
    assert len(found) <= 3
    for path in found:
        assert json.loads((path / "trainer_state.json").read_text())["global_step"] == int(path.name.split("-")[1])
        if (path / "model.safetensors").exists():
            load_file(path / "model.safetensors")
            torch.load(path / "optimizer.pt", weights_only=True)


def ranks_below(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


def kill(child: "subprocess.Popen[bytes]", rank: int | None = None) -> None:
    """SIGKILL ``child``, or one of the ranks it started; returns when all of them are gone."""
    ranks = ranks_below(child.pid)
    os.kill(child.pid if rank is None or not ranks else ranks[rank], signal.SIGKILL)
    child.wait(timeout=60)
    for each in ranks:
        while Path(f"/proc/{each}").exists():
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("processes", "engine", "kills"), [(1, "ddp", 10), (2, "ddp", 3), (2, "fsdp", 2)])
def test_killed_at_random_moments_it_ends_as_unbroken(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, processes: int, engine: str, kills: int
) -> None:
    given = settings(max_steps=STEPS // processes, num_processes=processes, engine=engine)
    whole = train(*weighed, out=tmp_path / "whole", model=str(tiny_model), device="cpu", **given)
    out = tmp_path / "broken"
    line = [sys.executable, "-m", "drift", "train", *map(str, weighed), "--out", str(out), "--model", str(tiny_model)]
    line += ["--device", "cpu", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]
    moments = random.Random(processes)
    killed_at, halves = [], 0
    part = (given["max_steps"] - 20) // kills
    for number in range(kills):
        before, target = step_of(out), number * part + moments.randint(1, part)
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number % 5 == 3:
            # While it starts, and then again further on.
            time.sleep(moments.uniform(1, 5))
            kill(child)
            child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while step_of(out) < max(target, before + 1) and child.poll() is None:
            time.sleep(0.002)
        if number % 2:
            # While a checkpoint is being written.
            while not half_written(out) and child.poll() is None:
                time.sleep(0.0005)
        else:
            time.sleep(moments.uniform(0, 0.3))
        kill(child, rank=number // 2 % 2 if processes > 1 else None)
        assert not (out / "manifest.json").exists(), "it ended before it was killed: make it longer"
        killed_at.append(step_of(out))
        halves += half_written(out)
        check_checkpoints(out)
    again = train(*weighed, out=out, model=str(tiny_model), device="cpu", **given)
    print(f"{processes} {engine}: killed after the checkpoints of steps {killed_at}, {halves} while one was written")
    assert same(whole, again)
    assert sorted(path.name for path in (out / FOLDER).iterdir()) == sorted(
        path.name for path in (whole / FOLDER).iterdir()
    )


def test_killed_while_the_model_is_saved_nothing_is_trained_twice(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    given = settings(max_steps=6)
    whole = train(*weighed, out=tmp_path / "whole", model=str(tiny_model), **given)
    out = train(*weighed, out=tmp_path / "out", model=str(tiny_model), **given)
    (out / "manifest.json").unlink()
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:100])
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    train(*weighed, out=out, model=str(tiny_model), **given)
    assert same(whole, out) and read_manifest(out, "model")["steps"] == 6


def test_a_checkpoint_appears_whole_and_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / FOLDER

    def write(step: int) -> str:
        path = unfinished(folder) / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text("{}")
        return path.name

    for step in (2, 4):
        publish(folder, write(step), 2)
    half_written = write(6)
    assert step_of(tmp_path) == 4
    # Killed in the removal of the oldest: it has left its name already.
    monkeypatch.setattr("drift.training.checkpoints.shutil.rmtree", lambda path, **_: None)
    with pytest.raises(OSError):
        publish(folder, half_written, 2)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    discard_unfinished(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    # Made again, it takes the place of the old one.
    publish(folder, write(6), 1)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-6"]
