"""OpenEnv environments: played over the connection that their servers offer to every client."""

from __future__ import annotations

import asyncio
import functools
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from drift.environments.adapters.base import ActionEnvironment, ActionEpisode, as_text, load, name_with_hash
from drift.environments.answers import parse_whole_number
from drift.errors import ConfigError, require
from drift.types import Task

ACTION, NUMBER = "{action}", "{number}"


@dataclass(frozen=True, kw_only=True)
class OpenEnv(ActionEnvironment):
    """An OpenEnv server as a conversation partner (extra ``openenv``); each episode is a session of its own.

    A reward is given per step, as the server gives it (none counts as 0); the episode is over when the server says
    ``done``, or at ``max_turns``.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        environment: a name for the tasks' ids, which must not depend on where the server happens to run.
        payload: the action that is sent, with ``{action}`` where the text of the action goes and ``{number}`` where
            it goes as a whole number. If it is empty, the one field that the server's schema requires gets the action.
        observation: which part of an observation is shown, a path of keys and indices joined by dots, such as
            ``messages.-1.content``; if it is empty, all of it.
        reset: further arguments of ``reset``.
        seed_argument: the argument of ``reset`` that the task's seed is given as.
        sessions: the most sessions open at once; the server allows ``max_concurrent_envs`` of them, often 1. Further
            episodes wait.
        deadline_s: how long the server may take for one answer, in seconds.
        max_turns: T, the most replies in an episode; one that cannot be read counts as well.
        action: where in a reply the action stands: in its last ``<answer>…</answer>`` (``answer``), where
            ``pattern`` last matches (``pattern``), or the whole reply (``text``).
        pattern: regular expression whose first group, or whole match, is the action; it should take linear time.
        success_reward: an episode that the environment ends with a step of at least this reward is a success.
        opening: the first message, ``{observation}`` standing for the environment's first one.
        feedback: every later message, ``{observation}`` and ``{reward}`` standing for what came of the action.
        format_feedback: what is said to a reply without a readable action; the environment is then not stepped.
        seeds: reset seeds are whole numbers below this.
    """

    url: str
    environment: str
    payload: dict[str, Any] = field(default_factory=dict)
    observation: str = ""
    reset: dict[str, Any] = field(default_factory=dict)
    seed_argument: str = "seed"
    sessions: int = 1
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "environment"
        parts = urlsplit(self.url)
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None,
            f"{where}.url",
            # What stands before an @ may be a password.
            self.url.rpartition("@")[2],
            "an http or https address without a user name",
        )
        require(bool(self.environment), f"{where}.environment", self.environment, "a name for the tasks' ids")
        require(bool(self.seed_argument), f"{where}.seed_argument", self.seed_argument, "an argument of reset")
        require(self.sessions >= 1, f"{where}.sessions", self.sessions, "a whole number ≥ 1")
        require(self.deadline_s > 0, f"{where}.deadline_s", self.deadline_s, "seconds > 0")
        require(
            not self.payload or any(mark in json.dumps(self.payload) for mark in (ACTION, NUMBER)),
            f"{where}.payload",
            self.payload,
            "a mapping that holds {action} or {number}",
        )
        load("openenv", "openenv")

    def name(self) -> str:
        """The environment's name, and a hash of the reset's arguments if there are any."""
        return name_with_hash(self.environment, self.reset)

    def start(self, task: Task) -> OpenEnvEpisode:
        """A fresh episode of ``task``."""
        return OpenEnvEpisode(self, int(task.payload["seed"]))


@functools.lru_cache(maxsize=16)
def _only_field(url: str, deadline_s: float) -> dict[str, Any]:
    """An action with the one field that the schema at ``url`` requires."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/schema", timeout=deadline_s) as answer:
            schema = json.load(answer)["action"]
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"environment.url: {url}/schema can't be read: {error}. Is the server up?") from error
    required = schema.get("required", [])
    kinds = {"string": ACTION, "integer": NUMBER}
    kind = schema["properties"][required[0]].get("type") if len(required) == 1 else None
    if kind not in kinds:
        raise ConfigError(
            f"environment.payload: an action at {url} has the required fields {required}; which of them a "
            "reply goes into can't be guessed. Give it, for example {tool_name: submit, arguments: {text: '{action}'}}."
        )
    return {required[0]: kinds[kind]}


def fill(template: Any, action: str) -> Any:
    """``template`` with ``action`` in the places marked for it.

    Raises:
        ValueError: a number is wanted, and the action is none.
    """
    if isinstance(template, dict):
        return {key: fill(value, action) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [fill(value, action) for value in template]
    if template == NUMBER:
        number = parse_whole_number(action)
        if number is None:
            raise ValueError(f"{action!r} is no whole number")
        return number
    return template.replace(ACTION, action) if isinstance(template, str) else template


# Each event loop has slots of its own: a semaphore belongs to the loop that first waits for it.
_SLOTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], asyncio.Semaphore]] = WeakKeyDictionary()


def _slots(url: str, sessions: int) -> asyncio.Semaphore:
    mine = _SLOTS.setdefault(asyncio.get_running_loop(), {})
    return mine.setdefault((url, sessions), asyncio.Semaphore(sessions))


class OpenEnvEpisode(ActionEpisode):
    """One conversation over one session."""

    _settings: OpenEnv

    def __init__(self, settings: OpenEnv, seed: int) -> None:
        super().__init__(settings)
        self._seed = seed
        self._template: dict[str, Any] = {}
        self._slot: asyncio.Semaphore | None = None
        self._client: Any = None

    async def reset(self) -> str:
        """Open a session once there is room for it, and reset the environment."""
        settings = self._settings
        self._template = settings.payload or await asyncio.to_thread(_only_field, settings.url, settings.deadline_s)
        slot = _slots(settings.url, settings.sessions)
        await slot.acquire()
        self._slot = slot
        # Its import takes seconds, which other conversations should not wait for.
        client = await asyncio.to_thread(getattr, load("openenv", "openenv"), "GenericEnvClient")
        self._client = client(
            base_url=settings.url,
            connect_timeout_s=settings.deadline_s,
            message_timeout_s=settings.deadline_s,
            mode="simulation",
        )
        await self._client.connect()
        result = await self._client.reset(**{**settings.reset, settings.seed_argument: self._seed})
        return as_text(result.observation, settings.observation)

    def action(self, text: str) -> tuple[Any, str] | None:
        """``text`` in the payload."""
        try:
            return fill(self._template, text), text
        except ValueError:
            return None

    async def take(self, action: Any) -> tuple[str, float, bool]:
        """Send the action; no reward counts as 0."""
        result = await self._client.step(action)
        reward = 0.0 if result.reward is None else float(result.reward)
        return as_text(result.observation, self._settings.observation), reward, bool(result.done)

    async def aclose(self) -> None:
        """End the session."""
        try:
            if self._client is not None:
                await self._client.close()
        finally:
            if self._slot is not None:
                self._slot.release()
                self._slot = None
