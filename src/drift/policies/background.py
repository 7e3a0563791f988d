"""A model that judges or plays the user: asked from any thread and any event loop, answered on a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from drift.errors import require, unknown_name
from drift.policies.base import AnyPolicy, ContextExceeded, Sampling, next_reply
from drift.types import Completion, Message


class BackgroundPolicy:
    """A policy with an event loop of its own.

    A policy's connections and queues belong to the loop that it was first awaited in, while a verifier is called from
    threads, from one loop after another, and from none. It is loaded when first asked.

    Args:
        model: what ``make_policy`` takes: ``default``, a folder, a hub id or ``NAME:ARGUMENT``.
        settings: settings of that kind of policy.
        where: the setting that named it, for messages.

    Raises:
        ConfigError: no model, or a kind of policy that doesn't exist.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], *, where: str) -> None:
        from drift.policies import POLICIES

        require(bool(model), where, model, "a model: default, a folder, a hub id, or openai:NAME")
        kind, colon, _ = model.partition(":")
        if colon and kind not in POLICIES.names():
            raise unknown_name("policy", kind, POLICIES.names(), where=where)
        self._model, self._settings = model if colon else f"hf:{model}", dict(settings)
        self._policy: AnyPolicy | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Held while the model loads, which takes long; the other one never is.
        self._loading, self._starting = threading.Lock(), threading.Lock()

    @property
    def policy(self) -> AnyPolicy:
        """The policy, loaded if it is not; raises ``PolicyError`` or ``ConfigError`` if it can't be."""
        from drift.policies import make_policy

        with self._loading:
            if self._policy is None:
                self._policy = make_policy(self._model, self._settings)
            return self._policy

    @property
    def counts(self) -> Counter[str]:
        """What went wrong on the way to the policy and was tried again."""
        return Counter(getattr(self._policy, "counts", None) or {})

    def ask(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Future[Completion | None]:
        """The reply to ``messages``, or ``None`` if they don't fit the model's context together with a reply.

        Wait for it with ``result()``, or in an event loop with ``asyncio.wrap_future``.
        """
        return asyncio.run_coroutine_threadsafe(self._ask(messages, sampling, seed), self._running_loop())

    async def _ask(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Completion | None:
        try:
            return (await next_reply(self.policy, messages, None, sampling=sampling, seed=seed))[1]
        except ContextExceeded:
            return None

    async def aclose(self) -> None:
        """Close the policy's connections and end the loop; a later question starts another."""
        with self._starting:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        close = getattr(self._policy, "aclose", None)
        if close is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(close(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name=f"drift-{self._model[:40]}", daemon=True
                )
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run ``loop`` until it is stopped, then end what was still under way."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()
