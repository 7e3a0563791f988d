"""Playing adapted environments to the end, and what comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from drift.environments.base import close_episode, open_episode
from drift.manifest import read_manifest
from drift.policies.base import Sampling
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.collect import collect


async def told(environment, task, replies):
    """The opening and the steps of one episode that is given ``replies`` until it is over."""
    episode, steps = environment.start(task), []
    try:
        opening = await open_episode(episode)
        for reply in replies:
            steps.append(await episode.step(reply))
            if steps[-1].done:
                break
    finally:
        await close_episode(episode)
    return opening, steps


def in_turn(*replies: str) -> ScriptedPolicy:
    """Says the replies one after the other, by counting its own earlier ones in the conversation."""
    return ScriptedPolicy(rule=lambda text, seed: replies[text.count("assistant: ") - 1], name="|".join(replies))


def gathered(environment, tasks, policy, out, *, samples=1, concurrency=512):
    """The manifest of a collection."""
    plan = {
        "environment": {"name": "adapted"},
        "samples": samples,
        "seed": 1,
        "sampling": Sampling(max_new_tokens=200),
        "concurrency": concurrency,
    }
    return collect(tasks, environment, policy, out, **plan)


def rolled_out(name, settings, out, *arguments, **variables):
    """The manifest of ``drift rollout`` with the policy that comes with the package, in a process of its own."""
    command = [sys.executable, "-m", "drift", "rollout", name, "--environment", json.dumps(settings)]
    done = subprocess.run(
        [*command, "--out", str(out), "--max-new-tokens", "16", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return read_manifest(out, "trajectories")
