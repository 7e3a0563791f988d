"""Equality of text after normalisation."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from drift.errors import require
from drift.verifiers.base import Verification, judged, unparseable
from drift.verifiers.expressions import core
from drift.verifiers.markup import tidy
from drift.verifiers.reading import stated

# Longer texts are no answers; and ordering a long run of combining marks takes quadratic time.
MAX_CHARACTERS = 10_000
# Signs, percent, currency and comparison change what an answer means, so they are no punctuation here.
_EDGE = "\"'`*_~.,;:!?\u2018\u2019\u201c\u201d\u00ab\u00bb\u2026 \t\r\n"
_BRACKETED = re.compile(r"\((\w+)\)|\[(\w+)\]|\{(\w+)\}")
_OPPOSITE = {"true": "false", "false": "true", "yes": "no", "no": "yes"}
_TRUTH = re.compile(
    r"(?:(?:the|this|that|my|so|hence|thus|it|is|statement|claim|proposition|assertion|answer|conjecture|final|yes(?=,)|:|,)\s?)*"
    r"(not\s)?(true|false|yes|no)"
)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Right if the normalised texts are the same.

    Args:
        ignore_case: fold case.
        ignore_whitespace: runs of white space count as one space.
        ignore_punctuation: strip quotes, Markdown marks and ``.,;:!?`` around the text, and brackets around a word.
            ``-``, ``%``, ``$`` and a point before a digit stay, and so do brackets around anything else.
        unicode_compatible: Unicode NFKC, except for superscripts, subscripts and fractions: 10² is not 102.
    """

    ignore_case: bool = True
    ignore_whitespace: bool = True
    ignore_punctuation: bool = True
    unicode_compatible: bool = True

    def verify(self, reply: str, gold: str) -> Verification:
        """Check ``reply``, the text of an answer, against ``gold``."""
        expected = self.normalise(gold[: MAX_CHARACTERS + 1])
        fits = bool(expected) and len(gold) <= MAX_CHARACTERS
        require(fits, "gold", gold[:80], f"a text of 1 to {MAX_CHARACTERS} characters that is not punctuation alone")
        if len(reply) > MAX_CHARACTERS:
            return unparseable("length")
        answer = self.normalise(reply)
        if answer != expected and self.ignore_punctuation:
            answer = self.normalise(core(reply) if "\\" in reply or "<" in reply else tidy(stated(reply) or reply))
            answer = answer if answer == expected else re.sub(r"^(?:it|this|that)(?: is|['’]s) ", "", answer)
            if expected in _OPPOSITE and (truth := _TRUTH.fullmatch(answer)):
                answer = _OPPOSITE[truth[2]] if truth[1] else truth[2]
        return judged(answer == expected, answer) if answer else unparseable("empty")

    async def verify_async(self, reply: str, gold: str) -> Verification:
        """The same; it takes microseconds."""
        return self.verify(reply, gold)

    def normalise(self, text: str) -> str:
        """The form in which two texts are compared."""
        if self.unicode_compatible:
            text = _compatible(text)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_whitespace:
            text = " ".join(text.split())
        return _bare(text) if self.ignore_punctuation else text


def _compatible(text: str) -> str:
    """NFKC of everything but the characters whose meaning lies in their position."""

    def positional(character: str) -> bool:
        return unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))

    if text.isascii():
        return text
    parts: list[str] = []
    start = 0
    for at, character in enumerate(text):
        if positional(character):
            parts += [unicodedata.normalize("NFKC", text[start:at]), character]
            start = at + 1
    return "".join([*parts, unicodedata.normalize("NFKC", text[start:])]).replace("\u2212", "-")


def _bare(text: str) -> str:
    """``text`` without what surrounds it; a point that begins a number stays."""
    right = text.rstrip(_EDGE)
    left = right.lstrip(_EDGE)
    if left[:1].isdigit() and right[: len(right) - len(left)].endswith("."):
        left = "." + left
    match = _BRACKETED.fullmatch(left)
    return left if match is None else next(group for group in match.groups() if group)
