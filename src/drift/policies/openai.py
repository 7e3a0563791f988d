"""Models behind servers that speak OpenAI's interface: with token ids (``openai``) or text alone (``openai-chat``)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drift.chat import TemplateChat
from drift.errors import PolicyError, require
from drift.policies.base import DEFAULT_MODEL, ContextExceeded, Sampling, with_template_arguments
from drift.secrets import HIDDEN, refuse_secrets, scrubbed
from drift.types import Completion, Message

LONGEST_WAIT_SECONDS = 60.0
# Status codes after which the same request may succeed, besides 500 and above.
_TRY_AGAIN_STATUS = frozenset({408, 409, 425, 429})
# What servers say, in their code or in words, of a prompt that is too long.
_TOO_LONG = ("context_length_exceeded", "context length", "context size", "exceed_context", "context window")


class _ServerPolicy:
    """A model behind a server, asked many things at once; ``counts`` has the requests sent again, by kind of failure.

    Arguments are as in the policies below.
    """

    def __init__(self, model: str, url: str, concurrency: int, deadline: float, retries: int, key_env: str) -> None:
        where = "policy"
        require(concurrency >= 1, f"{where}.concurrency", concurrency, "a whole number ≥ 1")
        require(deadline > 0, f"{where}.deadline", deadline, "seconds above 0")
        require(retries >= 0, f"{where}.retries", retries, "a whole number ≥ 0")
        refuse_secrets(url, f"{where}.url")
        self._model, self._url = model, url
        self.counts: Counter[str] = Counter()
        self._concurrency, self._deadline, self._retries = concurrency, deadline, retries
        self._key = os.environ.get(key_env, "") or "none"
        self._client: Any = None

    def _longest_context(self) -> int | None:
        """The longest context of the model, where the server says it; raises where it does not serve the model."""
        openai = _import_openai()
        client = openai.OpenAI(base_url=self._url, api_key=self._key, max_retries=2, timeout=30.0)
        try:
            served = {entry.id: entry for entry in client.models.list().data}
        except (openai.OpenAIError, ValueError) as error:
            raise PolicyError(
                f"no server that speaks OpenAI's interface at {self._url}: {self._clean(str(error))}. "
                "Start it, or give its address as policy.url (with /v1)."
            ) from None
        finally:
            client.close()
        if self._model not in served:
            raise PolicyError(
                f"the server at {self._url} serves {', '.join(sorted(served)) or 'no model'}, not {self._model!r}. "
                "Give the name under which it serves the model."
            )
        length = getattr(served[self._model], "max_model_len", None)
        return int(length) if length else None

    async def _ask(self, path: str, request: Mapping[str, Any], read: Callable[[Any], Completion]) -> Completion:
        """Send one request until it succeeds.

        Args:
            path: of the endpoint, below the server's address.
            request: the JSON to send.
            read: makes a completion of the reply's JSON; whatever it raises but ``PolicyError`` is a broken reply.

        Raises:
            ContextExceeded: the server says that the prompt is too long.
            PolicyError: the server refuses, or fails more often than allowed.
        """
        openai = _import_openai()
        if self._client is None:
            self._client = openai.AsyncOpenAI(base_url=self._url, api_key=self._key, max_retries=0)
            self._slots = asyncio.Semaphore(self._concurrency)
        async with self._slots:
            for attempt in range(self._retries + 1):
                pause = min(LONGEST_WAIT_SECONDS, 0.25 * 2**attempt) * random.uniform(0.5, 1.5)
                try:
                    async with asyncio.timeout(self._deadline):
                        return read(await self._client.post(path, body=request, cast_to=object))
                except PolicyError:
                    raise
                except openai.APIStatusError as error:
                    if error.status_code < 500 and error.status_code not in _TRY_AGAIN_STATUS:
                        raise self._refused(error) from None
                    failure = f"http_{error.status_code}"
                    pause = max(pause, _asked_to_wait(error))
                except (TimeoutError, openai.APITimeoutError):
                    failure = "timeout"
                except openai.APIConnectionError:
                    failure = "disconnected"
                except (ValueError, LookupError, TypeError, AttributeError):
                    failure = "broken_reply"
                self.counts[failure] += 1
                if attempt < self._retries:
                    await asyncio.sleep(pause)
        raise PolicyError(
            f"the server at {self._url} failed {self._retries + 1} times for one request, the last time with "
            f"{failure}. Look at the server's log, then run the same command again: it goes on where it was."
        )

    def _fields(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """The fields that both kinds of request have."""
        return {
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "stop": list(sampling.stop) or None,
        }

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _refused(self, error: Any) -> PolicyError:
        message = self._clean(str(error.message))
        words = f"{message} {getattr(error, 'code', '')}".casefold()
        kind = ContextExceeded if any(sign in words for sign in _TOO_LONG) else PolicyError
        return kind(
            f"the server at {self._url} refuses a request with status {error.status_code}: {message}. "
            "Fix the settings, then run the same command again."
        )

    def _clean(self, text: str) -> str:
        """A server's words for an error message: short, and without the key, which it may repeat whole or in part."""
        return scrubbed(" ".join(text.replace(self._key, HIDDEN).split()))[:300].rstrip(".")


