"""What a server's error says: its own words, whatever shape the body has, and what kind of error it is. No I/O."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# ``context``: this conversation is too long. ``prompt``: this one is refused, others may not be. ``fields``: the server
# refuses fields of the request. ``everything``: no request would fare better. ``passing``: the same may succeed later.
Kind = Literal["context", "prompt", "fields", "everything", "passing"]

_MOST_CHARACTERS, _MOST_OF_A_PAGE, _MOST_OF_A_BODY = 300, 60, 20_000
_TRY_AGAIN = frozenset({408, 409, 424, 425, 429, 498, 499})
_WORD_KEYS = frozenset(
    {"message", "msg", "detail", "error", "errors", "reason", "description", "title", "raw", "status_msg"}
)
_CODE_KEYS = frozenset({"code", "type", "status", "error_type", "param", "field", "n_ctx"})
_TOO_LONG_CODES = re.compile(r"(?:exceed_)?context_(?:length|size|window)|too_(?:long|large)|string_above_max_length")
_FILTER_CODES = re.compile(
    "content_?filter|content_policy|responsibleaipolicy|moderation|safety|inspection_?failed|sensitive|guardrail"
)
_NO_MONEY_CODES = re.compile(
    "insufficient_(?:quota|balance|credits)|exceeded_current_quota|budget_exceeded|billing|deactivated"
)
_NO_MODEL_CODES = re.compile("model_?not_?found|invalid_model|decommissioned|deployment_?not_?found")
_FILTERED = re.compile(
    r"content ?(?:filter|policy|management policy)|was filtered|moderation|\bflagged\b|inappropriate content"
    r"|content exists risk|high risk|safety system|sensitive (?:content|words|information)|\w_sensitive"
    r"|prohibited[ _]content|guardrail|usage (?:guidelines|polic)|responsible ai"
)
_KEY = re.compile(r"api[ _-]?key|unauthori[sz]ed|authenticat")
_NO_MONEY = re.compile(
    r"credit balance|insufficient (?:balance|credits|funds)|balance is insufficient|account[^.]{0,60}suspended"
)
_NO_MODEL = re.compile(
    r"invalid model(?: name| id|:)|model not exist|not a valid model|no models? (?:is |are )?loaded"
    r"|\bmodel\b[^.]{0,60}(?:not found|does not exist|decommissioned)|does not support chat|unexpected endpoint"
)
# What passes, though its status is that of a request that can't be served.
_BUSY = re.compile(r"rate[ _-]?limit|throttl|too many requests|overloaded|try again later|temporarily|has crashed")
# What is too long, in the order in which a sentence on it need say less: the context, tokens of the prompt, the prompt.
_CONTEXT = re.compile(
    r"context[ _-]?(?:length|size|window|limit)|maximum context|token limit|n_ctx|max_(?:model|seq|input)_len"
    r"|(?:input|prompt|sequence) length"
)
_PROMPT_TOKENS = (r"\btokens?\b", r"prompt|inputs?\b|message|conversation|sequence", r"\d")
_TOO_MUCH = re.compile(
    r"exceed|too (?:long|large|many|big)|(?:long|larg|great)er than|more than|(?:less|fewer) than|at most|maximum"
    r"|limit|overflow|not enough|does(?: not|n't) fit|should be|above|only supports|<=|≤|≥|>"
)
_TOO_LONG_PROMPT = re.compile(
    r"(?:prompt|inputs?|conversation|messages?|history) (?:is |are |was )?(?:too (?:long|large)|longer\b|exceeds?\b)"
    r"|too many (?:input |prompt )?tokens|reduce (?:the length of )?(?:the|your) (?:messages?|prompt|input)"
    r"|current length is \d|expected maxlength"
    # What is left of the context for the reply, as older vLLMs compute it.
    r"|max_tokens must be at least 1, got -"
)
# How long to wait, in words, where no header says it: "try again in 1m2.5s", "retry after 33 seconds".
_PAUSE = re.compile(r"(?:try again|retry) (?:in|after) ((?:\d{1,9}(?:\.\d+)? ?(?:ms|s|m|h)[a-z]* ?)+)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# These may be words of any sentence: a message names such a field only in quotation marks.
_EVERYDAY = frozenset({"model", "stop"})
# What is said of these is said of one conversation.
_CONTENT = frozenset({"messages", "prompt"})


@dataclass(frozen=True, kw_only=True)
class ServerError:
    """One request that failed.

    Attributes:
        name: under which it is counted, such as ``http_500``, ``content_filter`` or ``timeout``.
        kind: what can be done about it.
        words: the server's own, short and on one line.
        fields: fields of the request that it names.
        wait: seconds that the server asks to wait.
        status: of HTTP; 0 where there was no answer.
    """

    name: str
    kind: Kind
    words: str
    fields: frozenset[str] = frozenset()
    wait: float = 0.0
    status: int = 0


def read_error(status: int, body: str, sent: Collection[str] = (), retry_after: str = "") -> ServerError:
    """What a server's answer says.

    Args:
        status: of HTTP.
        body: the answer, whatever is in it.
        sent: names of the fields that the request had.
        retry_after: the header of that name, in seconds or as a date.
    """
    try:
        parts = list(_parts(json.loads(body)))
    except (ValueError, RecursionError):
        parts = []
    codes = {text.casefold() for key, text in parts if key in _CODE_KEYS}
    words = "; ".join(dict.fromkeys(text for key, text in parts if key in _WORD_KEYS)) or plain(body)
    said = words.casefold()
    # A list of what is known names what is not refused.
    refused = words.partition("expected one of")[0]
    fields = frozenset(name for name in sent if name in codes or _names(refused, name)) - _CONTENT
    kind, name = _kind(status, codes, said, bool(fields))
    wait = asked_to_wait(retry_after) or _wait_in_words(said)
    return ServerError(name=name, kind=kind, words=shortened(words), fields=fields, wait=wait, status=status)


def error_in_reply(reply: Any, sent: Collection[str] = ()) -> ServerError | None:
    """The error that an answer of status 200 holds in place of a reply, or beside a broken-off one; ``None`` if none.

    OpenRouter and LM Studio answer so: their status was sent before the model failed. What has no choices, but a
    message, is an error in whatever shape.
    """
    if not isinstance(reply, Mapping):
        return None
    choices = reply.get("choices")
    if choices:
        first = choices[0] if isinstance(choices, list) and isinstance(choices[0], Mapping) else {}
        error = first.get("error") or reply.get("error")
        told = {"error": error} if error else {}
    else:
        told = dict(reply)
    parts = list(_parts(told))
    if not any(key in _WORD_KEYS for key, _ in parts):
        return None
    body = json.dumps(told)
    for key, text in parts:
        if key in ("code", "status", "status_code") and re.fullmatch("[45][0-9]{2}", text):
            return read_error(int(text), body, sent)
    # No status at all: what the words don't explain may pass.
    explained = read_error(400, body, sent)
    return explained if explained.name != "http_400" else read_error(500, body, sent)


def asked_to_wait(header: str) -> float:
    """Seconds that a ``Retry-After`` header asks to wait, in seconds or as a date; 0 where it asks for nothing."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _wait_in_words(said: str) -> float:
    found = _PAUSE.search(said)
    times = re.findall(r"(\d+(?:\.\d+)?) ?(ms|s|m|h)", found[1]) if found else []
    return sum(float(number) * _SECONDS[unit] for number, unit in times)


