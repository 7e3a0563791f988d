import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drift.errors import ConfigError, PolicyError
from drift.policies import DEFAULT_MODEL
from drift.policies.background import BackgroundPolicy
from drift.policies.base import Sampling
from drift.policies.hf import HFPolicy
from drift.policies.scripted import ScriptedPolicy
from drift.types import Completion, Message
from drift.verifiers.judge import Judge

from .servers import LoopbackServer

SHORT = Sampling(max_new_tokens=8)


def saying(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


class ScoreServer(LoopbackServer):
    """A server whose model is the default one by name, says one score, and fails now and then."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        super().__init__()
        self._ids = AutoTokenizer.from_pretrained(DEFAULT_MODEL)("<score>6</score>", add_special_tokens=False)[
            "input_ids"
        ]
        self.asked = 0

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        status, reply = 200, {}
        if path.endswith("/models"):
            reply = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}
        else:
            self.asked += 1
            if self.asked % 4 == 0:
                status = 503
            choice = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": self._ids, "logprobs": None}
            reply = {"id": "c", "object": "text_completion", "choices": [choice]}
        writer.write(self.packed(status, json.dumps(reply).encode()))
        await writer.drain()


def test_a_judge_behind_a_server_serves_every_loop_and_thread() -> None:
    pytest.importorskip("openai")
    with ScoreServer() as server:
        judge = Judge(policy="openai:m", policy_settings={"url": server.url, "tokenizer": "default"})
        # Connections belong to a loop: each of these has one of its own, and some have none.
        scores = [asyncio.run(judge.verify_async(f"text {n}", "")).score for n in range(4)]
        scores += [judge.verify(f"more {n}", "").score for n in range(4)]
        with ThreadPoolExecutor(4) as threads:
            scores += threads.map(lambda n: judge.verify(f"again {n}", "").score, range(8))
        asyncio.run(judge.aclose())
        scores.append(judge.verify("after closing", "").score)
        asyncio.run(judge.aclose())
    assert scores == [6.0] * 17
    assert judge.counts == {"calls": 17, "policy_http_503": server.asked - 17}
    assert server.asked > 17


def test_what_a_model_says_is_what_it_says_when_asked_directly(tiny_model: Path) -> None:
    background = BackgroundPolicy(str(tiny_model), {"batch_size": 4}, where="x")
    direct = HFPolicy(str(tiny_model))
    texts = [f"{n} + {n}?" for n in range(12)]
    sampling = Sampling(max_new_tokens=6)

    async def directly(text: str, seed: int) -> Completion:
        return await direct.complete(direct.chat.first(saying(text)), sampling=sampling, seed=seed)

    asked = [background.ask(saying(text), sampling=sampling, seed=n) for n, text in enumerate(texts)]
    found = [one.result(60) for one in asked]
    for n, (text, reply) in enumerate(zip(texts, found, strict=True)):
        assert reply is not None and reply.token_ids == asyncio.run(directly(text, n)).token_ids
    assert background.policy.fingerprint == direct.fingerprint
    assert background.ask(saying("long " * 80), sampling=sampling, seed=0).result(60) is None
    asyncio.run(background.aclose())


def test_an_error_reaches_who_asked_and_nobody_else() -> None:
    class Moody(ScriptedPolicy):
        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            if seed == 3:
                raise PolicyError("not this one")
            return await super().complete(prompt_ids, sampling=sampling, seed=seed)

    background = BackgroundPolicy("scripted:x", {}, where="x")
    background._policy = Moody(["fine"])
    asked = [background.ask(saying("?"), sampling=SHORT, seed=n) for n in range(6)]
    with pytest.raises(PolicyError, match="not this one"):
        asked[3].result(10)
    said = [one.result(10) for n, one in enumerate(asked) if n != 3]
    assert [one.text for one in said if one] == ["fine"] * 5
    asyncio.run(background.aclose())


def test_a_question_that_is_no_longer_wanted_ends_and_closing_ends_the_rest() -> None:
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    class Endless(ScriptedPolicy):
        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            begun.release()
            try:
                await asyncio.sleep(600)
            finally:
                ended.release()
            raise AssertionError

    background = BackgroundPolicy("scripted:endless", {}, where="x")
    background._policy = Endless(["x"])

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.wrap_future(background.ask(saying("?"), sampling=SHORT, seed=0))

    asyncio.run(give_up())
    assert begun.acquire(timeout=10) and ended.acquire(timeout=10)
    background.ask(saying("?"), sampling=SHORT, seed=1)
    assert begun.acquire(timeout=10)
    assert "drift-scripted:endless" in {thread.name for thread in threading.enumerate()}
    asyncio.run(asyncio.wait_for(background.aclose(), 10))
    assert ended.acquire(timeout=10)
    assert "drift-scripted:endless" not in {thread.name for thread in threading.enumerate()}
    asyncio.run(background.aclose())


def test_a_kind_of_policy_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"unknown policy 'scriptd' in judge.policy 'scriptd:x'"):
        BackgroundPolicy("scriptd:x", {}, where="judge.policy")
    with pytest.raises(ConfigError, match=r"judge.policy: got ''"):
        BackgroundPolicy("", {}, where="judge.policy")
    background = BackgroundPolicy("scripted:x", {"rpelies": 1}, where="x")
    with pytest.raises(ConfigError, match="unknown setting 'rpelies'"):
        background.ask(saying("?"), sampling=SHORT, seed=0).result(10)
