import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from drift.dataset.store import read_tasks, read_trajectories
from drift.environments.arithmetic import Arithmetic
from drift.environments.guess import Guess
from drift.errors import ConfigError, DatasetError, EnvironmentFault, Interrupted
from drift.manifest import read_manifest
from drift.policies.base import Sampling
from drift.policies.hf import HFPolicy
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.collect import collect
from drift.rollouts.config import RolloutConfig
from drift.types import Completion, Task

REPLIES = ["<answer>40</answer>", "<answer>41</answer>", "what?", "<answer>55</answer>"]
GUESS = Guess()
# Long conversations with a policy that names numbers at random: some four in ten succeed.
LONG, NUMBERS = Guess(max_turns=8), [f"<answer>{number}</answer>" for number in range(1, 21)]
TASKS = [task for task in LONG.tasks("train", 600, 0) if task.payload["secret"] <= 20][:60]


def plan(samples: int = 3, seed: int = 1, tokens: int = 64, concurrency: int = 512, first: int = 0) -> dict[str, Any]:
    return {
        "environment": {"name": "guess"},
        "samples": samples,
        "first": first,
        "seed": seed,
        "sampling": Sampling(max_new_tokens=tokens),
        "concurrency": concurrency,
    }


def test_every_task_gets_its_samples_and_the_manifest_counts_them(tmp_path: Path) -> None:
    tasks = GUESS.tasks("train", 30, 0)
    manifest = collect(tasks, GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())
    found = read_trajectories(tmp_path)
    assert {(t.task_id, t.sample) for t in found} == {(task.id, k) for task in tasks for k in range(3)}
    solved = sum(t.success for t in found)
    counts = {"trajectories": 90, "stop_success": solved, "stop_turns": 90 - solved}
    assert manifest["counts"] == {key: value for key, value in counts.items() if value}
    assert manifest["complete"] and manifest["cost"]["tokens_sampled"] == sum(t.tokens_sampled for t in found)
    assert read_tasks(tmp_path) == tasks


