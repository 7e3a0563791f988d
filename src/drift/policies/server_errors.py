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
_TRY_AGAIN = frozenset({408, 409, 425, 429})
_WORD_KEYS = frozenset({"message", "msg", "detail", "error", "errors", "reason", "description", "title", "raw"})
_CODE_KEYS = frozenset({"code", "type", "status", "error_type", "param", "n_ctx"})
_TOO_LONG_CODES = re.compile(r"(?:exceed_)?context_(?:length|size|window)|too_(?:long|large)|above_max_length")
_FILTER_CODES = re.compile("content_filter|content_policy|responsibleaipolicy|moderation|safety|inspection_failed")
_NO_MONEY_CODES = re.compile("insufficient_(?:quota|balance|credits)|billing|deactivated")
_FILTERED = re.compile(r"content (?:filter|policy|management policy)|moderation|\bflagged\b|inappropriate content")
_KEY = re.compile(r"api[ _-]?key|unauthori[sz]ed|authenticat")
# What is too long, in the order in which a sentence on it need say less: the context, tokens of the prompt, the prompt.
_CONTEXT = re.compile(
    r"context[ _-]?(?:length|size|window|limit)|maximum context|token limit|n_ctx|max_(?:model|seq|input)_len"
    r"|(?:input|prompt|sequence) length"
)
_PROMPT_TOKENS = (r"\btokens?\b", r"prompt|inputs?\b|message|conversation|sequence", r"\d")
_TOO_MUCH = re.compile(
    r"exceed|too (?:long|large|many|big)|(?:long|larg|great)er than|more than|(?:less|fewer) than|at most|maximum"
    r"|limit|overflow|not enough|does(?: not|n't) fit|should be|<=|≤|≥|>"
)
_TOO_LONG_PROMPT = re.compile(r"(?:prompt|inputs?|conversation|messages?) (?:is |are |was )?too (?:long|large)")
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
    words = "; ".join(dict.fromkeys(text for key, text in parts if key in _WORD_KEYS)) or _plain(body)
    said = words.casefold()
    fields = frozenset(name for name in sent if name in codes or _names(words, name)) - _CONTENT
    kind, name = _kind(status, codes, said, bool(fields))
    return ServerError(
        name=name, kind=kind, words=shortened(words), fields=fields, wait=asked_to_wait(retry_after), status=status
    )


def error_in_reply(reply: Any, sent: Collection[str] = ()) -> ServerError | None:
    """The error that an answer of status 200 holds in place of a reply, or beside a broken-off one; ``None`` if none.

    OpenRouter and LM Studio answer so: their status was sent before the model failed.
    """
    if not isinstance(reply, Mapping):
        return None
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    error = (first if choices else reply).get("error")
    if not error:
        return None
    code = str(error.get("code")) if isinstance(error, Mapping) else ""
    body = json.dumps({"error": error})
    if re.fullmatch("[45][0-9]{2}", code):
        return read_error(int(code), body, sent)
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
    if status in (401, 402, 403, 404, 405, 501) or _NO_MONEY_CODES.search(told):
        return "everything", http
    if status < 500 and status != 429 and _KEY.search(said):
        return "everything", "http_401"
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
    elif value is not None and value != "":
        yield key, str(value)


def _names(words: str, field: str) -> bool:
    quoted = field in _EVERYDAY
    before, after = ("['\"`]", "['\"`]") if quoted else (r"(?<![\w-])", r"(?![\w-])")
    return re.search(f"{before}{re.escape(field)}{after}", words) is not None


def _plain(body: str) -> str:
    if "<" not in body:
        return body or "nothing"
    # What is longer is no page that tells an error, and takes the square of its length.
    body = body[:_MOST_OF_A_BODY]
    page = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", body, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(page.split())[:_MOST_OF_A_PAGE]
