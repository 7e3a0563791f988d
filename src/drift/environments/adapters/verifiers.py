"""Environments of the verifiers library (0.4 and later): its tasks, turn control and rewards, our turn loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drift.environments.adapters.base import TEST_SHARE, clean, digest, load
from drift.environments.adapters.seat import Call, Seat
from drift.environments.answers import extract_answer
from drift.environments.base import SPLITS, stable_unit
from drift.errors import ConfigError, require
from drift.types import Message, Step, Task

ANSWERS = ("answer", "text")


@dataclass(frozen=True, kw_only=True)
class Verifiers:
    """An environment of the verifiers library with one agent, which the policy plays (extra ``verifiers``).

    The environment's own control flow says what the policy is told next and when the conversation is over. The reward
    is the weighted sum of the library's rewards; all of it is given with the last reply, when they are computed. A
    conversation that outgrows the policy's context ends before that and has no reward.

    The tasks' split depends on their content alone. Tasks of an endless taskset are its first ``pool`` ones.

    Args:
        id: of the taskset: one of the library's own, such as ``textarena``, or an installed package's module.
        arguments: the taskset's configuration, such as ``{game: Hangman-v0}``.
        environment: the environment's configuration, where it is not the taskset's own or has settings.
        max_turns: T, the most replies in an episode.
        success_reward: a conversation whose reward is at least this is a success.
        answer: what of a reply is compared to count repeats: its last ``<answer>…</answer>`` (``answer``), or all of
            it (``text``). The environment is always given the whole reply.
        pool: how many tasks of an endless taskset are read.
    """

    id: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    max_turns: int = 10
    success_reward: float = 1.0
    answer: str = "text"
    pool: int = 1000

    def __post_init__(self) -> None:
        where = "environment.settings"
        require(self.max_turns >= 1, f"{where}.max_turns", self.max_turns, "a whole number ≥ 1")
        require(self.answer in ANSWERS, f"{where}.answer", self.answer, f"one of {', '.join(ANSWERS)}")
        require(self.pool >= 1, f"{where}.pool", self.pool, "a whole number ≥ 1")
        require("taskset" not in self.environment, f"{where}.environment", self.environment, "settings but taskset's")
        digest([self.arguments, self.environment])
        self.loaded()

    def loaded(self) -> Any:
        """The library's environment; raises ``ConfigError`` if it can't be loaded, or not be played by one policy."""
        load("verifiers.v1", "verifiers")
        return _loaded(json.dumps({**self.environment, "taskset": {**self.arguments, "id": self.id}}, sort_keys=True))

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct tasks of the taskset; which split one is in depends on its content alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        rows = self._read()
        fitting = [task_id for task_id in rows if (stable_unit(task_id) < TEST_SHARE) == (split == "test")]
        if count > len(fitting):
            raise ConfigError(
                f"{self.id} has {len(fitting)} {split} tasks; {count} were asked for. Ask for at most {len(fitting)}, "
                "or raise environment.settings.pool if the taskset is endless."
            )
        drawn = random.Random(f"verifiers/{split}/{seed}").sample(fitting, count)
        return [
            Task(id=at, group_id=at, split=split, payload=rows[at].data.model_dump(mode="json", exclude_none=True))
            for at in drawn
        ]

    def start(self, task: Task) -> VerifiersEpisode:
        """A fresh episode of ``task``."""
        rows = self._read()
        if task.id not in rows:
            raise ConfigError(f"{self.id} has no task {task.id!r} any more. Was the taskset or its settings changed?")
        return VerifiersEpisode(self, rows[task.id])

    def _read(self) -> dict[str, Any]:
        return _rows(self.loaded(), self.pool)


@functools.lru_cache(maxsize=8)
def _loaded(configuration: str) -> Any:
    library = load("verifiers.v1", "verifiers")
    wanted = json.loads(configuration)
    name = wanted["taskset"]["id"]
    try:
        environment = library.load_environment(library.resolve_env_config(wanted))
    except Exception as error:
        raise ConfigError(
            f"environment.settings: verifiers can't load {name!r}: {type(error).__name__}: {error} "
            "Install the package that has it, or mend its settings."
        ) from error
    agents = load("verifiers.v1.configs.agent", "verifiers").agent_config_fields(environment.config)
    task_type, taskset = type(environment.taskset).task_type(), environment.taskset
    lacking = {
        f"it has the agents {', '.join(agents)}, and a policy can only be one": len(agents) != 1,
        "its tasks have tools": bool(taskset.toolsets(taskset.config) or task_type.toolsets(taskset.config.task)),
        "it starts shared resources of its own": type(environment).start is not library.Env.start,
    }
    for reason, holds in lacking.items():
        if holds:
            raise ConfigError(f"environment.settings.id: {name!r} can't be played here: {reason}.")
    return environment


@functools.lru_cache(maxsize=8)
def _rows(environment: Any, pool: int) -> dict[str, Any]:
    """The library's tasks by id, which is a hash of their content, whatever their place in the taskset."""
    library = load("verifiers.v1", "verifiers")
    taskset = environment.taskset
    rows: dict[str, Any] = {}
    for task in taskset if taskset.bounded else taskset.take(pool):
        has_key = type(task).key is not library.Task.key
        content = task.key if has_key else task.data.model_dump(mode="json", exclude_none=True, exclude={"idx"})
        rows.setdefault(f"{environment.config.env_id.replace('/', '-')}-{digest(content)}", task)
    return rows