def shortened(text: str) -> str:
    """``text`` on one line, cut at a length that a person reads, without a full stop at its end."""
    line = " ".join(text.split())
    return line[:_MOST_CHARACTERS].rstrip(".")


def _kind(status: int, codes: set[str], said: str, names_fields: bool) -> tuple[Kind, str]:
    http = f"http_{status}"
    told = " ".join(codes)
    if (status not in (401, 402, 403, 404, 429) and _says_too_long(status, said)) or _TOO_LONG_CODES.search(told):
        return "context", "context"
    if status < 500 and (_FILTERED.search(said) or _FILTER_CODES.search(told)):
        return "prompt", "content_filter"
    if _NO_MONEY_CODES.search(told) or (status < 500 and _NO_MONEY.search(said)):
        return "everything", "http_402" if status == 400 else http
    if status in (400, 403) and _BUSY.search(f"{said} {told}"):
        return "passing", http
    if status in (401, 402, 403, 404, 405, 410, 501):
        return "everything", http
    if status < 500 and status != 429 and _KEY.search(said):
        return "everything", "http_401"
    if status < 500 and status != 429 and (_NO_MODEL_CODES.search(told) or _NO_MODEL.search(said)):
        return "everything", "http_404"
    # A model that thinks, of one prompt.
    if "could not finish the message" in said:
        return "prompt", http
    if status >= 500 or status in _TRY_AGAIN:
        return "passing", http
    return ("fields" if names_fields else "prompt"), http


def _says_too_long(status: int, said: str) -> bool:
    if _CONTEXT.search(said):
        return bool(_TOO_MUCH.search(said))
    tokens = all(re.search(part, said) for part in _PROMPT_TOKENS) and _TOO_MUCH.search(said)
    return status == 413 or (status < 500 and bool(tokens or _TOO_LONG_PROMPT.search(said)))


def _parts(value: Any, key: str = "error") -> Iterator[tuple[str, str]]:
    """Every text and number of a body with the key it stands under; FastAPI's ``loc`` is put before its ``msg``."""
    if isinstance(value, Mapping):
        place = value.get("loc")
        if isinstance(place, list) and place and isinstance(value.get("msg"), str):
            yield from (("param", str(place[-1])), ("msg", f"{place[-1]}: {value['msg']}"))
            return
        for name, inner in value.items():
            yield from _parts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner, key)
    elif isinstance(value, str) and value.startswith("{") and (inner := _json_in(value)) is not None:
        yield from _parts(inner, key)
    elif value not in (None, "") and not isinstance(value, bool):
        yield key, str(value)


def _json_in(text: str) -> Any:
    """What a gateway passes on as text: the body of the server behind it; ``None`` if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _names(words: str, field: str) -> bool:
    quoted = field in _EVERYDAY
    before, after = ("['\"`]", "['\"`]") if quoted else (r"(?<![\w-])", r"(?![\w-])")
    # topK and Seed are names of top_k and seed.
    return re.search(f"{before}{field.replace('_', '_?')}{after}", words, re.IGNORECASE) is not None


def plain(body: str) -> str:
    """A body that is no JSON, for a message: of a page its text, and little of it."""
    if "<" not in body:
        return body or "nothing"
    # What is longer is no page that tells an error, and takes the square of its length.
    body = body[:_MOST_OF_A_BODY]
    page = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", body, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(page.split())[:_MOST_OF_A_PAGE]
