"""A task with graded rewards for the built-in policy: guess a number, and be paid for how near one came.

In this folder: ``drift compare graded.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from drift.environments.answers import AnswerEpisode
from drift.environments.guess import Guess
from drift.types import Step, Task


@dataclass(frozen=True, kw_only=True)
class NearGuess(Guess):
    """``guess`` with five replies, whose reward is how much nearer one came than before.

    A guess g at the secret s scores ``(1 − |g − s|/width)²``, at least 0; the rewards of a conversation sum to the best
    score in it. Nothing but a score of 1 is a success, and few conversations get one.
    """

    def start(self, task: Task) -> NearEpisode:
        """A fresh episode of ``task``."""
        return NearEpisode(super().start(task), int(task.payload["secret"]), self.width)


class NearEpisode:
    """An episode of ``guess`` with another reward."""

    def __init__(self, episode: AnswerEpisode, secret: int, width: int) -> None:
        self.opening = episode.opening
        self._episode, self._secret, self._width, self._best = episode, secret, width, 0.0

    async def step(self, reply: str) -> Step:
        """What ``guess`` says, and how much nearer the reply came than the best before."""
        step = await self._episode.step(reply)
        away = self._width if step.answer is None else min(self._width, abs(int(step.answer) - self._secret))
        score = (1 - away / self._width) ** 2
        better, self._best = max(0.0, score - self._best), max(score, self._best)
        return replace(step, reward=better)
