"""Environments with the API of gymnasium, whose observations can be given as text and actions read from it."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from drift.environments.adapters.base import ActionEnvironment, ActionEpisode, as_text, load, name_with_hash
from drift.environments.answers import parse_whole_number
from drift.errors import ConfigError, require
from drift.registry import load_attribute
from drift.types import Task


@dataclass(frozen=True, kw_only=True)
class Gymnasium(ActionEnvironment):
    """An environment of gymnasium, or of a library with its API, as a conversation (extra ``gymnasium``).

    Actions are words or numbers where the action space is ``Discrete``, text where it is ``Text`` or where there is
    none. A reward is given per step, as the environment gives it; the episode is over when it is terminated,
    truncated, or at ``max_turns``.

    Args:
        id: a registered id such as ``FrozenLake-v1``, or ``module:function`` that makes an environment, such as
            ``gem:make``.
        arguments: keyword arguments of its making.
        reset: the ``options`` of ``reset``.
        actions: names of the actions of a ``Discrete`` space, in order; numbers are understood in any case.
        observation: what is shown of an observation: all of it (empty), what lies at a path such as ``mission``,
            or what ``render()`` returns (``render``).
        threads: how many threads the environments run in. An episode stays in one of them. Give 1 for environments
            that draw from random numbers of the whole process.
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

    id: str
    arguments: dict[str, Any] = field(default_factory=dict)
    reset: dict[str, Any] = field(default_factory=dict)
    actions: tuple[str, ...] = ()
    observation: str = ""
    threads: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threads >= 1, "environment.threads", self.threads, "a whole number ≥ 1")
        names = [action.casefold() for action in self.actions]
        require(len(set(names)) == len(names), "environment.actions", self.actions, "names that differ")
        self.name()
        self.maker()

    def name(self) -> str:
        """The id, and a hash of the arguments and options if there are any."""
        decides = {"arguments": self.arguments, "reset": self.reset} if self.arguments or self.reset else {}
        return name_with_hash(self.id.replace("/", "-").replace(":", "-"), decides)

    def maker(self) -> Callable[[], Any]:
        """A function that makes one environment; raises ``ConfigError`` if there is no such environment."""
        if ":" in self.id:
            return functools.partial(load_attribute(self.id, "environment.id"), **self.arguments)
        gymnasium = load("gymnasium", "gymnasium")
        try:
            gymnasium.spec(self.id)
        except gymnasium.error.Error as error:
            raise ConfigError(
                f"environment.id: {error} Give a registered id, or module:function for one that is not."
            ) from error
        return functools.partial(gymnasium.make, self.id, **self.arguments)

    def start(self, task: Task) -> GymnasiumEpisode:
        """A fresh episode of ``task``."""
        return GymnasiumEpisode(self, int(task.payload["seed"]))


@functools.lru_cache(maxsize=4)
def _threads(count: int) -> itertools.cycle[ThreadPoolExecutor]:
    """Threads of one worker each, so that what is begun in one of them stays there."""
    return itertools.cycle(
        [ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"drift-gymnasium-{at}") for at in range(count)]
    )


class GymnasiumEpisode(ActionEpisode):
    """One conversation with one environment, which is made, stepped and closed in one thread."""

    _settings: Gymnasium

    def __init__(self, settings: Gymnasium, seed: int) -> None:
        super().__init__(settings)
        self._seed = seed
        self._thread = next(_threads(settings.threads))
        self._environment: Any = None

    async def reset(self) -> str:
        """Make the environment and reset it."""
        return await self._in_thread(self._reset)  # type: ignore[no-any-return]

    async def take(self, action: Any) -> tuple[str, float, bool]:
        """Step the environment."""
        return await self._in_thread(self._take, action)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close the environment, after whatever its thread is still doing for it: an opening may have been given up."""
        await self._in_thread(self._close)

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    def _reset(self) -> str:
        self._environment = self._settings.maker()()
        options = {"options": self._settings.reset} if self._settings.reset else {}
        observation, _ = self._environment.reset(seed=self._seed, **options)
        return self._shown(observation)

    def _take(self, action: Any) -> tuple[str, float, bool]:
        observation, reward, terminated, truncated, _ = self._environment.step(action)
        return self._shown(observation), float(reward), bool(terminated or truncated)

    def _close(self) -> None:
        if self._environment is not None:
            getattr(self._environment, "close", lambda: None)()

    def _shown(self, observation: Any) -> str:
        if self._settings.observation == "render":
            return as_text(self._environment.render())
        return as_text(observation, self._settings.observation)

    def action(self, text: str) -> tuple[Any, str] | None:
        """An action of the environment's space, and its name."""
        space = getattr(self._environment, "action_space", None)
        if space is None:
            return text, text
        kind = type(space).__name__
        if kind == "Text":
            return (text, text) if space.contains(text) else None
        if kind != "Discrete":
            raise ConfigError(
                f"{self._settings.id} has the action space {space}; a reply can be an action of a Discrete or a Text "
                "space. Wrap the environment, and give the function that makes it as environment.id."
            )
        names, first = [name.casefold() for name in self._settings.actions], int(space.start)
        number = first + names.index(text.casefold()) if text.casefold() in names else parse_whole_number(text)
        if number is None or not first <= number < first + int(space.n):
            return None
        return number, names[number - first] if number - first < len(names) else str(number)
