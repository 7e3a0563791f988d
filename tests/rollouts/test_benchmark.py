import asyncio
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drift.dataset.store import read_trajectories
from drift.environments.guess import Guess
from drift.policies.base import Sampling
from drift.policies.scripted import ScriptedPolicy
from drift.types import Completion

REPLIES = ["<answer>40</answer>", "<answer>41</answer>", "what?", "<answer>55</answer>"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "rollouts_benchmark", Path(__file__).parents[2] / "benchmarks/rollouts.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Watched(ScriptedPolicy):
    """Notes when each turn is asked for and answered; some replies take longer than others."""

    def __init__(self) -> None:
        super().__init__(REPLIES)
        self.seen: list[tuple[str, int]] = []

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        turn = bytes(prompt_ids).count(b"assistant: ")
        self.seen.append(("asked", turn))
        await asyncio.sleep(0.02 if seed % 5 == 0 else 0)
        self.seen.append(("answered", turn))
        return await super().complete(prompt_ids, sampling=sampling, seed=seed)


def test_the_barrier_keeps_every_turn_apart_and_changes_no_conversation(benchmark: ModuleType, tmp_path: Path) -> None:
    def setting() -> Any:
        tasks = Guess().tasks("train", 10, 0)
        return benchmark.Setting(policy=Watched(), factory=Guess(), tasks=tasks, seed=1, room=40)

    free, locked = setting(), setting()
    benchmark.ours(free, tmp_path / "free")
    benchmark.turn_by_turn(locked, tmp_path / "locked", 40)
    held = read_trajectories(tmp_path / "locked")
    assert held == read_trajectories(tmp_path / "free") and len(held) == 40
    order = [turn for _, turn in locked.policy.seen]
    assert order == sorted(order) and max(order) > 2
    # Within a turn nobody is answered before all have asked.
    for turn in set(order):
        kinds = [kind for kind, at in locked.policy.seen if at == turn]
        assert kinds == ["asked"] * (len(kinds) // 2) + ["answered"] * (len(kinds) // 2)
    mixed = [turn for _, turn in free.policy.seen]
    assert mixed != sorted(mixed)
    # In batches: turns start again from 1 once per batch.
    batched = setting()
    benchmark.turn_by_turn(batched, tmp_path / "batched", 10)
    asked = [turn for kind, turn in batched.policy.seen if kind == "asked"]
    assert sum(one > other for one, other in pairwise(asked)) == 3
    assert read_trajectories(tmp_path / "batched") == held


@pytest.mark.parametrize("sigma", [1.0, 1.25])
def test_drawn_lengths_are_log_normal(benchmark: ModuleType, sigma: float) -> None:
    lengths = sorted(benchmark.reply_length(seed, sigma) for seed in range(20_000))
    # Log-normal: median e^mu, 90 % quantile e^(mu + 1.2816 sigma); cut at 320.
    assert lengths[10_000] == pytest.approx(16, abs=1)
    assert lengths[18_000] == pytest.approx(16 * 2.7183 ** (1.2816 * sigma), rel=0.05)
    assert lengths[0] >= 1 and lengths[-1] == 320
