"""Environments of the verifiers library (0.4 and later): its tasks, turn control and rewards, our turn loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from drift.environments.adapters.base import clean, digest, load
from drift.environments.answers import extract_answer
from drift.environments.base import SPLITS, split_of
from drift.errors import ConfigError, require
from drift.types import Message, Role, Step, Task

ANSWERS = ("answer", "text")


@dataclass(frozen=True, kw_only=True)
class Verifiers:
    """An environment of the verifiers library with one agent, which the policy plays (extra ``verifiers``).

    The environment's own control flow says what the policy hears next and when the conversation is over. The reward
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
            it (``text``). The environment always gets the whole reply.
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
        where = "environment"
        require(self.max_turns >= 1, f"{where}.max_turns", self.max_turns, "a whole number ≥ 1")
        require(self.answer in ANSWERS, f"{where}.answer", self.answer, f"one of {', '.join(ANSWERS)}")
        require(self.pool >= 1, f"{where}.pool", self.pool, "a whole number ≥ 1")
        require("taskset" not in self.environment, f"{where}.environment", self.environment, "settings but taskset's")
        digest([self.arguments, self.environment])
        self.loaded()

    def loaded(self) -> Any:
        """The library's environment; raises ``ConfigError`` if it can't be loaded, or not be played by one policy."""
        _library()
        return _loaded(json.dumps({**self.environment, "taskset": {**self.arguments, "id": self.id}}, sort_keys=True))

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct tasks of the taskset; which split one is in depends on its content alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        rows = self._read()
        usable = [task_id for task_id in rows if split_of(task_id) == split]
        if count > len(usable):
            raise ConfigError(
                f"{self.id} has {len(usable)} {split} tasks; {count} were asked for. Ask for at most {len(usable)}, "
                "or raise environment.pool if the taskset is endless."
            )
        drawn = random.Random(f"verifiers/{split}/{seed}").sample(usable, count)
        return [
            Task(id=at, group_id=at, split=split, payload=rows[at].data.model_dump(mode="json", exclude_none=True))
            for at in drawn
        ]

    def start(self, task: Task) -> VerifiersEpisode:
        """A fresh episode of ``task``."""
        rows = self._read()
        if task.id not in rows:
            raise ConfigError(
                f"{self.id} has no task {task.id!r}. Did it or its settings change? Draw the tasks again."
            )
        return VerifiersEpisode(self, rows[task.id])

    def _read(self) -> dict[str, Any]:
        return _rows(self.loaded(), self.pool)


def _library(part: str = "") -> Any:
    return load(f"verifiers.v1.{part}" if part else "verifiers.v1", "verifiers")


@functools.lru_cache(maxsize=8)
def _loaded(configuration: str) -> Any:
    library = _library()
    wanted = json.loads(configuration)
    name = wanted["taskset"]["id"]
    try:
        environment = library.load_environment(library.resolve_env_config(wanted))
    except Exception as error:
        raise ConfigError(
            f"environment.settings: verifiers can't load {name!r}: {type(error).__name__}: {error} "
            "Install the package that has it, or fix its settings."
        ) from error
    agents = _library("configs.agent").agent_config_fields(environment.config)
    task_type, taskset = type(environment.taskset).task_type(), environment.taskset
    lacking = {
        f"it has the agents {', '.join(agents)}, and a policy can only be one": len(agents) != 1,
        "its tasks have tools": bool(taskset.toolsets(taskset.config) or task_type.toolsets(taskset.config.task)),
        "it starts shared resources of its own": type(environment).start is not library.Env.start,
    }
    for reason, holds in lacking.items():
        if holds:
            raise ConfigError(f"environment.id: {name!r} can't be played here: {reason}.")
    return environment


