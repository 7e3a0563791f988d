"""Holding an episode by hand."""

import asyncio
from typing import Any

from drift.environments.base import close_episode, open_episode
from drift.types import Step, Task


def play(environment: Any, task: Task, replies: list[str]) -> list[Step]:
    """Give replies one after another until the episode is over; returns its steps."""

    async def run() -> list[Step]:
        episode = environment.start(task)
        steps: list[Step] = []
        try:
            await open_episode(episode)
            for reply in replies:
                steps.append(await episode.step(reply))
                if steps[-1].done:
                    break
        finally:
            await close_episode(episode)
        return steps

    return asyncio.run(run())
