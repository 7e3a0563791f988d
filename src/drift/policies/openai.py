"""A model behind any server that speaks OpenAI's completions and takes and returns token ids, as vLLM does."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from drift.chat import Chat, TemplateChat
from drift.errors import PolicyError
from drift.policies.base import DEFAULT_MODEL, Sampling
from drift.policies.openai_server import BrokenReply, Server
from drift.types import Completion


class OpenAIPolicy:
    """Sends token ids to a server's ``/completions`` and gets token ids and log-probabilities back.

    Prompts are made here with the model's own chat template, so that what is sampled is what is trained. Requests that
    fail for a reason that passes (429, 5xx, time-outs, lost connections, broken replies) are sent again with growing
    pauses, with the same seed, and counted in ``counts``. The server decides how it batches, so the same seed need
    not give the same reply twice.

    Args:
        model: the name under which the server serves it.
        url: the server's address, ``/v1`` included.
        tokenizer: folder or hub id of the model's tokenizer; empty takes ``model``.
        concurrency: the most requests in flight.
        deadline: seconds that one attempt may take in all.
        retries: how often one request is sent again.
        key_env: environment variable that holds the key. The key is written nowhere.

    Raises:
        PolicyError: no server there, it does not serve ``model``, or the tokenizer can't be used.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str = "http://127.0.0.1:8000/v1",
        tokenizer: str = "",
        concurrency: int = 256,
        deadline: float = 600.0,
        retries: int = 8,
        key_env: str = "OPENAI_API_KEY",
    ) -> None:
        self._model = model
        self._server = Server(url, concurrency=concurrency, deadline=deadline, retries=retries, key_env=key_env)
        self.counts = self._server.counts
        self._tokenizer = _load_tokenizer(tokenizer or model)
        self.chat: Chat = TemplateChat(self._tokenizer, source=tokenizer or model)
        self.context_length: int | None = self._server.look_up(model)
        facts = f"{model}|{self._tokenizer.chat_template}|{len(self._tokenizer)}"
        self.fingerprint = "openai-" + hashlib.sha256(facts.encode()).hexdigest()[:16]

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises ``PolicyError`` if the server refuses, or fails more often than allowed."""
        request: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stop": list(sampling.stop) or None,
            "logprobs": 0,
            "extra_body": {"return_token_ids": True, "include_stop_str_in_output": True},
        }
        return await self._server.ask("completions", request, functools.partial(self._read, prompt_ids=prompt_ids))

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        await self._server.aclose()

    def _read(self, reply: Any, prompt_ids: tuple[int, ...]) -> Completion:
        try:
            choice = reply["choices"][0]
            token_ids, finish = choice.get("token_ids"), choice["finish_reason"]
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
            seen = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise BrokenReply from error
        if token_ids is None:
            raise PolicyError(
                f"the server at {self._server.url} returns no token ids, which training needs. vLLM does, asked with "
                f"return_token_ids. To record text alone, give the policy as openai-chat:{self._model}."
            )
        if seen is not None and tuple(seen) != prompt_ids:
            raise PolicyError(
                f"the server at {self._server.url} changed the prompt ({len(prompt_ids)} ids sent, {len(seen)} seen). "
                "Check that policy.settings.tokenizer belongs to the model it serves."
            )
        if logprobs is not None and len(logprobs) != len(token_ids):
            raise BrokenReply
        return Completion(
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            token_ids=tuple(token_ids),
            logprobs=None if logprobs is None else tuple(map(float, logprobs)),
            finish_reason="length" if finish == "length" else "stop",
        )


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(DEFAULT_MODEL if source == "default" else source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        from drift.policies.hf import wants_code

        raise wants_code(source, error) or PolicyError(
            f"the tokenizer {source!r} can't be loaded: {error}. "
            "Give the folder or hub id of the served model's tokenizer as policy.settings.tokenizer."
        ) from error