@functools.lru_cache(maxsize=8)
def _rows(environment: Any, pool: int) -> dict[str, Any]:
    """The library's tasks by id, which is a hash of their content, whatever their place in the taskset."""
    library = _library()
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
        self._requests: asyncio.Queue[ReplyRequest] = asyncio.Queue()
        self._request: ReplyRequest | None = None
        self._running: asyncio.Task[Any] | None = None

    async def opening(self) -> list[Message]:
        """What the environment says to the policy first."""
        self._running = asyncio.create_task(self._run())
        self._request = await self._next()
        if self._request is None:
            raise ValueError("the environment ended the conversation before the policy could speak")
        return self._request.messages

    async def step(self, reply: str) -> Step:
        """Give ``reply`` to the environment; the reward comes when it ends."""
        assert self._request is not None and self._running is not None
        answer = extract_answer(reply) if self._settings.answer == "answer" else reply.strip()
        self._request.reply.set_result(clean(reply))
        self._request = await self._next()
        if self._request is not None:
            messages = tuple(self._request.messages)
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

    async def _next(self) -> ReplyRequest | None:
        """The environment's next request for a reply; ``None`` when it has ended. What it raised is raised here."""
        assert self._running is not None
        asked = asyncio.create_task(self._requests.get())
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
        library = _library()
        environment, task, played = self._settings.loaded(), self._task, []

        def make_agent(name: str, config: Any) -> PolicyAgent:
            played.append(PolicyAgent(name, config, self._requests, self._settings.max_turns))
            return played[-1]

        agents = library.Agents(environment.config, make_agent)
        await environment.setup(agents)
        await environment.run(task, agents)
        trace = played[0].trace
        if trace is None:
            raise ValueError("the environment ended without a conversation with the policy")
        episode = library.Episode(env=library.EnvInfo(id=environment.config.env_id), task=_about(task))
        # Set and not passed, so that the environment judges the trace itself and no validated copy.
        episode.traces = [trace]
        await environment.finalize(task, episode)
        return trace


def _about(task: Any) -> Any:
    return _library().TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)


@dataclass(frozen=True, kw_only=True)
class ReplyRequest:
    """The environment waits for a reply: what was said since the last one, and where the reply goes."""

    messages: list[Message]
    reply: asyncio.Future[str]


