"""Coroutines run to their end from plain code, also where an event loop is already running, as in a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """What ``work`` returns; raises what it raises.

    Within a running event loop, which can't run a second one, ``work`` gets a loop on a thread of its own. Ctrl-C
    cancels it there as it does here: it ends in order before ``KeyboardInterrupt`` is raised.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # A signal may come before it has begun.
        with contextlib.closing(work), asyncio.Runner(loop_factory=_whole_loop) as runner:
            return runner.run(work)
    return _on_a_thread(work)


def _whole_loop() -> asyncio.AbstractEventLoop:
    """A new loop, made on a thread of its own: a signal interrupts the main thread, and half a loop can't be closed."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.new_event_loop).result()


def _on_a_thread(work: Coroutine[Any, Any, Result]) -> Result:
    loop = _whole_loop()
    task: asyncio.Task[Result] = loop.create_task(work)
    done: Future[None] = Future()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(_ended(task))
        finally:
            done.set_result(None)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="drift-loop", daemon=True).start()
    try:
        done.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        done.result()
        raise
    return task.result()


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
