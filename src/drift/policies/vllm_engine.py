"""vLLM's asynchronous engine in a thread of its own. Imports vLLM, so it is itself imported where it is used."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import signal
import subprocess
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing import resource_tracker
from typing import Any

from vllm import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from drift.errors import PolicyError
from drift.policies.background import LoopThread

ATTEMPTS = 3
_START_REMEDY = (
    "Its own messages above say why. If memory is short, lower policy.gpu_memory_utilization, max_num_seqs or "
    "max_model_len, or spread the model with tensor_parallel_size."
)
# Ends the processes given to it once its standard input ends, that is when this process is gone, even if it was killed.
_END_ORPHANS = 'read -r _; kill -TERM "$@"; sleep 10; kill -KILL "$@"'


class Engine:
    """vLLM's ``AsyncLLM`` in a thread with an event loop of its own, which outlives the loops that ask it.

    Args:
        arguments: of ``AsyncEngineArgs``.
        model: its name, for messages.
        counts: where requests that failed and were sent again are counted, by kind.

    Raises:
        PolicyError: it can't start.
    """

    def __init__(self, arguments: Mapping[str, Any], model: str, counts: Counter[str]) -> None:
        # Started from a thread that blocks SIGINT, its processes inherit that: Ctrl-C is this process's to handle, and
        # the engine is shut down in order. The tracker must run before, since starting it unblocks the signal.
        resource_tracker.ensure_running()
        before = multiprocessing.active_children()
        self._model, self.counts = model, counts
        self._request_ids = itertools.count()
        self._thread = LoopThread("drift-vllm")
        try:
            self.engine: Any = self._thread.submit(_start(arguments)).result()
        # What can go wrong in its start is vLLM's, torch's and the platform's to raise.
        except Exception as error:
            self._thread.close()
            reason = " ".join(str(error).split())
            raise PolicyError(f"vLLM can't start with {model!r}: {reason}. {_START_REMEDY}") from error
        # vLLM's processes don't notice that their parent was killed, and would keep a GPU's memory for ever.
        started = [str(child.pid) for child in multiprocessing.active_children() if child not in before]
        orphan_watch = subprocess.Popen(
            ["sh", "-c", _END_ORPHANS, "sh", *started],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Neither Ctrl-C nor a signal to the parent's group may end it before the parent.
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _end, self.engine, self._thread, orphan_watch)

    async def sample(self, prompt_ids: tuple[int, ...], parameters: Any, lora: Any) -> Any:
        """One reply, as vLLM's ``CompletionOutput``, asked for from any event loop.

        Raises:
            PolicyError: the engine dies, refuses the request, or fails it ``ATTEMPTS`` times.
        """
        prompt = tokens_input(list(prompt_ids))

        async def last_output(engine: Any) -> Any:
            async for output in engine.generate(prompt, parameters, str(next(self._request_ids)), lora_request=lora):
                last = output.outputs[0]
            return last

        for _ in range(ATTEMPTS):
            try:
                reply = await self.run(last_output)
            except EngineGenerateError:
                self.counts["engine_fault"] += 1
                continue
            except EngineDeadError as error:
                raise PolicyError(
                    f"the vLLM engine of {self._model!r} died while it worked. {_START_REMEDY} "
                    "Then run the same command again: it goes on where it was."
                ) from error
            except (VLLMClientError, ValueError) as error:
                raise PolicyError(
                    f"vLLM refuses a prompt of {len(prompt_ids)} ids for {self._model!r}: {str(error).rstrip('.')}. "
                    "Fix the settings."
                ) from error
            if reply.finish_reason in ("stop", "length"):
                return reply
            self.counts[str(reply.finish_reason)] += 1
        raise PolicyError(
            f"vLLM gave up {ATTEMPTS} times on one request ({dict(self.counts)}). Look at what it wrote above, "
            "then run the same command again: it goes on where it was."
        )

    async def run(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """What ``ask(engine)`` gives in the engine's loop."""

        async def asked() -> Any:
            return await ask(self.engine)

        return await asyncio.wrap_future(self._thread.submit(asked()))

    def close(self) -> None:
        """End the engine's processes and the thread."""
        self._finalizer()


async def _start(arguments: Mapping[str, Any]) -> Any:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _end(engine: Any, thread: LoopThread, orphan_watch: subprocess.Popen[bytes]) -> None:
    async def shut_down() -> None:
        engine.shutdown()

    thread.submit(shut_down()).result(60)
    thread.close()
    orphan_watch.kill()
    orphan_watch.communicate()