class PolicyAgent:
    """What an environment of the library sees as its agent: ``run(task)`` and ``interaction(task)``.

    Where the library starts a program that talks to a model server, this puts a request into ``requests`` and waits.
    The trace, the task's hooks and limits, and the rewards are the library's.

    Args:
        name: of the agent in the environment.
        config: of the agent; only its ``max_turns`` and ``runtime`` count here.
        requests: where it asks for replies.
        max_turns: the most replies.
    """

    trainable = True

    def __init__(self, name: str, config: Any, requests: asyncio.Queue[ReplyRequest], max_turns: int) -> None:
        self.name, self.config = name, config
        self.trace: Any = None
        self._task: Any = None
        self._requests = requests
        self._max_turns = max_turns if config.max_turns is None else min(max_turns, config.max_turns)
        self._library = _library()
        self._messages: list[Any] = []
        self._over = False

    async def run(self, task: Any, **options: Any) -> Any:
        """One reply to the task's prompt; returns the scored trace."""
        async with self.interaction(task, **options):
            await self.turn()
            if self.trace.stop_condition is None:
                self.trace.stop("agent_completed")
        return self.trace

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any, **options: Any) -> AsyncIterator[PolicyAgent]:
        """A conversation whose user is the environment; it is scored when the context is left.

        Raises:
            ValueError: it is the second one of an episode, or asks for resources that are not there.
        """
        if self.trace is not None:
            raise ValueError(f"the agent {self.name!r} is asked for a second conversation; an episode here is one")
        if unknown := {key for key, value in options.items() if value and key != "on_trace"}:
            raise ValueError(f"the agent {self.name!r} is asked for {', '.join(sorted(unknown))}, which is not there")
        self._task = task
        state = _library("state").state_cls(type(task))()
        agent = self._library.AgentInfo(config=self.config, name=self.name, trainable=self.trainable)
        trace = self.trace = self._library.Trace(task=_about(task), agent=agent, state=state)
        if (on_trace := options.get("on_trace")) is not None:
            on_trace(trace)
        runtimes = _library("runtimes")
        # The library's own default is a paid sandbox; nothing that the policy says is run here.
        pinned = "runtime" in self.config.model_fields_set
        runtime_config = self.config.runtime if pinned else runtimes.SubprocessConfig()
        async with runtimes.provision_runtime(runtime_config, name=trace.id, env=task.runtime_env()) as runtime:
            await task.setup(trace, runtime)
            yield self
            if trace.stop_condition is None:
                trace.stop("user_closed")
            await task.finalize(trace, runtime)
            await task.score(trace, runtime)
        trace.is_completed = trace.ok = True

    async def turn(self, message: Any = None) -> Any:
        """Say ``message`` (text, or messages), and return the policy's answer as one segment.

        Without a message the task's prompt is answered, which comes first where there is one. The segment is
        ``terminated`` when a limit or one of the task's stop conditions holds; the message is then dropped.

        Raises:
            ValueError: a message before the prompt, no message after it, or one that is not text.
            RuntimeError: the conversation is over.
        """
        if self._over:
            raise RuntimeError("the conversation is over; read the trace")
        heard = self._typed(message) if self._messages else self._opening(message)
        if await self._is_over():
            self._over = True
            return self._library.Segment(messages=[], terminated=True)
        messages = [_plain(each) for each in heard]
        request = ReplyRequest(messages=messages, reply=asyncio.get_running_loop().create_future())
        await self._requests.put(request)
        reply = self._library.AssistantMessage(content=await request.reply)
        self._record(heard, reply)
        return self._library.Segment(messages=[reply])

    def _opening(self, message: Any) -> list[Any]:
        data = self._task.data
        if (data.prompt is None) == (message is None):
            raise ValueError("either the task's prompt or a message opens a conversation, and not both")
        system = [self._library.SystemMessage(content=data.system_prompt)] if data.system_prompt else []
        return [*system, *self._typed(data.prompt if message is None else message)]

    def _typed(self, message: Any) -> list[Any]:
        if message is None:
            raise ValueError("there is no message to reply to")
        if isinstance(message, str):
            return [self._library.UserMessage(content=message)]
        parse = _library("dialects").parse_message
        return [parse(each) if isinstance(each, dict) else each for each in message]

    async def _is_over(self) -> bool:
        """Whether a limit is reached or a stop condition holds; checked before each reply as the library does."""
        if self.trace.num_turns >= self._max_turns:
            self.trace.stop("max_turns")
            return True
        session = _library("session")
        for stop in self._task.hooks("stop"):
            if session.hook_boundary(stop, allow_trace=True) is not self._library.Trace:
                raise ValueError(
                    f"the stop condition {stop.__name__!r} needs requests to a model server; none are made"
                )
            if await session.call_hook(stop, {self._library.Trace: self.trace}):
                self.trace.stop(stop.__name__)
                return True
        return False

    def _record(self, heard: list[Any], reply: Any) -> None:
        """Add a turn to the trace the way the library does it."""
        self._messages += heard
        pending = _library("graph").prepare_turn(self.trace, list(self._messages))
        response = self._library.Response(id="", created=0, model="", message=reply, finish_reason="stop")
        node = pending.commit(response)
        self.trace.calls.append(self._library.ModelCall(node=node, finish_reason="stop"))
        self._messages.append(reply)


def _plain(message: Any) -> Message:
    """A message of the library as ours; raises ``ValueError`` for what is no text."""
    if not isinstance(message.content, str) or getattr(message, "tool_calls", None):
        raise ValueError(f"the environment said {message!r}; the policy can be given text only")
    return {"role": cast(Role, message.role), "content": message.content or "(nothing)"}
