"""Servers on loopback for the tests of ``openai``: a real policy behind one, and a proxy that injects faults."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from drift.policies.base import Sampling
from drift.policies.hf import HFPolicy
from drift.types import Completion

CONTEXT = 256


class SmallSeeds(HFPolicy):
    """Sampled with seeds of 31 bits, as servers are asked to."""

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        return await super().complete(prompt_ids, sampling=sampling, seed=seed % 2**31)


def ample(seconds: float) -> float:
    """A deadline for one request, from the time that all conversations took: a busy machine is not to miss it."""
    return max(2.0, seconds)


class LoopbackServer:
    """HTTP on a free port of 127.0.0.1, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.keys: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _end(self) -> None:
        self._server.close()
        held = asyncio.all_tasks() - {asyncio.current_task()}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
            self.keys.add(fields.get("authorization", ""))
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            await self.respond(head.split(" ", 2)[1], body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    @staticmethod
    def packed(status: int, body: bytes, more: str = "") -> bytes:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}"
        return head.encode() + b"Connection: close\r\n\r\n" + body


class AnsweringServer(LoopbackServer):
    """Answers every request for a reply with what ``answer`` makes of it and of how many came before.

    An answer is a message's text, a message, a whole body, raw bytes, or a tuple of status, body and further headers.
    The list of models is ``models``, or an answer of that kind.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], Any], models: Any = ("m",), owner: str = "x") -> None:
        super().__init__()
        self._answer, self._models, self._owner = answer, models, owner
        self.requests: list[dict[str, Any]] = []

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path.endswith("/models"):
            found = self._models
            if isinstance(found, tuple) and isinstance(found[0], str):
                found = {"data": [{"id": name, "object": "model", "owned_by": self._owner} for name in found]}
        else:
            self.requests.append(json.loads(body))
            found = self._answer(self.requests[-1], len(self.requests) - 1)
        status, content, more = (*found, "")[:3] if isinstance(found, tuple) else (200, found, "")
        if isinstance(content, str):
            content = {"role": "assistant", "content": content}
        if isinstance(content, dict) and "role" in content:
            content = {"choices": [{"index": 0, "finish_reason": "stop", "message": content}]}
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        writer.write(self.packed(status, raw, more))
        await writer.drain()


class PolicyServer(LoopbackServer):
    """A real policy behind the part of vLLM's interface that ``openai`` uses; ``change`` may alter its replies."""

    def __init__(self, policy: HFPolicy, change: Callable[[dict[str, Any]], Any] = lambda reply: reply) -> None:
        super().__init__()
        self._policy, self._change = policy, change
        self.seeds: list[int] = []
        self.requests: list[dict[str, Any]] = []

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path.endswith("/models"):
            entry = {"id": "served", "object": "model", "created": 0, "owned_by": "x", "max_model_len": CONTEXT}
            writer.write(self.packed(200, json.dumps({"object": "list", "data": [entry]}).encode()))
        else:
            request = json.loads(body)
            self.requests.append(request)
            self.seeds.append(request["seed"])
            sampling = Sampling(
                temperature=request["temperature"],
                top_p=request["top_p"],
                max_new_tokens=request["max_tokens"],
                stop=tuple(request.get("stop") or ()),
            )
            chat = path.endswith("/chat/completions")
            prompt = self._policy.chat.first(request["messages"]) if chat else tuple(request["prompt"])
            if len(prompt) + sampling.max_new_tokens > CONTEXT:
                error = {"error": {"message": f"The maximum context length is {CONTEXT} tokens.", "code": 400}}
                writer.write(self.packed(400, json.dumps(error).encode()))
                return await writer.drain()
            reply = await self._policy.complete(prompt, sampling=sampling, seed=request["seed"])
            choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish_reason}
            if chat:
                choice["message"] = {"role": "assistant", "content": reply.text}
            else:
                choice["text"] = reply.text
                choice["token_ids"], choice["prompt_token_ids"] = list(reply.token_ids), request["prompt"]
                choice["logprobs"] = {"token_logprobs": list(reply.logprobs or ())}
            found = self._change({"id": "c", "object": "text_completion", "choices": [choice]})
            writer.write(self.packed(200, json.dumps(found).encode()))
        await writer.drain()
        return None


class FaultProxy(LoopbackServer):
    """Passes completions on to ``port`` and spoils a share of them: each kind in turn, when ``seed`` says so.

    A slow reply comes a byte at a time, and takes many times ``deadline``.
    """

    KINDS = ("disconnected", "http_500", "http_429", "truncated", "slow")
    COUNTED_AS: ClassVar = {"truncated": "broken_reply", "slow": "timeout"}

    def __init__(self, port: int, share: float, seed: int = 0, deadline: float = 1.0) -> None:
        super().__init__()
        self._upstream, self._share, self._random = port, share, random.Random(seed)
        self._pause = deadline / 20
        self.injected: Counter[str] = Counter()

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        completion = path.endswith("/completions")
        if not completion or self._random.random() >= self._share:
            writer.write(await self._passed_on(path, body))
            await writer.drain()
            return
        kind = self.KINDS[self.injected.total() % len(self.KINDS)]
        self.injected[self.COUNTED_AS.get(kind, kind)] += 1
        spoil: dict[str, Callable[[], Awaitable[None]]] = {
            "slow": lambda: self._slowly(path, body, writer),
            "truncated": lambda: self._truncated(path, body, writer),
        }
        if kind in spoil:
            await spoil[kind]()
        elif kind.startswith("http_"):
            writer.write(self.packed(int(kind[5:]), b'{"error": {"message": "injected"}}', "Retry-After: 0\r\n"))
            await writer.drain()

    async def _passed_on(self, path: str, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        method = "POST" if body else "GET"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        found = await reader.read(-1)
        writer.close()
        return found

    async def _truncated(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        whole = (await self._passed_on(path, body)).partition(b"\r\n\r\n")[2]
        writer.write(self.packed(200, whole[: len(whole) // 2]))
        await writer.drain()

    async def _slowly(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in await self._passed_on(path, body):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(self._pause)


@contextmanager
def vllm_server(model: Path, *arguments: str, log: Any = None, patience: float, **variables: str) -> Iterator[int]:
    """The port of a vLLM of its own environment that serves ``model`` as ``served``; skips where there is none."""
    python = Path(os.environ.get("DRIFT_VLLM_PYTHON", ".venv-vllm/bin/python"))
    if not python.exists():
        pytest.skip("no vLLM environment; make test-vllm makes one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "served", "--dtype", "float32"]
    # On a CPU, vLLM 0.32 can't take back a seeded draw for a prompt of which it has read only a part.
    command += ["--no-enable-chunked-prefill", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    environment.pop("OMP_NUM_THREADS", None)
    child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + patience
        while time.monotonic() < end and child.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield port
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
