"""What the stages rest on fails: verifiers' workers, environments, the server of a policy, what a stage has written."""

import dataclasses
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from drift.dataset.schema import dataset_hash
from drift.dataset.store import read_trajectories
from drift.environments.arithmetic import Arithmetic
from drift.errors import PolicyError
from drift.policies import make_policy
from drift.policies.base import Sampling
from drift.rollouts.collect import collect
from drift.types import Message, Step, Task, Trajectory
from drift.verifiers import math_pool

from .engine import free_port, kill, serve
from .harness import ROUNDS, SEED, Child, Stage, Tally, end_as_it_should, finish, result, start

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def run_once(place: Path, name: str, command: list[str]) -> Stage:
    """A stage that is no part of the usual run, and its result undisturbed."""
    out, began = place / "whole" / name, time.monotonic()
    finish([*command, "--out", str(out)])
    return Stage(name, command, time.monotonic() - began, result("rollout", out))


def end_alike(stage: Stage, out: Path) -> None:
    end_as_it_should(dataclasses.replace(stage, name="rollout"), out)


@pytest.fixture(scope="module")
def verified(place: Path) -> Stage:
    """Rollouts whose answers are fractions, which workers of math-verify compare."""
    import drift.environments.questions
    import drift.verifiers.math  # noqa: F401

    file = place / "problems.jsonl"
    rows = [{"problem": f"What is {at} over 7?", "solution": rf"\boxed{{\frac{{{at}}}{{7}}}}"} for at in range(1, 61)]
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = {"train": "math", "train_file": str(file), "max_turns": 3}
    settings["verifier_settings"] = {"workers": 1, "deadline": 4}
    replies = "|".join(rf"\boxed{{\frac{{{at}}}{{7}}}}" for at in range(1, 61, 6))
    command = ["rollout", "math", "--tasks", "60", "--samples", "3", "--model", f"scripted:{replies}"]
    return run_once(place, "verify", [*command, "--environment", json.dumps(settings)])


def short_starts() -> None:
    """A worker that is stopped while it starts is given up sooner than in two minutes."""
    math_pool.START_SECONDS = 20.0


def workers_of(child: Child) -> list[psutil.Process]:
    """Processes that a command has started."""
    try:
        return psutil.Process(child.pid).children()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize(
    ("fault", "number"), [("verifier worker killed (memory)", signal.SIGKILL), ("verifier hangs", signal.SIGSTOP)]
)
def test_workers_of_a_verifier(verified: Stage, place: Path, tally: Tally, fault: str, number: signal.Signals) -> None:
    rng = random.Random(f"{SEED}/{fault}")
    for turn in range(ROUNDS):
        out, hits = place / f"verify-{number}-{turn}", 0
        child = start(verified.at(out), short_starts)
        # Twice at most: a check that ends or stalls three workers in a row is told as unparseable.
        for _ in range(2):
            while not workers_of(child) and not child.wait(0.02):
                pass
            child.wait(rng.uniform(0.0, verified.seconds / 2))
            for worker in workers_of(child)[:1]:
                worker.send_signal(number)
                hits += 1
        assert child.wait(240), child.said
        assert "Traceback" not in child.said, child.said
        # Killed while it started, it is told; the next run goes on.
        assert child.code == 0 or "did not start" in child.said, (child.code, child.said)
        end_alike(verified, out)
        tally.add("rollout", fault, hits)


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[tuple[Stage, int]]:
    """Rollouts through a server on loopback, and its port; nobody serves there afterwards."""
    import drift.policies.openai  # noqa: F401

    port = free_port()
    pid = serve(port)
    settings = {"url": f"http://127.0.0.1:{port}/v1", "tokenizer": "default", "retries": 3, "deadline": 30}
    command = ["rollout", "arithmetic", "--tasks", "24", "--samples", "4", "--max-new-tokens", "12"]
    try:
        command += ["--model", "openai:served", "--policy", json.dumps(settings)]
        stage = run_once(place, "engine", command)
    finally:
        kill(pid)
    yield stage, port


def test_a_server_that_is_killed_in_mid_run(served: tuple[Stage, int], place: Path, tally: Tally) -> None:
    (stage, port), rng = served, random.Random(f"{SEED}/engine")
    for turn in range(ROUNDS):
        out, hits = place / f"engine-{turn}", 0
        for _ in range(2):
            pid = serve(port)
            child = start(stage.at(out))
            child.wait(rng.uniform(0.0, stage.seconds))
            kill(pid)
            assert child.wait(120), child.said
            assert "Traceback" not in child.said, child.said
            if child.code:
                hits += 1
                assert child.code == PolicyError.exit_code and f"127.0.0.1:{port}" in child.said, child.said
                assert "run the same command again" in child.said or "Start it" in child.said, child.said
        pid = serve(port)
        try:
            end_alike(stage, out)
        finally:
            kill(pid)
        tally.add("rollout", "server of the policy killed", hits)


@dataclasses.dataclass
class Faulty:
    """Arithmetic; at chosen tasks, what a step gives is replaced."""

    inner: Arithmetic
    chosen: set[str]
    spoil: Callable[[Step], Any]
    max_turns: int = 5

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        return self.inner.tasks(split, count, seed)

    def start(self, task: Task) -> Any:
        episode = self.inner.start(task)
        return Spoiled(episode, self.spoil) if task.id in self.chosen else episode


