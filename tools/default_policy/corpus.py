"""Conversations of a flawed assistant: it knows the answer, mostly says another, and when told so mostly insists.

The default policy is trained to convergence on conversations played here in the real environments. They are what
its replies are distributed like, so its flaws are known: where it starts is set by these numbers and not by training
too short.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from drift.environments.arithmetic import Arithmetic, problem
from drift.environments.base import Environment, open_episode
from drift.environments.guess import Guess
from drift.types import Message, Task
from tools.default_policy.config import Flaws


def label(task: Task) -> str:
    """The kind of problem, as ``Flaws.right`` names it: the sign, and whether the last digits carry or borrow."""
    kind, a, b = (task.payload[key] for key in ("kind", "a", "b"))
    hard = a % 10 + b % 10 > 9 if kind == "add" else a % 10 < b % 10
    return f"{kind}/{'carry' if hard else 'plain'}"


class Calculator:
    """The flawed assistant on one arithmetic problem."""

    def __init__(self, task: Task, flaws: Flaws, rng: random.Random) -> None:
        self._truth = int(task.payload["answer"])
        self._right = flaws.right[label(task)]
        self._flaws, self._rng = flaws, rng
        self._last: str | None = None

    def reply(self, hint: str) -> str:
        """The next reply; a repeated one is repeated letter by letter."""
        if self._last is not None and self._rng.random() < self._flaws.insist:
            return self._last
        while True:
            value = self._truth
            if self._rng.random() >= self._right:
                slips = self._flaws.slips
                value += self._rng.choices(list(slips), weights=list(slips.values()))[0]
            value = abs(value)
            text = str(value) if self._rng.random() < self._flaws.no_tag else f"<answer>{value}</answer>"
            if text != self._last:
                self._last = text
                return text


class Guesser:
    """The flawed assistant on one number-guessing game."""

    def __init__(self, task: Task, flaws: Flaws, rng: random.Random) -> None:
        self._low, self._high = int(task.payload["low"]), int(task.payload["high"])
        self._range = (self._low, self._high)
        self._flaws, self._rng = flaws, rng
        self._last: int | None = None

    def reply(self, hint: str) -> str:
        """The next guess, from the last one and what was said to it."""
        rng = self._rng
        if self._last is not None:
            if "low" in hint:
                self._low = max(self._low, self._last + 1)
            elif "high" in hint:
                self._high = min(self._high, self._last - 1)
            if rng.random() < self._flaws.insist:
                return f"<answer>{self._last}</answer>"
        if self._last is not None and rng.random() < self._flaws.near:
            guess = self._last + (1 if "low" in hint else -1)
        elif rng.random() < self._flaws.heed:
            guess = rng.randint(self._low, self._high)
        else:
            guess = rng.randint(*self._range)
        self._last = guess
        return f"<answer>{guess}</answer>"


KNOWING = Flaws(right=dict.fromkeys(Flaws().right, 1.0), insist=0.0, no_tag=0.0, near=0.0, heed=1.0, guess_share=0.1)


def conversations(seed: int, flaws: Flaws, *, first_turn_share: float = 0.0) -> Iterator[list[Message]]:
    """Endless conversations on training-split problems only.

    Args:
        seed: decides all of them.
        flaws: what the assistant does.
        first_turn_share: chance that a conversation is cut after its first reply, whatever that reply was.
    """
    rng = random.Random(f"corpus/{seed}")
    game = Guess()
    guesses = game.all_tasks("train")
    with asyncio.Runner() as runner:
        while True:
            yield from runner.run(_play_many(256, rng, flaws, game, guesses, first_turn_share))


async def _play_many(
    count: int, rng: random.Random, flaws: Flaws, game: Guess, guesses: list[Task], first_turn_share: float
) -> list[list[Message]]:
    arithmetic = Arithmetic()
    played: list[list[Message]] = []
    while len(played) < count:
        environment: Environment
        assistant: Calculator | Guesser
        if rng.random() < flaws.guess_share:
            task = rng.choice(guesses)
            environment, assistant = game.start(task), Guesser(task, flaws, rng)
        else:
            task = problem(rng.choice(arithmetic.kinds), arithmetic.digits, rng)
            if task.split != "train":
                continue
            environment, assistant = arithmetic.start(task), Calculator(task, flaws, rng)
        played.append(await _play(environment, assistant, rng.random() < first_turn_share))
    return played


async def _play(environment: Environment, assistant: Calculator | Guesser, cut: bool) -> list[Message]:
    messages, hint = await open_episode(environment), ""
    while True:
        reply = assistant.reply(hint)
        messages.append({"role": "assistant", "content": reply})
        step = await environment.step(reply)
        if step.done or cut:
            return messages
        messages.extend(step.messages)
        hint = step.messages[0]["content"]