class OpenAIPolicy(_ServerPolicy):
    """Sends token ids to a server's ``/completions`` and gets token ids and log-probabilities back, as from vLLM.

    Prompts are made here with the model's own chat template, so that what is sampled is what is trained. Requests that
    fail for a reason that passes (429, 5xx, time-outs, lost connections, broken replies) are sent again with longer
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
        chat_template_kwargs: what the chat template is given beside the messages, such as {enable_thinking: false}.
        system: a system message that stands first in every conversation, before the environment's own.
        prefill: how every reply begins, such as <think>. It is read, not sampled, and so is never trained.

    Raises:
        ConfigError: the chat template knows no such argument.
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str = "",
        prefill: str = "",
    ) -> None:
        super().__init__(model, url, concurrency, deadline, retries, key_env)
        self._tokenizer = _load_tokenizer(tokenizer or model)
        template = dict(chat_template_kwargs or {})
        self.chat = TemplateChat(
            self._tokenizer, source=tokenizer or model, arguments=template, system=system, prefill=prefill
        )
        self.context_length: int | None = self._longest_context()
        facts = f"{model}|{self._tokenizer.chat_template}|{len(self._tokenizer)}"
        made = "openai-" + hashlib.sha256(facts.encode()).hexdigest()[:16]
        self.fingerprint = with_template_arguments(made, template, system, prefill)

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises ``PolicyError`` if the server refuses, or fails more often than allowed."""
        request = {
            "prompt": list(prompt_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "include_stop_str_in_output": True,
            **self._fields(sampling, seed),
        }
        return await self._ask("/completions", request, lambda reply: self._read(reply, prompt_ids))

    def _read(self, reply: Any, prompt_ids: tuple[int, ...]) -> Completion:
        choice = reply["choices"][0]
        token_ids = choice.get("token_ids")
        if token_ids is None:
            raise PolicyError(
                f"the server at {self._url} returned no token ids, which training needs. vLLM does, asked with "
                f"return_token_ids. To record text alone, give the policy as openai-chat:{self._model}."
            )
        seen = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
        if seen is not None and tuple(seen) != prompt_ids:
            raise PolicyError(
                f"the server at {self._url} changed the prompt ({len(prompt_ids)} ids sent, {len(seen)} seen). "
                "Check that policy.tokenizer belongs to the model it serves."
            )
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if logprobs is not None and len(logprobs) != len(token_ids):
            raise ValueError("not one log-probability per token")
        text, thinking = self.chat.parts(prompt_ids, token_ids)
        return Completion(
            text=text,
            thinking=thinking,
            token_ids=tuple(token_ids),
            logprobs=None if logprobs is None else tuple(map(float, logprobs)),
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
        )


class OpenAIChatPolicy(_ServerPolicy):
    """Sends messages to a server's ``/chat/completions``; the server applies its own template and returns text.

    For hosted models and servers that return no token ids: as the policy to measure, as a judge or a simulated user.
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
        super().__init__(model, url, concurrency, deadline, retries, key_env)
        self._request = dict(request or {})
        self._longest_context()
        self.fingerprint = "openai-chat-" + hashlib.sha256(repr((model, self._request)).encode()).hexdigest()[:16]

    async def reply(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises ``PolicyError`` if the server refuses, or fails more often than allowed."""
        # Servers refuse the thinking of earlier replies, or leave it out.
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        fields = {"messages": said, **self._fields(sampling, seed), **self._request}
        given = {key: value for key, value in fields.items() if value is not None}
        return await self._ask("/chat/completions", given, _read_text)


def _read_text(reply: Any) -> Completion:
    choice = reply["choices"][0]
    message = choice["message"]
    return Completion(
        thinking=message.get("reasoning_content") or message.get("reasoning") or "",
        # Half of a UTF-16 pair, which a server may send as an escape, is taken by no file and no tokenizer.
        text=re.sub("[\ud800-\udfff]", "\ufffd", message.get("content") or ""),
        token_ids=(),
        logprobs=None,
        finish_reason="length" if choice["finish_reason"] == "length" else "stop",
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


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise PolicyError(
            "policies openai and openai-chat: the openai package is missing. Run: pip install 'drift-rl[openai]'."
        ) from error
    return openai


def _asked_to_wait(error: Any) -> float:
    """Seconds that a server asks to wait before the next attempt, at most a minute."""
    try:
        return min(LONGEST_WAIT_SECONDS, max(0.0, float(error.response.headers.get("retry-after", 0))))
    except ValueError:
        return 0.0
