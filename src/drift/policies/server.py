"""Requests to a server that speaks OpenAI's interface: sent again where that helps, counted, and given up for good."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from drift.errors import PolicyError, require
from drift.policies.base import ContextExceeded, RequestFailed
from drift.policies.replies import BrokenReply
from drift.policies.request_fields import RequestFields
from drift.policies.server_errors import ServerError, error_in_reply, plain, read_error, shortened
from drift.progress import say
from drift.secrets import HIDDEN, hide, refuse_secrets, scrubbed
from drift.types import Completion

LONGEST_PAUSE_SECONDS = 60.0
LIST_SECONDS = 30.0
# So long the first request is alone: what is wrong for every request is then refused once.
FIRST_ALONE_SECONDS = 1.0
# So many different prompts that fail with no reply to any other meanwhile: the server is away, not they are odd.
PROMPTS_IN_A_ROW = 8
# What the client's HTTP library raises where no connection comes about.
_NOBODY_THERE = frozenset({"ConnectError", "ConnectTimeout"})
_MASKED_KEY = re.compile(r"\S*(?:\*{3,}|…)\S*")


class Server:
    """A model behind a server, asked many things at once.

    ``counts`` has the requests that were sent again, by kind of failure, and the fields that were left out;
    ``usage`` the tokens that the server says it read and wrote.

    Args:
        model: the name under which the server serves it.
        url: the server's address, ``/v1`` included.
        concurrency: the most requests in flight.
        deadline: seconds that one attempt may take in all.
        retries: how often one request is sent again.
        key_env: environment variable that holds the key.
        request: further fields of each request, or other values for ours; ``None`` leaves a field out.
        max_failed: share of the conversations that may fail for want of a reply.

    Raises:
        PolicyError: no server is there, or it refuses the key.
    """

    def __init__(
        self,
        model: str,
        url: str,
        concurrency: int,
        deadline: float,
        retries: int,
        key_env: str,
        request: Mapping[str, Any] | None,
        max_failed: float,
    ) -> None:
        where = "policy"
        require(concurrency >= 1, f"{where}.concurrency", concurrency, "a whole number ≥ 1")
        require(deadline > 0, f"{where}.deadline", deadline, "seconds above 0")
        require(retries >= 0, f"{where}.retries", retries, "a whole number ≥ 0")
        require(0 <= max_failed <= 1, f"{where}.max_failed", max_failed, "a share from 0 to 1")
        refuse_secrets(url, f"{where}.url")
        refuse_secrets(request, f"{where}.request")
        self._openai = _import_openai()
        self._model, self._url, self._request, self.max_failed = model, url, dict(request or {}), max_failed
        self.counts: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self._concurrency, self._deadline, self._retries = concurrency, deadline, retries
        self._key_env, self._key = key_env, os.environ.get(key_env, "")
        hide(self._key)
        self._client: Any = None
        self._said: set[str] = set()
        self._last_reply = float("-inf")
        self._failed_prompts: set[str] = set()
        self._listed: dict[str, Mapping[str, Any]] = {}
        self._list_models()
        owner = str(next((entry.get("owned_by") for entry in self._listed.values()), "")).casefold()
        self.fields = RequestFields(model, owner, self._request)

    @property
    def longest_context(self) -> int | None:
        """The longest context of the model in tokens, where the server says it."""
        longest = self._listed.get(self._model, {}).get("max_model_len")
        return longest if isinstance(longest, int) else None

    async def ask(self, path: str, fields: Mapping[str, Any], read: Callable[[Any], Completion]) -> Completion:
        """Send one request until it succeeds.

        Args:
            path: of the endpoint, below the server's address.
            fields: the JSON to send.
            read: makes a completion of the reply's JSON; what it raises, but a ``PolicyError``, is a broken reply.

        Raises:
            ContextExceeded: the server says that the prompt is too long.
            RequestFailed: this prompt is refused, or fails more often than allowed.
            PolicyError: every request would be refused, or the server is away.
        """
        if self._client is None:
            settings: dict[str, Any] = {"base_url": self._url, "api_key": self._key or "none", "timeout": None}
            self._client = self._openai.AsyncOpenAI(**settings, max_retries=0)
            self._slots, self._answered = asyncio.Semaphore(self._concurrency), asyncio.Event()
            asyncio.get_running_loop().call_later(FIRST_ALONE_SECONDS, self._answered.set)
        else:
            await self._answered.wait()
        async with self._slots:
            begun, failed, waited = time.monotonic(), 0, 0.0
            while True:
                request = self.fields.accepted(fields)
                try:
                    outcome = await self._attempt(path, request, read)
                finally:
                    self._answered.set()
                if isinstance(outcome, Completion):
                    return outcome
                if changes := self.fields.adapt(outcome, request):
                    self.counts.update(changes)
                    self._say_once(str(changes), f"{', '.join(changes)} ({self._clean(outcome.words)}).")
                    continue
                if outcome.kind != "passing":
                    raise self._refused(outcome, fields)
                self.counts[outcome.name] += 1
                asked = outcome.wait
                if asked > max(self._deadline, LONGEST_PAUSE_SECONDS):
                    raise self._refused(outcome, fields)
                # A pause that the server asks for is no failure, unless it does so for ever.
                if asked and waited + asked <= self._deadline:
                    waited += asked
                elif failed == self._retries:
                    raise self._given_up(outcome, fields, begun)
                else:
                    failed += 1
                self._say_once(outcome.name, f"{outcome.name}: {self._clean(outcome.words)}. It is asked again.")
                await asyncio.sleep(max(asked * random.uniform(1.0, 1.1), _pause(failed)))

    async def aclose(self) -> None:
        """Close the connections; a later request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _attempt(
        self, path: str, request: Mapping[str, Any], read: Callable[[Any], Completion]
    ) -> Completion | ServerError:
        try:
            async with asyncio.timeout(self._deadline):
                reply = await self._client.post(path, body=dict(request), cast_to=object)
            # Not every server says that what it sends is JSON.
            reply = json.loads(reply) if isinstance(reply, str) else reply
            if (error_inside := error_in_reply(reply, request)) is not None:
                return error_inside
        except self._openai.APIStatusError as error:
            return _of_status(error, request)
        except (TimeoutError, self._openai.APITimeoutError):
            words = f"no whole reply within {self._deadline:g} seconds (policy.deadline)"
            return ServerError(name="timeout", kind="passing", words=words)
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            name = "unreachable" if type(cause).__name__ in _NOBODY_THERE else "disconnected"
            return ServerError(name=name, kind="passing", words=_words_of(error))
        except (ValueError, RecursionError) as error:
            came = plain(getattr(error, "doc", str(error)))
            return ServerError(name="broken_reply", kind="passing", words=shortened(f"no JSON: {came}"))
        try:
            completion = read(reply)
            self._note(reply)
            return completion
        except PolicyError:
            self._note(reply)
            raise
        except BrokenReply as error:
            return ServerError(name=error.name, kind="passing", words=shortened(json.dumps(reply)[:200]))
        except (ValueError, LookupError, TypeError, AttributeError):
            return ServerError(name="broken_reply", kind="passing", words=shortened(str(reply)[:200]))

    def _refused(self, error: ServerError, fields: Mapping[str, Any]) -> PolicyError:
        words = self._clean(error.words)
        said = f"status {error.status}: {words}"
        if error.kind == "context":
            return ContextExceeded(f"the server at {self._url}: {said}")
        # Where the same request has had replies to other prompts, the prompt may be the fault: its words are in the
        # message, or a firewall takes it for an attack.
        odd = error.status in (400, 403, 422) and error.name != "http_402" and self._last_reply > float("-inf")
        if error.kind == "prompt" or (odd and self._failed_in_a_row(fields) < PROMPTS_IN_A_ROW):
            return RequestFailed(error.name, f"the server at {self._url}: {said}")
        if error.kind == "passing":
            remedy = f"It asks to wait {error.wait:,.0f} seconds; run the same command again then."
        elif error.kind == "fields":
            names = ", ".join(sorted(error.fields))
            first = min(error.fields)
            remedy = f"Change {names}, or leave it out: --policy '{{request: {{{first}: null}}}}'."
        elif error.name in ("http_401", "http_403"):
            state = "holds another one" if self._key else "is empty"
            remedy = f"The key is read from the environment variable {self._key_env} (policy.key_env), which {state}."
        elif error.name in ("http_404", "http_405", "http_410", "http_501"):
            names = f" It lists {self._names()}." if self._listed else ""
            remedy = f"Check policy.url (with /v1) and the model's name, {self._model!r}.{names}"
        else:
            remedy = "No other request would fare better: see to that, then run the same command again."
        return PolicyError(f"the server at {self._url} refuses a request with {said}. {remedy}")

    def _given_up(self, error: ServerError, fields: Mapping[str, Any], begun: float) -> PolicyError:
        times = f"{self._retries + 1} times" if self._retries else "once"
        said = f"failed {times} for one request, the last time with {error.name}: {self._clean(error.words)}"
        away = error.name == "unreachable"
        if away or (self._last_reply < begun and self._failed_in_a_row(fields) >= PROMPTS_IN_A_ROW):
            row = "" if away else f"; so did {PROMPTS_IN_A_ROW} prompts in a row"
            return PolicyError(
                f"the server at {self._url} {said}{row}. "
                "Look at the server's log, then run the same command again: it goes on where it was."
            )
        return RequestFailed(error.name, f"the server at {self._url} {said}")

    def _failed_in_a_row(self, fields: Mapping[str, Any]) -> int:
        """How many prompts, this one too, have failed since the last reply to any."""
        content = json.dumps(fields.get("prompt") or fields.get("messages"))
        self._failed_prompts.add(hashlib.sha256(content.encode()).hexdigest())
        return len(self._failed_prompts)

    def _list_models(self) -> None:
        """Learn which models the server lists. No list is no verdict: the first reply is."""
        settings: dict[str, Any] = {"base_url": self._url, "api_key": self._key or "none", "timeout": LIST_SECONDS}
        with self._openai.OpenAI(**settings, max_retries=0) as client:
            for attempt in range(self._retries + 1):
                try:
                    listed = client.get("/models", cast_to=object)
                    break
                except self._openai.APIStatusError as error:
                    failure = _of_status(error, ())
                    # A key may be good for replies alone, which is a 403.
                    if error.status_code == 401:
                        raise self._refused(failure, {}) from None
                    if failure.kind != "passing" or attempt == self._retries:
                        said = f"status {failure.status}: {self._clean(failure.words)}"
                        self._say_once("models", f"no list of models ({said}); {self._model!r} is asked for as it is.")
                        return
                    self._say_once(failure.name, f"{failure.name}: {self._clean(failure.words)}. Waiting for it.")
                    time.sleep(max(failure.wait, _pause(attempt + 1)))
                except self._openai.APITimeoutError:
                    self._say_once("models", f"no list of models within {LIST_SECONDS:g} seconds.")
                    return
                except self._openai.OpenAIError as error:
                    raise PolicyError(
                        f"no server that speaks OpenAI's interface at {self._url}: {self._clean(_words_of(error))}. "
                        "Start it, or give its address as policy.url (http://…/v1)."
                    ) from None
                except ValueError:
                    self._say_once("models", f"its list of models is no JSON; {self._model!r} is asked for as it is.")
                    return
        entries = listed.get("data") if isinstance(listed, Mapping) else listed
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, Mapping) and entry.get("id"):
                self._listed[str(entry["id"])] = entry
        if self._model not in self._listed:
            self._say_once("models", f"it lists {self._names()}, not {self._model!r}, which is asked for all the same.")

    def _names(self) -> str:
        """The models that the server lists, those first whose names are near ours."""
        near = difflib.get_close_matches(self._model, self._listed, n=5)
        names = list(dict.fromkeys([*near, *sorted(self._listed)]))
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return ", ".join(names[:20]) + more or "no model"

    def _note(self, reply: Mapping[str, Any]) -> None:
        """The server is there, and says what the reply took."""
        self._last_reply = time.monotonic()
        self._failed_prompts.clear()
        model = reply.get("model")
        # Names have versions, and owners before them. Some servers answer with what they have loaded.
        if isinstance(model, str) and model and self._model not in model and model not in self._model:
            self._say_once("model", f"replies are of {model!r}, where {self._model!r} was asked for.")
        used = reply.get("usage")
        if isinstance(used, Mapping):
            told = {name: used.get(name) for name in ("prompt_tokens", "completion_tokens")}
            self.usage.update({name: count for name, count in told.items() if isinstance(count, int)})
            self.usage["replies"] += 1

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            say(f"the server at {self._url}: {text}")

    def _clean(self, text: str) -> str:
        """A server's words for a message: short, and without the key, which it may repeat whole or in part."""
        key = self._key
        if len(key) >= 8:
            for length in range(len(key), 3, -1):
                text = text.replace(key[:length], HIDDEN).replace(key[-length:], HIDDEN)
        return shortened(scrubbed(_MASKED_KEY.sub(HIDDEN, text)))


def _words_of(error: BaseException) -> str:
    """What went wrong below the client, which itself says no more than that something did."""
    cause = error.__cause__ or error
    return shortened(str(cause)) or type(cause).__name__


def _of_status(error: Any, request: Any) -> ServerError:
    header = error.response.headers.get("retry-after", "")
    return read_error(error.status_code, error.response.text, tuple(request), header)


def _pause(failed: int) -> float:
    """Seconds before the next attempt, twice as many from one to the next, spread so that not all come at once."""
    return float(min(LONGEST_PAUSE_SECONDS, 0.25 * 2.0 ** min(20, max(0, failed - 1))) * random.uniform(0.5, 1.5))


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise PolicyError(
            "policies openai and openai-chat: the openai package is missing. Run: pip install 'drift-rl[openai]'."
        ) from error
    return openai
