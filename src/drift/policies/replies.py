"""What a server's reply says, as completions: text, thinking, refusals and calls, or token ids. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from drift.errors import PolicyError
from drift.policies.base import RequestFailed, UnusableReply
from drift.types import Completion, FinishReason

# How servers spell why a reply ended, in the order in which the words decide; all else is ``stop``.
_FINISHED: tuple[tuple[re.Pattern[str], FinishReason], ...] = (
    (re.compile("tool|function_call"), "tool_calls"),
    (re.compile("filter|safety|recitation|prohibited|block|sensitive|spii|guardrail|polic"), "content_filter"),
    (re.compile("length|max_.*tokens|token_limit|context"), "length"),
    (re.compile("refusal"), "refusal"),
)
_THOUGHT_KEYS = ("text", "thinking", "content", "summary")
# Of a server that does not tell a thought from the text.
_OPENED, _CLOSED = "<think>", "</think>"
_BROKEN_OFF = re.compile("abort|error|cancel|time_?out|overload|insufficient_system_resource")
_TOKEN_ID = re.compile("token_id:([0-9]+)")


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
    # One reply is asked for; of several, in any order, it is the first.
    choice: Mapping[str, Any] = min(reply["choices"], key=lambda each: each.get("index") or 0)
    reason = str(choice.get("finish_reason")).casefold()
    if _BROKEN_OFF.search(reason):
        raise BrokenReply(f"finish_{reason}")
    return choice


def finish_reason(choice: Mapping[str, Any]) -> FinishReason:
    """Why a reply ended; what is neither length, filter nor a call is ``stop``, which servers spell in many ways."""
    said = str(choice.get("finish_reason")).casefold()
    return next((reason for words, reason in _FINISHED if words.search(said)), "stop")


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
    for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks"):
        thinking = thinking or _plain_text(message.get(name))
    if not thinking and (_OPENED in text or _CLOSED in text):
        thought, closed, said = text.partition(_CLOSED)
        if closed or text.lstrip().startswith(_OPENED):
            text, thinking = said.strip(), thought.strip().removeprefix(_OPENED).strip()
    if not text and message.get("refusal") and isinstance(message["refusal"], str):
        text, reason = message["refusal"], "refusal"
    completion = Completion(
        # Half of a UTF-16 pair, which a server may send as an escape, is taken by no file and no tokenizer.
        text=_whole(text),
        thinking=_whole(thinking),
        token_ids=(),
        logprobs=None,
        finish_reason=reason,
    )
    calls = message.get("tool_calls") or message.get("function_call")
    if not text.strip() and (calls or reason == "tool_calls"):
        call = json.dumps(calls, ensure_ascii=False)[:200]
        raise UnusableReply("tool_calls", f"it calls tools that nobody offered, and says nothing: {call}", completion)
    if not text and (thinking or _thought_unseen(reply)):
        limit = "within max_new_tokens" if reason == "length" else f"(finish_reason {choice.get('finish_reason')})"
        remedy = "Raise max_new_tokens or switch thinking off."
        raise UnusableReply("reasoning_only", f"it thinks and says nothing {limit}. {remedy}", completion)
    return checked_for_filter(completion)


def _thought_unseen(reply: Any) -> bool:
    """Whether tokens of a thought are counted; hosted models don't tell the thought itself."""
    used = reply.get("usage")
    details = used.get("completion_tokens_details") if isinstance(used, Mapping) else None
    return isinstance(details, Mapping) and bool(details.get("reasoning_tokens"))


def ids_of(reply: Any, prompt_ids: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...] | None] | None:
    """The sampled ids of a reply of ``/completions`` and their log-probabilities; ``None`` where it tells no ids.

    vLLM tells them in ``token_ids``, older ones in ``logprobs.tokens`` where asked with ``return_tokens_as_token_ids``,
    llama.cpp's server in ``logprobs.content[].id``.

    Raises:
        PolicyError: the server saw another prompt.
        BrokenReply, ValueError, LookupError, TypeError, AttributeError: it is no reply.
    """
    choice = first_choice(reply)
    told = choice.get("logprobs") or {}
    seen, used = choice.get("prompt_token_ids") or reply.get("prompt_token_ids"), reply.get("usage") or {}
    # What is no number above 0 is not told.
    tokens = used.get("prompt_tokens")
    count = len(seen) if seen is not None else tokens if isinstance(tokens, int) and tokens else None
    named = [_TOKEN_ID.fullmatch(str(token)) for token in told.get("tokens") or ()]
    if choice.get("token_ids") is not None:
        ids, logprobs = choice["token_ids"], told.get("token_logprobs")
    elif isinstance(told.get("content"), list) and all("id" in each for each in told["content"]):
        ids, logprobs = [each["id"] for each in told["content"]], [each["logprob"] for each in told["content"]]
    elif named and all(named):
        ids, logprobs = [found[1] for found in named if found], told.get("token_logprobs")
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
    for part in [content] if isinstance(content, Mapping) else content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else ""
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif "thinking" in kind or "reasoning" in kind:
            thoughts.append(_plain_text(part.get(kind) or part.get("text")))
        elif kind == "refusal":
            texts.append(str(part.get("refusal")))
        else:
            raise RequestFailed("not_text", f"the reply has a part that is not text: {str(part)[:100]}")
    return "".join(texts), "".join(thoughts)


def _plain_text(thinking: Any) -> str:
    if isinstance(thinking, list):
        return "".join(map(_plain_text, thinking))
    if isinstance(thinking, Mapping):
        return next((_plain_text(thinking[key]) for key in _THOUGHT_KEYS if thinking.get(key)), "")
    return thinking if isinstance(thinking, str) else ""


def _whole(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
