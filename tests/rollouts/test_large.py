"""Thousands of conversations open at once, and one of a hundred thousand tokens through every stage."""

import asyncio
import json
from pathlib import Path

import pytest

from drift.api import evaluate, report, rollout, train, weigh
from drift.dataset.store import read_trajectories
from drift.environments.guess import Guess
from drift.errors import TrainingError
from drift.manifest import read_manifest
from drift.policies.base import Sampling
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.collect import collect
from drift.types import Completion


class AllAtOnce(ScriptedPolicy):
    """Answers nobody until as many ask as may be open at once."""

    def __init__(self, together: int) -> None:
        super().__init__(["<answer>5</answer>", "no idea"])
        self.together = together
        self.asking = self.most = 0
        self.enough = asyncio.Event()

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        self.asking += 1
        self.most = max(self.most, self.asking)
        if self.asking == self.together:
            self.enough.set()
        await self.enough.wait()
        self.asking -= 1
        return await super().complete(prompt_ids, sampling=sampling, seed=seed)


@pytest.mark.parametrize("together", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_conversations_are_open_at_once_and_none_is_lost(tmp_path: Path, together: int) -> None:
    plan = {
        "environment": {"name": "guess"},
        "samples": 4,
        "seed": 1,
        "sampling": Sampling(max_new_tokens=20),
        "concurrency": together,
    }
    tasks, policy = Guess().tasks("train", together // 4 + 30, 1), AllAtOnce(together)
    manifest = collect(tasks, Guess(), policy, tmp_path / "open", **plan)
    assert policy.most == together and manifest["counts"]["trajectories"] == together + 120
    one = {**plan, "concurrency": 1}
    alone = collect(tasks, Guess(), ScriptedPolicy(["<answer>5</answer>", "no idea"]), tmp_path / "one", **one)
    assert alone["dataset_hash"] == manifest["dataset_hash"]


REPLY = 25_000


def test_a_conversation_of_a_hundred_thousand_tokens(tmp_path: Path) -> None:
    long = "scripted:" + "a long way to nothing; " * (REPLY // 23 + 1)
    data = rollout(
        "arithmetic",
        model=long,
        tasks=3,
        samples=2,
        max_new_tokens=REPLY,
        out=tmp_path / "rollouts",
    )
    found = read_trajectories(data)
    assert [len(t.turns) for t in found] == [5] * 6
    assert all(len(t.turns[-1].prompt_ids) + len(t.turns[-1].completion.token_ids) > 100_000 for t in found)
    assert all(turn.completion.finish_reason == "length" for t in found for turn in t.turns)
    weights = weigh(data, scheme="sft", out=tmp_path / "weights")
    # Longer than the model's context: skipped and counted, as docs/artifacts.md says; here that leaves nothing.
    small = {"any_policy": True, "max_steps": 1, "batch_size": 4, "save_steps": 0}
    with pytest.raises(TrainingError, match=r"no rows to train on, .*'skipped_too_long': 6"):
        train(data, weights, out=tmp_path / "model", **small)
    models = {"base": "scripted:<answer>1</answer>", "long": long}
    evaluated = evaluate(
        "arithmetic",
        models,
        tasks=4,
        samples=0,
        max_new_tokens=REPLY,
        out=tmp_path / "evaluation",
    )
    page = report(evaluated, out=tmp_path / "report.html")
    # Four conversations of it, each shown.
    assert 4 * 5 * REPLY < page.path.stat().st_size < 8 * 5 * REPLY + 200_000


def test_of_mixed_lengths_only_what_fits_is_trained(tmp_path: Path) -> None:
    data = rollout(
        {"name": "arithmetic", "max_turns": 1},
        model="scripted:<answer>5</answer>|" + "b" * 30_000,
        tasks=4,
        samples=4,
        max_new_tokens=30_000,
        out=tmp_path / "rollouts",
    )
    found = read_trajectories(data)
    fitting = sum(len(t.turns[0].completion.token_ids) < 100 for t in found)
    assert 0 < fitting < 16
    model = train(
        data,
        weigh(data, scheme="sft", out=tmp_path / "weights"),
        out=tmp_path / "model",
        any_policy=True,
        max_steps=1,
        batch_size=4,
        save_steps=0,
    )
    counts = read_manifest(model, "model")["counts"]
    assert (counts["rows"], counts["skipped_too_long"]) == (fitting, 16 - fitting), json.dumps(counts)
