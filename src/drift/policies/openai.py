"""A model behind any server that speaks OpenAI's completions and takes and returns token ids, as vLLM does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections import Counter
from typing import Any

from drift.chat import Chat, TemplateChat
from drift.errors import PolicyError, require
from drift.policies.base import DEFAULT_MODEL, Sampling
from drift.types import Completion

LONGEST_WAIT_SECONDS = 60.0
# Status codes after which the same request may succeed.
_PASSING = frozenset({408, 409, 425, 429})


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
        where = "policy.settings"
        require(concurrency >= 1, f"{where}.concurrency", concurrency, "a whole number ≥ 1")
        require(deadline > 0, f"{where}.deadline", deadline, "seconds above 0")
        require(retries >= 0, f"{where}.retries", retries, "a whole number ≥ 0")
        self._model, self._url = model, url
        self._concurrency, self._deadline, self._retries = concurrency, deadline, retries
        self._key = os.environ.get(key_env, "") or "none"
        self.counts: Counter[str] = Counter()
        self._tokenizer = _load_tokenizer(tokenizer or model)
        self.chat: Chat = TemplateChat(self._tokenizer, source=tokenizer or model)
        self.context_length: int | None = self._look_up()
        facts = f"{model}|{self._tokenizer.chat_template}|{len(self._tokenizer)}"
        self.fingerprint = "openai-" + hashlib.sha256(facts.encode()).hexdigest()[:16]
        self._client: Any = None

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply; raises ``PolicyError`` if the server refuses, or fails more often than allowed."""
        if self._client is None:
            self._client = _library().AsyncOpenAI(base_url=self._url, api_key=self._key, max_retries=0)
            self._slots = asyncio.Semaphore(self._concurrency)
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
        async with self._slots:
            for attempt in range(self._retries + 1):
                fault, pause = "", 0.0
                try:
                    async with asyncio.timeout(self._deadline):
                        raw = await self._client.completions.with_raw_response.create(**request)
                        return self._read(json.loads(raw.text), prompt_ids)
                except PolicyError:
                    raise
                except _library().APIStatusError as error:
                    if error.status_code < 500 and error.status_code not in _PASSING:
                        raise PolicyError(self._refused(error)) from None
                    fault, pause = f"http_{error.status_code}", _asked_to_wait(error)
                except (TimeoutError, _library().APITimeoutError):
                    fault = "timeout"
                except _library().APIConnectionError:
                    fault = "disconnected"
                except (ValueError, _BrokenReply):
                    fault = "broken_reply"
                self.counts[fault] += 1
                if attempt < self._retries:
                    growing = min(LONGEST_WAIT_SECONDS, 0.25 * 2**attempt) * random.uniform(0.5, 1.5)
                    await asyncio.sleep(max(pause, growing))
        raise PolicyError(
            f"the server at {self._url} failed {self._retries + 1} times for one request, the last time with {fault}. "
            "Look at the server's log, then run the same command again: it goes on where it was."
        )

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _look_up(self) -> int | None:
        """The longest context of the model that the server serves; raises where there is no such server or model."""
        library = _library()
        client = library.OpenAI(base_url=self._url, api_key=self._key, max_retries=2, timeout=30.0)
        try:
            served = {entry.id: entry for entry in client.models.list().data}
        except (library.OpenAIError, ValueError) as error:
            raise PolicyError(
                f"no server that speaks OpenAI's interface at {self._url}: {self._clean(str(error))}. "
                "Start it, or give its address as policy.settings.url (with /v1)."
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

    def _read(self, reply: Any, prompt_ids: tuple[int, ...]) -> Completion:
        try:
            choice = reply["choices"][0]
            token_ids, finish = choice.get("token_ids"), choice["finish_reason"]
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
            seen = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _BrokenReply from error
        if token_ids is None:
            raise PolicyError(
                f"the server at {self._url} returns no token ids, which training needs. "
                "vLLM does, asked with return_token_ids; use it, or log the conversations and use drift import."
            )
        if seen is not None and tuple(seen) != prompt_ids:
            raise PolicyError(
                f"the server at {self._url} changed the prompt ({len(prompt_ids)} ids sent, {len(seen)} seen). "
                "Check that policy.settings.tokenizer belongs to the model it serves."
            )
        if logprobs is not None and len(logprobs) != len(token_ids):
            raise _BrokenReply
        return Completion(
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            token_ids=tuple(token_ids),
            logprobs=None if logprobs is None else tuple(map(float, logprobs)),
            finish_reason="length" if finish == "length" else "stop",
        )

    def _refused(self, error: Any) -> str:
        return (
            f"the server at {self._url} refuses a request with status {error.status_code}: "
            f"{self._clean(str(error.message))}. Mend the settings, then run the same command again."
        )

    def _clean(self, text: str) -> str:
        """A server's words for an error message: short, and without the key should it repeat it."""
        return " ".join(text.replace(self._key, "***").split())[:300].rstrip(".")


class _BrokenReply(Exception):
    """A reply that is JSON and yet not a completion."""


def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise PolicyError(
            "policy openai: the openai package is missing. Run: pip install 'drift-rl[openai]'."
        ) from error
    return openai


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(DEFAULT_MODEL if source == "default" else source)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(
            f"the tokenizer {source!r} can't be loaded: {error}. "
            "Give the folder or hub id of the served model's tokenizer as policy.settings.tokenizer."
        ) from error


def _asked_to_wait(error: Any) -> float:
    """Seconds that a server asks to wait before the next attempt, at most a minute."""
    try:
        return min(LONGEST_WAIT_SECONDS, max(0.0, float(error.response.headers.get("retry-after", 0))))
    except ValueError:
        return 0.0
