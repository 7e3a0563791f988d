"""A model behind any server that speaks OpenAI's chat completions: text in, text out, no token ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from drift.policies.base import Sampling
from drift.policies.openai_server import BrokenReply, Server
from drift.types import Completion, Message


class OpenAIChatPolicy:
    """Sends messages to a server's ``/chat/completions``; the server applies its own template and returns text.

    For hosted models and servers that tell no token ids: as the policy to measure, as a judge or a simulated user.
    Trajectories are marked ``text_only``, since nobody here knows which ids were sampled. ``drift import --format
    trajectories`` tokenizes them for the model that is to be trained, and its manifest says so.

    Failures are handled as in ``OpenAIPolicy``.

    Args:
        model: the name under which the server serves it.
        url: the server's address, ``/v1`` included.
        concurrency: the most requests in flight.
        deadline: seconds that one attempt may take in all.
        retries: how often one request is sent again.
        key_env: environment variable that holds the key. The key is written nowhere.
        request: further fields of each request, or other values for ours; ``null`` leaves a field out. Hosted models
            may want ``{max_tokens: null, max_completion_tokens: 512}``, or no ``temperature`` or ``seed``.

    Raises:
        PolicyError: no server there, or it does not serve ``model``.
    """

    context_length: int | None = None

    def __init__(
        self,
        model: str,
        *,
        url: str = "http://127.0.0.1:8000/v1",
        concurrency: int = 256,
        deadline: float = 600.0,
        retries: int = 8,
        key_env: str = "OPENAI_API_KEY",
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._more = model, dict(request or {})
        self._server = Server(url, concurrency=concurrency, deadline=deadline, retries=retries, key_env=key_env)
        self.counts = self._server.counts
        self._server.look_up(model)
        self.fingerprint = "openai-chat-" + hashlib.sha256(repr((model, self._more)).encode()).hexdigest()[:16]

    async def reply(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises ``PolicyError`` if the server refuses, or fails more often than allowed."""
        request: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stop": list(sampling.stop) or None,
        }
        ours = {key: value for key, value in request.items() if key not in self._more and value is not None}
        given = {key: value for key, value in self._more.items() if value is not None}
        return await self._server.ask("chat.completions", {**ours, "extra_body": given}, _read)

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        await self._server.aclose()


def _read(reply: Any) -> Completion:
    try:
        choice = reply["choices"][0]
        text, finish = choice["message"].get("content"), choice["finish_reason"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BrokenReply from error
    if not isinstance(text, str | None):
        raise BrokenReply
    return Completion(
        # Half of a UTF-16 pair, which a server may send as an escape, is taken by no file and no tokenizer.
        text=re.sub("[\ud800-\udfff]", "\ufffd", text or ""),
        token_ids=(),
        logprobs=None,
        finish_reason="length" if finish == "length" else "stop",
    )