def test_the_same_seed_gives_the_same_hash_and_another_seed_another(tmp_path: Path, tiny_model: Path) -> None:
    tasks = GUESS.tasks("train", 3, 0)
    runs = [("a", 1, 8, 4), ("b", 1, 64, 512), ("c", 1, 1, 5), ("d", 2, 64, 512)]
    hashes = {
        name: collect(
            tasks, GUESS, HFPolicy(str(tiny_model), batch_size=size), tmp_path / name, **plan(3, seed, 3, concurrency)
        )["dataset_hash"]
        for name, seed, size, concurrency in runs
    }
    assert hashes["a"] == hashes["b"] == hashes["c"] != hashes["d"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    tasks = GUESS.tasks("train", 40, 0)
    whole = collect(tasks, GUESS, ScriptedPolicy(REPLIES), tmp_path / "whole", **plan())

    class Stopped(ScriptedPolicy):
        asked = 0

        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            self.asked += 1
            await asyncio.sleep(0)
            if self.asked == 150:
                # What Ctrl-C does, at a moment of our choosing.
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(1)
            return await super().complete(prompt_ids, sampling=sampling, seed=seed)

    with pytest.raises(Interrupted, match="Run the same command again"):
        collect(tasks, GUESS, Stopped(REPLIES), tmp_path / "broken", **plan(concurrency=8))
    kept = read_trajectories(tmp_path / "broken", complete_only=False)
    assert 0 < len(kept) < 120
    with pytest.raises(DatasetError, match=f"incomplete: {len(kept)} of 120"):
        read_trajectories(tmp_path / "broken")

    class Counting(ScriptedPolicy):
        started = 0

        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            self.started += bytes(prompt_ids).count(b"assistant: ") == 1
            return await super().complete(prompt_ids, sampling=sampling, seed=seed)

    rest = Counting(REPLIES)
    manifest = collect(tasks, GUESS, rest, tmp_path / "broken", **plan())
    assert manifest["dataset_hash"] == whole["dataset_hash"]
    assert rest.started == 120 - len(kept)


@pytest.mark.usefixtures("quick_starts")
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_data(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from drift.dataset import store
        from drift.environments.guess import Guess
        from drift.policies.base import Sampling
        from drift.policies.scripted import ScriptedPolicy
        from drift.rollouts.collect import collect

        class Slow(ScriptedPolicy):
            async def complete(self, *args, **kwargs):
                await asyncio.sleep(0.002)
                return await super().complete(*args, **kwargs)

        store.FLUSH_SECONDS = 0.02
        factory = Guess()
        plan = dict(environment={"name": "guess"}, samples=4, seed=3, sampling=Sampling(), concurrency=4)
        print("ready", flush=True)
        policy = Slow(["<answer>40</answer>", "<answer>50</answer>"])
        print(collect(factory.tasks("train", 70, 0), factory, policy, Path(sys.argv[1]), **plan)["dataset_hash"])
        """
    )

    def start(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(tmp_path / folder)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        return child

    unbroken = start("unbroken").communicate()[0].strip()
    shards = tmp_path / "killed" / "shards"
    for fewest in (1, 3, 8):
        child = start("killed")
        while len(list(shards.glob("*.parquet"))) < fewest:
            time.sleep(0.003)
        child.kill()
        child.communicate()
    kept = len(read_trajectories(tmp_path / "killed", complete_only=False))
    assert 0 < kept < 280
    assert start("killed").communicate()[0].strip() == unbroken
    assert len(unbroken) == 64


def test_adaptive_sampling_goes_on_only_with_prompts_that_are_undecided(tmp_path: Path) -> None:
    whole = collect(TASKS, LONG, ScriptedPolicy(NUMBERS), tmp_path / "whole", **plan(8))
    manifest = collect(TASKS, LONG, ScriptedPolicy(NUMBERS), tmp_path / "adaptive", **plan(8, first=3))
    everything = {t.id: t for t in read_trajectories(tmp_path / "whole")}
    found = {t.id: t for t in read_trajectories(tmp_path / "adaptive")}
    # By the rule, one task at a time, on the data that sampling everything gives.
    expected, undecided = set(), 0
    for task in TASKS:
        mixed = len({everything[f"{task.id}#{k}"].success for k in range(3)}) == 2
        undecided += mixed
        expected |= {f"{task.id}#{k}" for k in range(8 if mixed else 3)}
    assert 0 < undecided < len(TASKS)
    assert set(found) == expected and all(found[key] == everything[key] for key in found)
    assert manifest["adaptive"] == {
        "decided": len(TASKS) - undecided,
        "undecided": undecided,
        "saved": whole["counts"]["trajectories"] - len(expected),
    }
    assert manifest["spec"]["first"] == 3 and "first" not in whole["spec"]
    with pytest.raises(DatasetError, match="first: 3 -> None"):
        collect(TASKS, LONG, ScriptedPolicy(NUMBERS), tmp_path / "adaptive", **plan(8))
    with pytest.raises(ConfigError, match=r"rollouts\.first: got 9, expected 0, or a whole number from 2 to samples"):
        RolloutConfig(samples=8, first=9)


@pytest.mark.parametrize("share", [0.05, pytest.param(0.3, marks=pytest.mark.slow), 0.8])
def test_adaptive_sampling_that_was_interrupted_ends_with_the_same_data(tmp_path: Path, share: float) -> None:
    stop_at = 0

    class Stopped(ScriptedPolicy):
        asked = 0

        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            self.asked += 1
            await asyncio.sleep(0)
            if self.asked == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(1)
            return await super().complete(prompt_ids, sampling=sampling, seed=seed)

    unbroken = Stopped(NUMBERS)
    whole = collect(TASKS, LONG, unbroken, tmp_path / "whole", **plan(8, first=3))
    stop_at = int(share * unbroken.asked)
    with pytest.raises(Interrupted, match="of at most 480 conversations"):
        collect(TASKS, LONG, Stopped(NUMBERS), tmp_path / "broken", **plan(8, concurrency=8, first=3))
    # In the first round of 180, or in the second.
    kept = len(read_trajectories(tmp_path / "broken", complete_only=False))
    assert (kept > 180) == (share == 0.8)
    manifest = collect(TASKS, LONG, ScriptedPolicy(NUMBERS), tmp_path / "broken", **plan(8, concurrency=5, first=3))
    assert (manifest["dataset_hash"], manifest["adaptive"]) == (whole["dataset_hash"], whole["adaptive"])


def test_a_directory_of_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    tasks = GUESS.tasks("train", 5, 0)
    collect(tasks, GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())
    with pytest.raises(DatasetError, match=r"seed: 1 -> 2"):
        collect(tasks, GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan(seed=2))
    with pytest.raises(DatasetError, match=r"policy: 'scripted-"):
        collect(tasks, GUESS, ScriptedPolicy(["other"]), tmp_path, **plan())
    with pytest.raises(DatasetError, match=r"task_hash: "):
        collect(GUESS.tasks("train", 5, 9), GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    tasks = GUESS.tasks("train", 5, 0)
    first = collect(tasks, GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())

    class Silent(ScriptedPolicy):
        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            raise AssertionError("nothing is left to ask")

    assert collect(tasks, GUESS, Silent(REPLIES), tmp_path, **plan())["dataset_hash"] == first["dataset_hash"]


def test_tasks_must_exist_and_differ(tmp_path: Path) -> None:
    task = GUESS.tasks("train", 1, 0)[0]
    with pytest.raises(ConfigError, match="no tasks"):
        collect([], GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())
    with pytest.raises(ConfigError, match="same id"):
        collect([task, task], GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())


def test_at_least_one_conversation_must_be_open(tmp_path: Path) -> None:
    tasks = GUESS.tasks("train", 5, 0)
    with pytest.raises(ConfigError, match="concurrency: got 0, expected a whole number ≥ 1"):
        collect(tasks, GUESS, ScriptedPolicy(REPLIES), tmp_path / "none", **plan(concurrency=0))
    assert not (tmp_path / "none").exists()


def test_environment_failures_are_kept_and_counted_and_all_of_them_is_an_error(tmp_path: Path) -> None:
    class Half(Arithmetic):
        def start(self, task: Task):  # type: ignore[no-untyped-def]
            if task.payload["a"] % 2:
                raise RuntimeError("odd")
            return super().start(task)

    tasks = Arithmetic().tasks("train", 20, 0)
    odd = sum(task.payload["a"] % 2 for task in tasks)
    assert 0 < odd < 20
    manifest = collect(tasks, Half(), ScriptedPolicy(["<answer>1</answer>"]), tmp_path / "half", **plan(2))
    assert manifest["counts"]["stop_error"] == 2 * odd and manifest["counts"]["trajectories"] == 40
    only_odd = [task for task in tasks if task.payload["a"] % 2]
    with pytest.raises(EnvironmentFault, match="every conversation failed"):
        collect(only_odd, Half(), ScriptedPolicy(["x"]), tmp_path / "all", **plan(2))


def test_the_manifest_names_what_made_the_data(tmp_path: Path) -> None:
    collect(GUESS.tasks("train", 3, 0), GUESS, ScriptedPolicy(REPLIES), tmp_path, **plan())
    spec = read_manifest(tmp_path, "trajectories")["spec"]
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_new_tokens": 64, "stop": []}
    assert spec["sampling"] == drawn
    assert (spec["samples"], spec["seed"], spec["tasks"], spec["trajectories"]) == (3, 1, 3, 9)
    json.dumps(spec)
