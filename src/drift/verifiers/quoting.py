"""Text that was written by somebody else, put into a prompt so that it can't speak for the prompt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from drift.types import Message


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """Quoted text.

    Attributes:
        text: the parts, each under a marker line ``=== label code``, and ``=== end code`` after the last.
        code: twelve hexadecimal digits that no part contains. They are a hash of all parts, so that a part would have
            to contain its own hash to close its quotation or to open another.
    """

    text: str
    code: str


def quote(parts: Sequence[tuple[str, str]], *, tags: Sequence[str] = (), max_characters: int, salt: str = "") -> Quoted:
    """Quote labelled texts in linear time.

    Args:
        parts: ``(label, text)`` pairs, the labels being the caller's own.
        tags: names of tags that only the reader of the prompt may write; their ``<`` becomes ``‹`` in the texts.
        max_characters: of all texts together; each may have its equal share and what shorter ones leave of theirs.
        salt: what else the code depends on.
    """
    limit = _limit([len(text) for _, text in parts], max_characters)
    kept = [(label, _writable(_middle_out(text, limit))) for label, text in parts]
    if tags:
        opening = re.compile(rf"<(?=\s{{0,8}}/?\s{{0,8}}(?:{'|'.join(map(re.escape, tags))})\b)", re.IGNORECASE)
        kept = [(label, opening.sub("‹", text)) for label, text in kept]
    code = hashlib.sha256("\x1f".join([salt, *(item for part in kept for item in part)]).encode()).hexdigest()[:12]
    while any(code in text for _, text in kept):
        code = hashlib.sha256(code.encode()).hexdigest()[:12]
    lines = [f"=== {label} {code}\n{text}\n" for label, text in kept]
    return Quoted(text="".join(lines) + f"=== end {code}", code=code)


def conversation_parts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """A conversation as parts for ``quote``, each labelled by who speaks."""
    return [(message["role"], message["content"]) for message in messages]


def _writable(text: str) -> str:
    """``text`` without what UTF-8 can't encode, and without control characters other than line breaks and tabs."""
    text = text.encode("utf-8", "replace").decode()
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text.replace("\r\n", "\n"))


def _limit(lengths: Sequence[int], total: int) -> int:
    """The longest a part may be so that all of them together are at most ``total``."""
    left, parts = total, len(lengths)
    for length in sorted(lengths):
        share = left // parts
        if length > share:
            return share
        left, parts = left - length, parts - 1
    return max(lengths, default=0)


def _middle_out(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = limit - limit // 2
    tail = text[len(text) - limit // 2 :] if limit > 1 else ""
    return f"{text[:head]}\n[{len(text) - limit} characters left out]\n{tail}"
