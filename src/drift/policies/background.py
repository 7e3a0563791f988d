"""An event loop on a thread of its own, and a model behind one, asked from any thread and any event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from drift.policies.base import AnyPolicy, ContextExceeded, Sampling, UnusableReply, next_reply
from drift.types import Completion, Message

Result = TypeVar("Result")


class LoopThread:
    """An event loop on a thread of its own, which outlives the loops of those who ask it.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start ``work`` in the loop. Wait for it with ``result()``, or elsewhere with ``asyncio.wrap_future``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what is still under way, and end the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    # The runner cancels what is left when the loop is stopped, and closes it.
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()


class BackgroundPolicy:
    """A policy with an event loop of its own.

    A policy's connections and queues belong to the loop that it was first awaited in, while a verifier is called from
    threads, from one loop after another, and from none. It is loaded when first asked.

    Args:
        model: what ``make_policy`` takes: ``default``, a folder, a hub id, ``NAME:ARGUMENT`` or ``module:attribute``.
        settings: settings of that kind of policy.
        where: the setting that named it, for messages.

    Raises:
        ConfigError: no model, or a kind of policy that doesn't exist.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], *, where: str) -> None:
        from drift.policies import kind_of

        kind_of(model, settings.get("engine"), where=where)
        self._model, self._settings = model, dict(settings)
        self._policy: AnyPolicy | None = None
        self._thread: LoopThread | None = None
        # The first is locked while the model loads, which takes long; the second never is for long.
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
        with self._starting:
            if self._thread is None:
                self._thread = LoopThread(f"drift-{self._model[:40]}")
            return self._thread.submit(self._ask(messages, sampling, seed))

    async def _ask(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Completion | None:
        try:
            return (await next_reply(self.policy, messages, None, sampling=sampling, seed=seed))[1]
        except ContextExceeded:
            return None
        except UnusableReply as failure:
            return failure.completion

    async def aclose(self) -> None:
        """Close the policy's connections and end the loop; a later question starts another."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        close = getattr(self._policy, "aclose", None)
        if close is not None:
            await asyncio.wrap_future(thread.submit(close()))
        await asyncio.to_thread(thread.close)
