"""A server that speaks OpenAI's interface: asked many things at once, again where it fails for a reason that passes."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from drift.errors import PolicyError, require
from drift.policies.base import ContextExceeded
from drift.secrets import HIDDEN, refuse_secrets, scrubbed
from drift.types import Completion

LONGEST_WAIT_SECONDS = 60.0
# Status codes after which the same request may succeed.
_PASSING = frozenset({408, 409, 425, 429})
# What servers say, in their code or in words, of a prompt that is too long.
_TOO_LONG = ("context_length_exceeded", "context length", "context size", "exceed_context", "context window")


class BrokenReply(Exception):
    """A reply that is JSON and yet not a completion."""


class Server:
    """One server, its key and what went wrong with it.

    Args:
        url: its address, ``/v1`` included.
        concurrency: the most requests in flight.
        deadline: seconds that one attempt may take in all.
        retries: how often one request is sent again.
        key_env: environment variable that holds the key. The key is written nowhere.

    Attributes:
        counts: requests that failed and were sent again, by kind.
    """

    def __init__(self, url: str, *, concurrency: int, deadline: float, retries: int, key_env: str) -> None:
        where = "policy.settings"
        require(concurrency >= 1, f"{where}.concurrency", concurrency, "a whole number ≥ 1")
        require(deadline > 0, f"{where}.deadline", deadline, "seconds above 0")
        require(retries >= 0, f"{where}.retries", retries, "a whole number ≥ 0")
        refuse_secrets(url, f"{where}.url")
        self.url = url
        self.counts: Counter[str] = Counter()
        self._concurrency, self._deadline, self._retries = concurrency, deadline, retries
        self._key = os.environ.get(key_env, "") or "none"
        self._client: Any = None

    def look_up(self, model: str) -> int | None:
        """The longest context of ``model``, where the server tells it; raises where it does not serve ``model``."""
        library = _library()
        client = library.OpenAI(base_url=self.url, api_key=self._key, max_retries=2, timeout=30.0)
        try:
            served = {entry.id: entry for entry in client.models.list().data}
        except (library.OpenAIError, ValueError) as error:
            raise PolicyError(
                f"no server that speaks OpenAI's interface at {self.url}: {self._clean(str(error))}. "
                "Start it, or give its address as policy.settings.url (with /v1)."
            ) from None
        finally:
            client.close()
        if model not in served:
            raise PolicyError(
                f"the server at {self.url} serves {', '.join(sorted(served)) or 'no model'}, not {model!r}. "
                "Give the name under which it serves the model."
            )
        length = getattr(served[model], "max_model_len", None)
        return int(length) if length else None

    async def ask(self, endpoint: str, request: Mapping[str, Any], read: Callable[[Any], Completion]) -> Completion:
        """Send one request until it succeeds.

        Args:
            endpoint: ``completions`` or ``chat.completions``.
            request: what the endpoint takes.
            read: makes a completion of the reply's JSON, or raises ``BrokenReply``.

        Raises:
            ContextExceeded: the server says that the prompt is too long.
            PolicyError: the server refuses, or fails more often than allowed.
        """
        if self._client is None:
            self._client = _library().AsyncOpenAI(base_url=self.url, api_key=self._key, max_retries=0)
            self._slots = asyncio.Semaphore(self._concurrency)
        async with self._slots:
            create = self._client.with_raw_response
            for part in endpoint.split("."):
                create = getattr(create, part)
            for attempt in range(self._retries + 1):
                fault, pause = "", 0.0
                try:
                    async with asyncio.timeout(self._deadline):
                        raw = await create.create(**request)
                        return read(json.loads(raw.text))
                except PolicyError:
                    raise
                except _library().APIStatusError as error:
                    if error.status_code < 500 and error.status_code not in _PASSING:
                        raise self._refused(error) from None
                    fault, pause = f"http_{error.status_code}", _asked_to_wait(error)
                except (TimeoutError, _library().APITimeoutError):
                    fault = "timeout"
                except _library().APIConnectionError:
                    fault = "disconnected"
                except (ValueError, BrokenReply):
                    fault = "broken_reply"
                self.counts[fault] += 1
                if attempt < self._retries:
                    growing = min(LONGEST_WAIT_SECONDS, 0.25 * 2**attempt) * random.uniform(0.5, 1.5)
                    await asyncio.sleep(max(pause, growing))
        raise PolicyError(
            f"the server at {self.url} failed {self._retries + 1} times for one request, the last time with {fault}. "
            "Look at the server's log, then run the same command again: it goes on where it was."
        )

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _refused(self, error: Any) -> PolicyError:
        said = f"{self._clean(str(error.message))} {getattr(error, 'code', '')}".casefold()
        kind = ContextExceeded if any(sign in said for sign in _TOO_LONG) else PolicyError
        return kind(
            f"the server at {self.url} refuses a request with status {error.status_code}: "
            f"{self._clean(str(error.message))}. Mend the settings, then run the same command again."
        )

    def _clean(self, text: str) -> str:
        """A server's words for an error message: short, and without the key should it repeat it."""
        # A server may repeat it in part or quoted; what no error message needs is left out.
        return scrubbed(" ".join(text.replace(self._key, HIDDEN).split()))[:300].rstrip(".")


def _library() -> Any:
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
