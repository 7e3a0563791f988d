"""The place that the verifiers library gives an agent, taken by a policy that our own turn loop samples."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from drift.environments.adapters.base import load
from drift.types import Message, Role


@dataclass(frozen=True, kw_only=True)
class Call:
    """A reply that is wanted: what was said since the last one, and where the reply goes."""

    messages: list[Message]
    reply: asyncio.Future[str]


class Seat:
    """What an environment of the library sees as its agent: ``run(task)`` and ``interaction(task)``.

    Where the library starts a program that talks to a model server, this hands the messages to ``calls`` and waits.
    The trace, the task's hooks and limits, and the rewards are the library's.

    Args:
        name: of the agent in the environment.
        config: of the agent; only its ``max_turns`` and ``runtime`` count here.
        calls: where wanted replies are announced.
        max_turns: the most replies.
    """

    trainable = True

    def __init__(self, name: str, config: Any, calls: asyncio.Queue[Call], max_turns: int) -> None:
        self.name, self.config = name, config
        self.trace: Any = None
        self._calls = calls
        self._max_turns = max_turns if config.max_turns is None else min(max_turns, config.max_turns)

    async def run(self, task: Any, **options: Any) -> Any:
        """One reply to the task's prompt; returns the scored trace."""
        async with self.interaction(task, **options) as interaction:
            await interaction.turn()
            if interaction.trace.stop_condition is None:
                interaction.trace.stop("agent_completed")
        return interaction.trace

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any, **options: Any) -> AsyncIterator[Interaction]:
        """A conversation whose user is the environment; it is scored when the context is left.

        Raises:
            ValueError: it is the second one of an episode, or wants resources that there are not here.
        """
        if self.trace is not None:
            raise ValueError(f"the agent {self.name!r} is asked for a second conversation; an episode here is one")
        if unknown := {key for key, value in options.items() if value and key != "on_trace"}:
            raise ValueError(f"the agent {self.name!r} is asked for {', '.join(sorted(unknown))}, which it has not")
        trace = self.trace = self._trace(task)
        if (on_trace := options.get("on_trace")) is not None:
            on_trace(trace)
        runtimes = load("verifiers.v1.runtimes", "verifiers")
        # The library's own default is a paid sandbox; nothing that the policy says is run here.
        pinned = "runtime" in self.config.model_fields_set
        runtime_config = self.config.runtime if pinned else runtimes.SubprocessConfig()
        async with runtimes.provision_runtime(runtime_config, name=trace.id, env=task.runtime_env()) as runtime:
            await task.setup(trace, runtime)
            yield Interaction(task, trace, self._calls, self._max_turns)
            if trace.stop_condition is None:
                trace.stop("user_closed")
            await task.finalize(trace, runtime)
            await task.score(trace, runtime)
        trace.is_completed = trace.ok = True

    def _trace(self, task: Any) -> Any:
        library = load("verifiers.v1", "verifiers")
        about = library.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        state = load("verifiers.v1.state", "verifiers").state_cls(type(task))()
        agent = library.AgentInfo(config=self.config, name=self.name, trainable=self.trainable)
        return library.Trace(task=about, agent=agent, state=state)


class Interaction:
    """One conversation as the environment's control flow holds it."""

    def __init__(self, task: Any, trace: Any, calls: asyncio.Queue[Call], max_turns: int) -> None:
        self.trace = trace
        self._task, self._calls, self._max_turns = task, calls, max_turns
        self._library = load("verifiers.v1", "verifiers")
        self._said: list[Any] = []
        self._over = False

    async def turn(self, message: Any = None) -> Any:
        """Say ``message`` (text, or messages), and return the policy's answer as one segment.

        Without a message the task's prompt is answered, which comes first where there is one. The segment is
        ``terminated`` when a limit or one of the task's stop conditions holds; the message then goes unheard.

        Raises:
            ValueError: a message before the prompt, no message after it, or one that is not text.
            RuntimeError: the conversation is over.
        """
        if self._over:
            raise RuntimeError("the exchange is over; read interaction.trace")
        heard = self._opening(message) if not self._said else self._typed(message)
        if await self._refused():
            self._over = True
            return self._library.Segment(messages=[], terminated=True)
        call = Call(messages=[_plain(each) for each in heard], reply=asyncio.get_running_loop().create_future())
        await self._calls.put(call)
        reply = self._library.AssistantMessage(content=await call.reply)
        self._record(heard, reply)
        return self._library.Segment(messages=[reply])

    def _opening(self, message: Any) -> list[Any]:
        data = self._task.data
        if (data.prompt is None) == (message is None):
            raise ValueError("a conversation is opened by the task's prompt or by a message, and by just one of them")
        system = [self._library.SystemMessage(content=data.system_prompt)] if data.system_prompt else []
        return [*system, *self._typed(data.prompt if message is None else message)]

    def _typed(self, message: Any) -> list[Any]:
        if message is None:
            raise ValueError("nothing was said that could be answered")
        if isinstance(message, str):
            return [self._library.UserMessage(content=message)]
        parse = load("verifiers.v1.dialects", "verifiers").parse_message
        return [parse(each) if isinstance(each, dict) else each for each in message]

    async def _refused(self) -> bool:
        """Whether a limit or a stop condition holds, which is asked before each reply as the library does."""
        if self.trace.num_turns >= self._max_turns:
            self.trace.stop("max_turns")
            return True
        session = load("verifiers.v1.session", "verifiers")
        for stop in self._task.hooks("stop"):
            if session.hook_boundary(stop, allow_trace=True) is not self._library.Trace:
                raise ValueError(
                    f"the stop condition {stop.__name__!r} looks at requests, of which there are none here"
                )
            if await session.call_hook(stop, {self._library.Trace: self.trace}):
                self.trace.stop(stop.__name__)
                return True
        return False

    def _record(self, heard: list[Any], reply: Any) -> None:
        """Add a turn to the trace the way the library does it."""
        self._said += heard
        pending = load("verifiers.v1.graph", "verifiers").prepare_turn(self.trace, list(self._said))
        response = self._library.Response(id="", created=0, model="", message=reply, finish_reason="stop")
        node = pending.commit(response)
        self.trace.calls.append(self._library.ModelCall(node=node, finish_reason="stop"))
        self._said.append(reply)


def _plain(message: Any) -> Message:
    """A message of the library as ours; raises ``ValueError`` for what is no text."""
    if not isinstance(message.content, str) or getattr(message, "tool_calls", None):
        raise ValueError(f"the environment said {message!r}; only text can be told to the policy")
    return {"role": cast(Role, message.role), "content": message.content or "(nothing)"}
