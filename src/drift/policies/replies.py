"""What a server's reply says, as completions: text, thinking, refusals and calls, or token ids. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from drift.errors import PolicyError
from drift.policies.base import RequestFailed, UnusableReply
from drift.types import Completion, FinishReason

_FINISHED: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "refusal",
}
_FILTERED = re.compile("filter|safety|recitation|prohibited|blocklist|sensitive|spii")
# Of a server that does not tell a thought from the text.
_OPENED, _CLOSED = "<think>", "</think>"
_BROKEN_OFF = frozenset({"abort", "aborted", "error", "cancelled", "network_error", "insufficient_system_resource"})


class BrokenReply(ValueError):
    """A reply that another attempt may replace: empty, broken off, or not in the form that was asked for.

    Args:
        name: under which it is counted.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def first_choice(reply: Any) -> Mapping[str, Any]:
    """The reply's choice; raises ``BrokenReply`` where there is none, or the server broke it off."""
    if not reply["choices"]:
        raise BrokenReply("empty_choices")
    choice: Mapping[str, Any] = reply["choices"][0]
    reason = choice.get("finish_reason")
    if str(reason).casefold() in _BROKEN_OFF:
        raise BrokenReply(f"finish_{str(reason).casefold()}")
    return choice


def finish_reason(choice: Mapping[str, Any]) -> FinishReason:
    """Why a reply ended; what is neither length, filter nor a call is ``stop``, which servers spell in many ways."""
    said = str(choice.get("finish_reason")).casefold()
    return "content_filter" if _FILTERED.search(said) else _FINISHED.get(said, "stop")


def chat_completion(reply: Any) -> Completion:
    """The completion of a reply of ``/chat/completions``.

    Raises:
        UnusableReply: it says nothing that a conversation can go on from; it is recorded as it is.
        RequestFailed: it has parts that are not text.
        BrokenReply, ValueError, LookupError, TypeError, AttributeError: it is no reply.
    """
    choice = first_choice(reply)
    message, reason = choice["message"], finish_reason(choice)
    text, thinking = _text_of(message.get("content"))
    for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
        thinking = thinking or _plain_text(message.get(name))
    if not thinking and (_OPENED in text or _CLOSED in text):
        thought, closed, said = text.partition(_CLOSED)
        if closed or text.lstrip().startswith(_OPENED):
            text, thinking = said.strip(), thought.strip().removeprefix(_OPENED).strip()
    if not text and message.get("refusal"):
        text, reason = str(message["refusal"]), "refusal"
    completion = Completion(
        # Half of a UTF-16 pair, which a server may send as an escape, is taken by no file and no tokenizer.
        text=_whole(text),
        thinking=_whole(thinking),
        token_ids=(),
        logprobs=None,
        finish_reason=reason,
    )
    calls = message.get("tool_calls") or message.get("function_call")
    if not text and calls:
        call = json.dumps(calls, ensure_ascii=False)[:200]
        raise UnusableReply("tool_calls", f"it calls tools that nobody offered, and says nothing: {call}", completion)
    if not text and thinking:
        limit = "within max_new_tokens" if reason == "length" else f"(finish_reason {choice.get('finish_reason')})"
        remedy = "Raise max_new_tokens or switch thinking off."
        raise UnusableReply("reasoning_only", f"it thinks and says nothing {limit}. {remedy}", completion)
    return checked_for_filter(completion)


def ids_of(reply: Any, prompt_ids: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...] | None] | None:
    """The sampled ids of a reply of ``/completions`` and their log-probabilities; ``None`` where it tells no ids.

    vLLM tells them in ``token_ids``, llama.cpp's server in ``logprobs.content[].id``.

    Raises:
        PolicyError: the server saw another prompt.
        BrokenReply, ValueError, LookupError, TypeError, AttributeError: it is no reply.
    """
    choice = first_choice(reply)
    told = choice.get("logprobs") or {}
    seen, used = choice.get("prompt_token_ids") or reply.get("prompt_token_ids"), reply.get("usage") or {}
    count = len(seen) if seen is not None else used.get("prompt_tokens")
    if choice.get("token_ids") is not None:
        ids, logprobs = choice["token_ids"], told.get("token_logprobs")
    elif isinstance(told.get("content"), list) and all("id" in each for each in told["content"]):
        ids, logprobs = [each["id"] for each in told["content"]], [each["logprob"] for each in told["content"]]
    else:
        return None
    if (seen is not None and tuple(seen) != prompt_ids) or (seen is None and count not in (None, len(prompt_ids))):
        raise PolicyError(
            f"the server changed the prompt ({len(prompt_ids)} ids sent, {count} seen). "
            "Check that policy.tokenizer belongs to the model it serves."
        )
    if logprobs is not None and len(logprobs) != len(ids):
        raise ValueError("not one log-probability per token")
    return tuple(map(int, ids)), None if logprobs is None else tuple(map(float, logprobs))


def checked_for_filter(completion: Completion) -> Completion:
    """``completion``; raises ``UnusableReply`` where the server's filter cut it off."""
    if completion.finish_reason == "content_filter":
        said = f"the server's filter cut it off after {completion.text[-200:]!r}"
        raise UnusableReply("content_filter", said, completion)
    return completion


def _text_of(content: Any) -> tuple[str, str]:
    """Text and thinking of a message's content, which may be a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("thinking", "reasoning"):
            thoughts.append(_plain_text(part.get(kind) or part.get("text")))
        elif kind == "refusal":
            texts.append(str(part.get("refusal")))
        else:
            raise RequestFailed("not_text", f"the reply has a part that is not text: {str(part)[:100]}")
    return "".join(texts), "".join(thoughts)


def _plain_text(thinking: Any) -> str:
    if isinstance(thinking, list):
        return "".join(_plain_text(part.get("text") if isinstance(part, Mapping) else part) for part in thinking)
    return thinking if isinstance(thinking, str) else ""


def _whole(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
