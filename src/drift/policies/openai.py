"""Models behind servers that speak OpenAI's interface: with token ids (``openai``) or text alone (``openai-chat``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from drift.chat import TemplateChat
from drift.errors import PolicyError
from drift.policies.base import DEFAULT_MODEL, ContextExceeded, Sampling, with_template_arguments
from drift.policies.replies import chat_completion, checked_for_filter, finish_reason, first_choice, ids_of
from drift.policies.server import Server
from drift.types import Completion, Message


class OpenAIPolicy(Server):
    """Sends token ids to a server's ``/completions`` and gets token ids and log-probabilities back, as from vLLM.

    Prompts are made here with the model's own chat template, so that what is sampled is what is trained. Samplers that
    the server may have switched on (top_k, min_p, penalties) are switched off by name. Requests that fail for a reason
    that passes (429, 5xx, time-outs, lost connections, broken replies) are sent again with longer pauses, with the same
    seed, and counted in ``counts``; after that, or where one prompt is refused, its conversation fails and the others
    go on. The server decides how it batches, so the same seed need not give the same reply twice.

    Args:
        model: the name under which the server serves it.
        url: the server's address, ``/v1`` included.
        tokenizer: folder or hub id of the model's tokenizer; empty takes ``model``.
        concurrency: the most requests in flight.
        deadline: seconds that one attempt may take in all.
        retries: how often one request is sent again.
        key_env: environment variable that holds the key. The key is written nowhere.
        request: further fields of each request, or other values for ours; ``null`` leaves a field out.
        max_failed: share of the conversations that may fail for want of a reply before the run stops.
        chat_template_kwargs: what the chat template is given beside the messages, such as {enable_thinking: false}.
        system: a system message that stands first in every conversation, before the environment's own.
        prefill: how every reply begins, such as <think>. It is read, not sampled, and so is never trained.

    Raises:
        ConfigError: the chat template knows no such argument.
        PolicyError: no server there, it refuses the key, or the tokenizer can't be used.
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
        request: Mapping[str, Any] | None = None,
        max_failed: float = 0.05,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str = "",
        prefill: str = "",
    ) -> None:
        super().__init__(model, url, concurrency, deadline, retries, key_env, request, max_failed)
        self._tokenizer = _load_tokenizer(tokenizer or model)
        template = dict(chat_template_kwargs or {})
        self.chat = TemplateChat(
            self._tokenizer, source=tokenizer or model, arguments=template, system=system, prefill=prefill
        )
        self.context_length: int | None = self.longest_context
        facts = f"{model}|{self._tokenizer.chat_template}|{len(self._tokenizer)}"
        facts += repr(self._request) if self._request else ""
        made = "openai-" + hashlib.sha256(facts.encode()).hexdigest()[:16]
        self.fingerprint = with_template_arguments(made, template, system, prefill)

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises what ``Server.ask`` raises, and ``PolicyError`` where no ids come back."""
        # llama.cpp's server tells ids with log-probabilities alone, and takes 0 for none.
        told = {"logprobs": 1, "return_token_ids": True}
        request = {"prompt": list(prompt_ids), **told, **self.fields.of(sampling, seed)}
        return await self.ask("/completions", request, lambda reply: self._read(reply, prompt_ids))

    def _read(self, reply: Any, prompt_ids: tuple[int, ...]) -> Completion:
        sampled = ids_of(reply, prompt_ids)
        if sampled is None:
            raise PolicyError(
                f"the server at {self._url} returned no token ids, which training needs. vLLM does, asked with "
                "return_token_ids, and llama.cpp's server, asked with logprobs. To record text alone, give the policy "
                f"as openai-chat:{self._model}."
            )
        ids, logprobs = sampled
        text, thinking = self.chat.parts(prompt_ids, ids)
        completion = Completion(
            text=text,
            thinking=thinking,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=finish_reason(first_choice(reply)),
        )
        return checked_for_filter(completion)


class OpenAIChatPolicy(Server):
    """Sends messages to a server's ``/chat/completions``; the server applies its own template and returns text.

    For hosted models and servers that return no token ids: as the policy to measure, as a judge or a simulated user.
    Trajectories are marked ``text_only``, since nobody here knows which ids were sampled. ``drift import --format
    trajectories`` tokenizes them for the model that is to be trained, and its manifest says so.

    Failures are handled as in ``OpenAIPolicy``. Stop strings stay in the reply where the server can leave them there,
    as vLLM and SGLang do.

    Args:
        model: the name under which the server serves it.
        url: the server's address, ``/v1`` included.
        concurrency: the most requests in flight.
        deadline: seconds that one attempt may take in all.
        retries: how often one request is sent again.
        key_env: environment variable that holds the key. The key is written nowhere.
        request: further fields of each request, or other values for ours; ``null`` leaves a field out, such as a
            ``temperature`` that a hosted model refuses.
        max_failed: share of the conversations that may fail for want of a reply before the run stops.

    Raises:
        PolicyError: no server there, or it refuses the key.
    """

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
        max_failed: float = 0.05,
    ) -> None:
        super().__init__(model, url, concurrency, deadline, retries, key_env, request, max_failed)
        self.fingerprint = "openai-chat-" + hashlib.sha256(repr((model, self._request)).encode()).hexdigest()[:16]

    async def reply(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises what ``Server.ask`` raises, and ``ContextExceeded`` after an empty reply."""
        if any(message["role"] == "assistant" and not message["content"] for message in messages):
            raise ContextExceeded("a reply was empty, and many servers refuse a conversation with an empty message")
        # Servers refuse the thinking of earlier replies, or leave it out.
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        return await self.ask(
            "/chat/completions", {"messages": said, **self.fields.of(sampling, seed)}, chat_completion
        )


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(DEFAULT_MODEL if source == "default" else source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        from drift.policies.stored import wants_code

        raise wants_code(source, error) or PolicyError(
            f"the tokenizer {source!r} can't be loaded: {error}. "
            "Give the folder or hub id of the served model's tokenizer as policy.tokenizer."
        ) from error