@dataclasses.dataclass
class Spoiled:
    episode: Any
    spoil: Callable[[Step], Any]

    def opening(self) -> list[Message]:
        found: list[Message] = self.episode.opening()
        return found

    async def step(self, reply: str) -> Step:
        spoiled: Step = self.spoil(await self.episode.step(reply))
        return spoiled


def raises(step: Step) -> Step:
    raise ZeroDivisionError("in the environment")


def out_of_memory(step: Step) -> Step:
    raise MemoryError


SPOILT: dict[str, tuple[Callable[[Step], Any], str]] = {
    "raises": (raises, "raised ZeroDivisionError"),
    "has no memory": (out_of_memory, "raised MemoryError"),
    "returns nothing": (lambda step: None, "returned NoneType"),
    "rewards with no number": (lambda step: dataclasses.replace(step, reward=float("nan")), "the reward nan"),
    "falls silent": (lambda step: dataclasses.replace(step, messages=(), done=False), "no messages although"),
    "says half a character": (
        lambda step: dataclasses.replace(step, messages=({"role": "user", "content": "\ud800"},)),
        "half of a UTF-16 pair",
    ),
    "speaks as nobody": (
        lambda step: dataclasses.replace(step, messages=({"role": "root", "content": "x"},)),
        "the role 'root'",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_an_environment_that_raises_or_returns_nonsense(place: Path, tally: Tally, kind: str) -> None:
    (spoil, told), inner = SPOILT[kind], Arithmetic()
    tasks = inner.tasks("train", 30, 1)
    rng = random.Random(f"{SEED}/{kind}")

    def held(factory: Any, out: Path) -> dict[str, Trajectory]:
        more: dict[str, Any] = {"environment": {"name": kind}, "samples": 2, "seed": 1}
        policy = make_policy("scripted:<answer>5</answer>|no idea")
        collect(tasks, factory, policy, out, sampling=Sampling(max_new_tokens=30), **more)
        return {t.id: t for t in read_trajectories(out)}

    whole = held(inner, place / f"whole-{kind}")
    for turn in range(min(2, ROUNDS)):
        chosen = set(rng.sample([task.id for task in tasks], 8))
        out = place / f"spoilt-{kind}-{turn}"
        found = held(Faulty(inner, chosen, spoil), out)
        assert found.keys() == whole.keys()
        failed = {name for name, trajectory in found.items() if trajectory.stop_reason == "error"}
        assert failed == {name for name, trajectory in found.items() if trajectory.task_id in chosen}
        assert all(told in str(found[name].error) for name in failed)
        others = sorted(whole.keys() - failed)
        assert dataset_hash(found[name] for name in others) == dataset_hash(whole[name] for name in others)
        finish(["weigh", str(out), "--scheme", "sft", "--out", str(out / "weights")])
        assert json.loads((out / "weights" / "manifest.json").read_text())["excluded"] == {"failed": len(failed)}
        tally.add("rollout", "environment raises or returns nonsense")


# What reads the result of a stage, and the file of it that is damaged.
READERS: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "weigh": (lambda whole, out: ["train", str(whole / "rollout"), str(out)], "weights.parquet"),
    "train": (
        lambda whole, out: ["evaluate", "arithmetic", "--models", json.dumps({"base": str(out)}), "--tasks", "4"],
        "model.safetensors",
    ),
    "evaluate": (lambda whole, out: ["report", str(out)], "estimates.json"),
}


@pytest.mark.parametrize("fault", ["truncated file", "flipped bit", "missing file", "manifest of another version"])
@pytest.mark.parametrize("name", READERS)
def test_damaged_results(stages: dict[str, Stage], place: Path, tally: Tally, name: str, fault: str) -> None:
    rng, (reader, file) = random.Random(f"{SEED}/{name}/{fault}"), READERS[name]
    if (name, fault) == ("train", "manifest of another version"):
        pytest.skip("a model folder is read as any model folder is, without a manifest")
    for turn in range(ROUNDS):
        out, never = place / f"{name}-result-{turn}", place / "never"
        shutil.copytree(place / "whole" / name, out)
        path = out / file
        data = bytearray(path.read_bytes())
        if fault == "truncated file":
            path.write_bytes(data[: rng.randrange(len(data))])
        elif fault == "flipped bit":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        elif fault == "missing file":
            path.unlink()
        else:
            manifest = out / "manifest.json"
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 7}))
        child = start([*reader(place / "whole", out), "--out", str(never)])
        assert child.wait(120) and child.code, child.said
        assert "Traceback" not in child.said and str(out) in child.said, child.said
        assert not never.exists() or not (never / "manifest.json").exists()
        shutil.rmtree(never, ignore_errors=True)
        # Made again where nothing is left of it.
        shutil.rmtree(out)
        if turn == 0:
            end_as_it_should(stages[name], out)
        tally.add(name, fault)


def test_nothing_that_was_started_is_left(place: Path) -> None:
    children = psutil.Process(os.getpid()).children(recursive=True)
    running = [child for child in children if child.status() != "zombie"]
    # The fork servers of the tests end with them.
    left = [child for child in running if not any(word.endswith("forking.py") for word in child.cmdline())]
    assert not left, left
