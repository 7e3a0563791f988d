"""Number guessing: feedback that carries information, so that a good second turn depends on the first."""

from __future__ import annotations

import random
from dataclasses import dataclass

from drift.environments.answers import extract_answer, parse_whole_number
from drift.environments.base import SPLITS, stable_unit
from drift.errors import ConfigError, require
from drift.types import Message, Step, Task

LARGEST = 99
TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The assistant guesses a secret whole number between two bounds and is told "Too low." or "Too high.".

    Perfect play (halving) solves a range of ``width`` numbers within ``ceil(log2(width + 1))`` turns, and within T
    turns a share of ``min(1, (2^T − 1) / width)`` of the secrets.

    Args:
        max_turns: T, the most replies in an episode.
        width: how many numbers the range holds.
    """

    max_turns: int = 5
    width: int = 20

    def __post_init__(self) -> None:
        require(self.max_turns >= 1, "environment.settings.max_turns", self.max_turns, "a whole number ≥ 1")
        require(2 <= self.width <= LARGEST, "environment.settings.width", self.width, f"2 to {LARGEST}")

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct (range, secret) pairs; the split depends on the pair alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        every = self.all_tasks(split)
        if count > len(every):
            raise ConfigError(
                f"guess with width {self.width} has {len(every)} {split} tasks; {count} were asked for. "
                f"Ask for at most {len(every)}, or change environment.settings.width."
            )
        return random.Random(f"guess/{split}/{seed}").sample(every, count)

    def options(self, task: Task) -> int:
        """How many numbers the range holds."""
        return self.width

    def reference(self, task: Task) -> str:
        """The secret."""
        return str(task.payload["secret"])

    def all_tasks(self, split: str) -> list[Task]:
        """Every task of ``split``, in order of range and secret."""
        made = []
        for low in range(1, LARGEST - self.width + 2):
            high = low + self.width - 1
            for secret in range(low, high + 1):
                held_out = stable_unit("guess", self.width, low, secret) < TEST_SHARE
                if held_out == (split == "test"):
                    name = f"guess-{low}-{high}-{secret}"
                    payload = {"low": low, "high": high, "secret": secret}
                    made.append(Task(id=name, group_id=name, split=split, payload=payload))
        return made

    def start(self, task: Task) -> GuessEpisode:
        """A fresh episode of ``task``."""
        low, high, secret = (int(task.payload[key]) for key in ("low", "high", "secret"))
        return GuessEpisode(self.max_turns, low, high, secret)


class GuessEpisode:
    """One conversation about one secret."""

    def __init__(self, max_turns: int, low: int, high: int, secret: int) -> None:
        self._max_turns = max_turns
        self._low, self._high, self._secret = low, high, secret
        self._turn = 0

    def opening(self) -> list[Message]:
        """The bounds, as one user message."""
        return [{"role": "user", "content": f"Guess my number between {self._low} and {self._high}."}]

    async def step(self, reply: str) -> Step:
        """Reward 1 for the secret, else 0; says on which side of the guess the secret lies."""
        self._turn += 1
        text = extract_answer(reply)
        value = None if text is None else parse_whole_number(text)
        success = value == self._secret
        done = success or self._turn >= self._max_turns
        if value is None:
            feedback = "No answer found. Please reply with <answer>number</answer>."
        else:
            feedback = "Too low." if value < self._secret else "Too high."
        return Step(
            messages=() if done else ({"role": "user", "content": feedback},),
            reward=float(success),
            done=done,
            success=success,
            answer=None if value is None else str(value),
        )
