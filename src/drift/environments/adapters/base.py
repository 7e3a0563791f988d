"""What adapters share: settings, tasks from seeds, actions out of replies, observations as text."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from drift.environments.answers import extract_answer
from drift.environments.base import SPLITS, split_of
from drift.errors import ConfigError, require
from drift.types import Message, Step, Task

ACTIONS = ("answer", "text", "pattern")
# Nobody's action is longer, and a user's pattern may be slow on long text.
LONGEST_REPLY = 20_000
# A terminal's colour around text: the only way in which some environments show where the agent is.
_COLOURED = re.compile("\x1b\\[[0-9;]+m([^\x1b]*)\x1b\\[0?m")
_CONTROL = re.compile("\x1b\\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, kw_only=True)
class ActionEnvironment(ABC):
    """Settings of an environment that takes actions, which subclasses describe, and its tasks.

    A task is a seed for the environment's reset. Whether a seed is for training or for testing depends on the
    environment and the seed alone. An environment that starts alike under all seeds has one problem, though, and then
    the splits share it: look at its openings first.
    """

    max_turns: int = 10
    action: str = "answer"
    pattern: str = ""
    success_reward: float = 1.0
    opening: str = "{observation}"
    feedback: str = "{observation}"
    format_feedback: str = "No action found. Please reply with <answer>action</answer>."
    seeds: int = 1_000_000

    def __post_init__(self) -> None:
        where = "environment"
        require(self.max_turns >= 1, f"{where}.max_turns", self.max_turns, "a whole number ≥ 1")
        require(self.action in ACTIONS, f"{where}.action", self.action, f"one of {', '.join(ACTIONS)}")
        expected = "a regular expression with action: pattern, and nothing otherwise"
        require((self.action == "pattern") == bool(self.pattern), f"{where}.pattern", self.pattern, expected)
        require(self.seeds >= 1, f"{where}.seeds", self.seeds, "a whole number ≥ 1")
        for name in ("opening", "feedback"):
            text = getattr(self, name)
            require("{observation}" in text, f"{where}.{name}", text, "a text that holds {observation}")
        require(bool(self.format_feedback), f"{where}.format_feedback", self.format_feedback, "a text")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"{where}.pattern: {self.pattern!r} is no regular expression: {error}.") from error

    @abstractmethod
    def name(self) -> str:
        """What the problems of this environment are called, other than by seed; it depends on what decides them."""

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct reset seeds; a seed's split depends on it and the environment alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        name = self.name()
        # Four times as many as are needed when one in five is a test seed, and half as many as that for training.
        drawn = random.Random(f"{name}/{split}/{seed}").sample(range(self.seeds), min(self.seeds, 20 * count + 200))
        usable = [at for at in drawn if split_of(name, at) == split]
        if len(usable) < count:
            raise ConfigError(
                f"{name} has {len(usable)} {split} tasks among {self.seeds} seeds; {count} were asked for. "
                "Ask for fewer tasks, or raise environment.seeds."
            )
        return [
            Task(id=f"{name}-{at}", group_id=f"{name}-{at}", split=split, payload={"seed": at}) for at in usable[:count]
        ]

    def read_action(self, reply: str) -> str | None:
        """The action in ``reply``, stripped; ``None`` if there is none."""
        reply = reply[-LONGEST_REPLY:]
        if self.action == "answer":
            return extract_answer(reply) or None
        if self.action == "pattern":
            matches = list(re.compile(self.pattern, re.DOTALL).finditer(reply))
            if not matches:
                return None
            reply = matches[-1].group(1 if matches[-1].re.groups else 0) or ""
        return reply.strip() or None


class ActionEpisode(ABC):
    """One conversation with an environment that takes actions; a subclass resets and steps the environment."""

    def __init__(self, settings: ActionEnvironment) -> None:
        self._settings = settings
        self._turn = 0

    @abstractmethod
    async def reset(self) -> str:
        """Start the environment, and return what it shows."""

    @abstractmethod
    def action(self, text: str) -> tuple[Any, str] | None:
        """What to step the environment with, and what it is called; ``None`` if ``text`` is no action here."""

    @abstractmethod
    async def take(self, action: Any) -> tuple[str, float, bool]:
        """Step the environment, and return what it shows, the reward, and whether it ended."""

    async def opening(self) -> list[Message]:
        """What the environment shows at its reset, as one user message."""
        # Replaced and not formatted: an observation may hold braces of its own.
        return [{"role": "user", "content": self._settings.opening.replace("{observation}", await self.reset())}]

    async def step(self, reply: str) -> Step:
        """Take the action in ``reply``, and say what came of it; without one the environment is not stepped.

        Raises:
            ValueError: the reward is no finite number.
        """
        settings = self._settings
        self._turn += 1
        last = self._turn >= settings.max_turns
        text = settings.read_action(reply)
        found = None if text is None else self.action(clean(text))
        if found is None:
            messages: tuple[Message, ...] = () if last else ({"role": "user", "content": settings.format_feedback},)
            return Step(messages=messages, reward=0.0, done=last, success=False, answer=None)
        action, answer = found
        observation, reward, ended = await self.take(action)
        if not math.isfinite(reward):
            raise ValueError(f"the environment gave the reward {reward}, expected a finite number")
        done = ended or last
        feedback = settings.feedback.replace("{reward}", f"{reward:g}").replace("{observation}", observation)
        return Step(
            messages=() if done else ({"role": "user", "content": feedback},),
            reward=reward,
            done=done,
            success=ended and reward >= settings.success_reward,
            answer=answer,
            # What an environment says at the end is no part of the conversation, but worth keeping.
            info={"observation": observation} if done else {},
        )


def load(module: str, extra: str) -> ModuleType:
    """Import an optional library; raises ``ConfigError`` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the environment {extra!r} needs the library {module.split('.')[0]!r}, which can't be imported ({error}). "
            f"Install it with: pip install 'drift-rl[{extra}]'."
        ) from error


def name_with_hash(base: str, decides: Mapping[str, Any]) -> str:
    """``base``, and a hash of what else decides its problems, where there is anything."""
    return f"{base}-{digest(decides)}" if decides else base


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of a JSON value; raises ``ConfigError`` for anything else."""
    try:
        text = json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"environment.settings: {value!r} is not JSON: {error}. Give plain values.") from error
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def clean(text: str) -> str:
    """``text`` without lone surrogates, which no library of the other side can encode."""
    return text.encode("utf-8", "replace").decode()


def part_of(value: Any, path: str) -> Any:
    """What lies at ``path`` (keys and indices joined by dots) in nested mappings and sequences.

    Raises:
        ValueError: nothing lies there.
    """
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"environment.observation: there is no {path!r} in the observation {value!r}") from error
    return value


def as_text(value: Any, path: str = "") -> str:
    """An observation, or what lies at ``path`` in it, as text: a string as it is, but coloured parts in brackets;
    anything else as JSON.
    """
    value = part_of(value, path) if path else value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
    text = _CONTROL.sub("", _COLOURED.sub(r"[\1]", clean(text)))
    # A message can't be empty.
    return text or "(nothing)"


def _plain(value: Any) -> Any:
    """NumPy's arrays and scalars as Python values; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