class VerifiersEpisode:
    """One conversation: the library's control flow runs as a task of the event loop, and waits for our replies."""

    def __init__(self, settings: Verifiers, task: Any) -> None:
        self._settings, self._task = settings, task
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self._call: Call | None = None
        self._running: asyncio.Task[Any] | None = None

    async def opening(self) -> list[Message]:
        """What the environment tells the policy first."""
        self._running = asyncio.create_task(self._run())
        self._call = await self._next()
        if self._call is None:
            raise ValueError("the environment ended the conversation before the policy could speak")
        return self._call.messages

    async def step(self, reply: str) -> Step:
        """Give ``reply`` to the environment; the reward comes when it ends."""
        assert self._call is not None and self._running is not None
        answer = extract_answer(reply) if self._settings.answer == "answer" else reply.strip()
        self._call.reply.set_result(clean(reply))
        self._call = await self._next()
        if self._call is not None:
            messages = tuple(self._call.messages)
            return Step(messages=messages, reward=0.0, done=False, success=False, answer=answer or None)
        trace = self._running.result()
        reward = float(trace.reward)
        if not math.isfinite(reward):
            raise ValueError(f"the rewards {trace.rewards} sum to {reward}, expected a finite number")
        info: Mapping[str, Any] = {
            "rewards": {name: each.value for name, each in trace.rewards.items() if each is not None},
            "metrics": {name: value for name, value in trace.metrics.items() if value is not None},
            "stop_condition": trace.stop_condition,
        }
        success = reward >= self._settings.success_reward
        return Step(messages=(), reward=reward, done=True, success=success, answer=answer or None, info=info)

    async def aclose(self) -> None:
        """End the environment's control flow, if it has not ended."""
        if self._running is not None and not self._running.done():
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _next(self) -> Call | None:
        """The environment's next call for a reply; ``None`` when it has ended. What it raised is raised here."""
        assert self._running is not None
        asked = asyncio.create_task(self._calls.get())
        try:
            await asyncio.wait({asked, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
        finally:
            asked.cancel()
        self._running.result()
        return None

    async def _run(self) -> Any:
        """Play the environment to its end, and return the trace of the policy's agent."""
        library = load("verifiers.v1", "verifiers")
        environment, task, seats = self._settings.loaded(), self._task, []

        def sit(name: str, config: Any) -> Seat:
            seats.append(Seat(name, config, self._calls, self._settings.max_turns))
            return seats[-1]

        agents = library.Agents(environment.config, sit)
        await environment.setup(agents)
        await environment.run(task, agents)
        trace = seats[0].trace
        if trace is None:
            raise ValueError("the environment ended without a conversation with the policy")
        about = library.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        episode = library.Episode(env=library.EnvInfo(id=environment.config.env_id), task=about)
        # Set and not passed, so that the environment judges the trace itself and no validated copy.
        episode.traces = [trace]
        await environment.finalize(task, episode)
        return trace
