import asyncio
from pathlib import Path

import pytest

from drift import progress
from drift.environments.guess import Guess
from drift.policies.base import Sampling
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.collect import collect
from drift.types import Completion


class Slow(ScriptedPolicy):
    """Its first reply takes longer than a progress waits; of that one it tells the tokens meanwhile."""

    tokens_sampled = 0

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        self.tokens_sampled += 1000
        await asyncio.sleep(1.2)
        return await super().complete(prompt_ids, sampling=sampling, seed=seed)


def test_progress_is_told_in_replies_and_tokens_and_all_costs_after_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.5)
    game = Guess(max_turns=3)
    plan = {"environment": {"name": "guess"}, "samples": 2, "seed": 1, "sampling": Sampling(max_new_tokens=8)}
    collect(game.tasks("train", 3, 0), game, Slow(["<answer>0</answer>"]), tmp_path, **plan)
    first, *_, last = (lines := capsys.readouterr().err.splitlines())
    assert first.startswith("rollouts: 0/6; 0 replies, 6,000 tokens, ")
    (cost,) = [line for line in lines if "take up to" in line]
    assert cost.startswith(
        "rollouts: 6 replies took 48 tokens and 1 s; all 6 conversations of at most 3 replies take up"
    )
    assert "take up to 144 tokens and" in cost
    assert last.startswith("rollouts: 6/6, ") and "; 18 replies, 18,000 tokens, " in last
