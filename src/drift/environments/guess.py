"""Number guessing: feedback that carries information, so that a good second turn depends on the first."""

from __future__ import annotations

import random
from dataclasses import dataclass

from drift.environments.answers import AnswerEpisode, check_whole_number
from drift.environments.base import SPLITS, split_of
from drift.errors import ConfigError, require
from drift.types import Task
from drift.verifiers.base import Verification

LARGEST = 99


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The assistant guesses a secret whole number between two bounds; the environment says "Too low." or "Too high.".

    Perfect play (halving) solves a range of ``width`` numbers within ``ceil(log2(width + 1))`` turns, and within T
    turns a share of ``min(1, (2^T − 1) / width)`` of the secrets.

    Args:
        max_turns: T, the most replies in an episode.
        width: how many numbers the range holds.
        prompt: the opening message, with ``{low}`` and ``{high}``. As it is it suits the built-in policy; tell a model
            of your own what you want, for example by ``Reply with <answer>number</answer>.`` at its end.
    """

    max_turns: int = 5
    width: int = 20
    prompt: str = "Guess my number between {low} and {high}."

    def __post_init__(self) -> None:
        require(self.max_turns >= 1, "environment.max_turns", self.max_turns, "a whole number ≥ 1")
        named = "{low}" in self.prompt and "{high}" in self.prompt
        require(named, "environment.prompt", self.prompt, "a text that holds {low} and {high}")
        require(2 <= self.width <= LARGEST, "environment.width", self.width, f"2 to {LARGEST}")

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct (range, secret) pairs; the split depends on the pair alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        every = self.all_tasks(split)
        if count > len(every):
            raise ConfigError(
                f"guess with width {self.width} has {len(every)} {split} tasks; {count} were asked for. "
                f"Ask for at most {len(every)}, or change environment.width."
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
                if split_of("guess", self.width, low, secret) == split:
                    name = f"guess-{low}-{high}-{secret}"
                    payload = {"low": low, "high": high, "secret": secret}
                    made.append(Task(id=name, group_id=name, split=split, payload=payload))
        return made

    def start(self, task: Task) -> AnswerEpisode:
        """A fresh episode of ``task``."""
        low, high, secret = (int(task.payload[key]) for key in ("low", "high", "secret"))

        async def check(reply: str) -> Verification:
            return check_whole_number(reply, lambda number: number == secret)

        def feedback(number: str | None) -> str:
            if number is None:
                return "No answer found. Please reply with <answer>number</answer>."
            return "Too low." if int(number) < secret else "Too high."

        opening = self.prompt.replace("{low}", str(low)).replace("{high}", str(high))
        return AnswerEpisode(opening, self.max_turns, check, feedback)
