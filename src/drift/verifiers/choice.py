"""Multiple choice: which option a reply claims, as distinct from the letters it merely mentions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drift.errors import require
from drift.verifiers.base import Verification, boxed, judged, unparseable
from drift.verifiers.exact import Exact

# Only the end of a longer reply is read; a claim stands at the start or the end of a short one.
MAX_CHARACTERS = 20_000
_TEXT = Exact()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Possessive: marks next to marks must not be divided between them in every way there is.
_MARKS = r"[*_`\"'$\s]{0,12}+"
_OPEN = rf"{_MARKS}(?:\\(?:text|textbf|mathrm|mathbf)\s?\{{)?[(\[{{]?{_MARKS}"
_CLOSE = rf"{_MARKS}[)\]}}]?{_MARKS}"
_LABEL = re.compile(rf"{_OPEN}(?:(?:option|choice|answer)\b{_MARKS}:?{_OPEN})?([A-Za-z]){_CLOSE}[.,:;!]?{_CLOSE}", re.I)
# "B. Because", "(B) because", "**B** because": a letter set apart by a mark. "A reaction" begins with an article.
_LEADING = re.compile(
    r"\s{0,12}[*_`]{0,3}(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])[*_`]{0,3}[).:]|\*\*([A-Za-z])\*\*)(?=\W|$)"
)
_IS = r"(?:\s{1,3}(?:is|would\sbe|must\sbe|should\sbe|has\sto\sbe)\b|\s{0,3}[:=])"
_CLAIM = re.compile(
    r"\b(?:(?:correct|right|best|final|my|the)\s{1,3})?(?:answer|choice|option)(?:\s{1,3}(?:choice|option|letter))?"
    rf"{_IS}\s{{0,3}}(?:(?:most\slikely|therefore|thus|clearly|option|choice|letter)\b)?:?"
    r"|\b(?:choose|pick|select|go\swith)\b(?:\s(?:option|choice|answer))?|\boption\b|\\boxed\s?(?=\{)",
    re.IGNORECASE,
)
_CLAIMED = re.compile(rf"({_OPEN})([A-Za-z])(?![A-Za-z0-9'’])({_CLOSE})")
_IS_RIGHT = re.compile(r"(?<![A-Za-z0-9'’])\(?([A-Z])\)?\W{0,3}\s?is\s(?:the\s)?(?:most\s)?(?:correct|right|best)\b")
_AND = re.compile(r"\s{0,3}(?:,|/|&|\bor\b|\band\b)\s{0,3}(?:option\s|choice\s)?[*(\[]{0,3}([A-Za-z])(?![A-Za-z0-9'’])")
_NOT = re.compile(r"(?:\bnot|n't|\bneither|\bnor|\brather than|\binstead of)\s{1,3}(?:the\s)?$", re.IGNORECASE)
# What may follow a bare capital A or I for it to be a label and not a word.
_GOES_ON = re.compile(
    r"\s+(?:because|since|as|for|due|and|or|which|with|is|not|but)\b|\s*(?:[^\w\s]|$|\n)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Right if the reply claims the gold option.

    A claim is a reply that is a label alone, a label at its start ("B. Because of a reaction" claims B), an option
    named as the answer ("The answer is B"), a last line that is a label, or the text of an option. The last line
    with a claim decides; two different letters claimed in it are unparseable.

    Args:
        letters: the labels of the options, in order.
        options: the options' texts in the same order, where they are the same for every question; else give them
            to ``verify``.
    """

    letters: str = "ABCD"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        proper = 2 <= len(self.letters) <= 26 and self.letters == LETTERS[: len(self.letters)]
        require(proper, "verifier.settings.letters", self.letters, "the first 2 to 26 letters of the alphabet")
        count = len(self.options)
        require(count in (0, len(self.letters)), "verifier.settings.options", count, f"{len(self.letters)} texts")

    def verify(self, reply: str, gold: str, *, options: Sequence[str] = ()) -> Verification:
        """Check ``reply`` against ``gold``, a letter as in ``C`` or ``(c)``; ``options`` are this question's texts."""
        texts = tuple(options) or self.options
        letters = LETTERS[: len(texts)] if texts else self.letters
        require(len(texts) <= 26, "options", len(texts), "at most 26 texts")
        expected = _label(gold, letters)
        require(expected is not None, "gold", gold[:80], f"one of the letters {letters}")
        claimed = self.read(reply, letters, texts)
        if not claimed:
            return unparseable("no option named")
        if len(claimed) > 1:
            return unparseable(f"several options named: {', '.join(sorted(claimed))}")
        (answer,) = claimed
        return judged(answer == expected, answer)

    async def verify_async(self, reply: str, gold: str, *, options: Sequence[str] = ()) -> Verification:
        """The same; it takes microseconds."""
        return self.verify(reply, gold, options=options)

    def read(self, reply: str, letters: str, options: Sequence[str] = ()) -> set[str]:
        """The letters that ``reply`` claims at its end: one if it is clear, none, or those in conflict."""
        whole = reply.strip()
        reply = whole[-MAX_CHARACTERS:].strip()
        inner = boxed(reply)
        if inner and (label := _label(inner, letters)):
            return {label}
        if label := _label(reply, letters):
            return {label}
        named = [(_TEXT.normalise(text), letter) for text, letter in zip(options, letters, strict=False)]
        if by_text := _by_text(reply, named):
            return by_text
        lines = [line for line in reply.splitlines() if line.strip()]
        leading = [_leading(line, letters) for line in lines]
        # Several labels at the start of lines list the options and claim none.
        listing = len({label for label, _ in filter(None, leading)}) > 1
        for at in range(len(lines) - 1, -1, -1):
            claims = set(_claims(lines[at], letters, named))
            bare = _label(lines[at], letters)
            if bare and at == len(lines) - 1:
                claims.add(bare)
            first = leading[at]
            if first and not listing and at == 0 and len(whole) <= MAX_CHARACTERS:
                label, rest = first
                claims |= {label, *_by_text(rest, named)}
            if claims:
                return claims
        return _by_text(lines[-1], named) if lines else set()


def _by_text(text: str, named: Sequence[tuple[str, str]]) -> set[str]:
    """The options whose text ``text`` is; ``named`` holds (normalised text, letter)."""
    if not named or len(text) > 2000:
        return set()
    normalised = _TEXT.normalise(text)
    return {letter for option, letter in named if option and option == normalised}


def _label(text: str, letters: str) -> str | None:
    """The letter that ``text`` as a whole names, or None."""
    if len(text) > 60:
        return None
    match = _LABEL.fullmatch(text.strip())
    return match.group(1).upper() if match and match.group(1).upper() in letters else None


def _leading(line: str, letters: str) -> tuple[str, str] | None:
    """The label at the start of a line and what follows it, or None."""
    match = _LEADING.match(line)
    if match is None:
        return None
    label = next(group for group in match.groups() if group).upper()
    return (label, line[match.end() :]) if label in letters else None


def _claims(line: str, letters: str, named: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Every letter that ``line`` says is the answer."""
    read_to = 0
    for match in _CLAIM.finditer(line):
        # What a list of letters has read is not read again from each of its members.
        if match.start() < read_to:
            continue
        if _NOT.search(line, max(0, match.start() - 20), match.start()):
            continue
        claimed = _CLAIMED.match(line, match.end())
        if claimed is None or not _is_label(claimed, line, letters):
            yield from _by_text(line[match.end() : match.end() + 300], named)
            continue
        yield claimed.group(2).upper()
        at = claimed.end()
        while other := _AND.match(line, at):
            letter, at = other.group(1), other.end()
            if letter not in letters or not _not_article(letter, line, at):
                break
            yield letter
        read_to = at
    for match in _IS_RIGHT.finditer(line):
        if match.group(1) in letters and not _NOT.search(line, max(0, match.start() - 20), match.start()):
            yield match.group(1)


def _is_label(claimed: re.Match[str], line: str, letters: str) -> bool:
    """Whether the letter after a claim is a label, and not the article of "the answer is a reaction"."""
    before, letter, after = claimed.groups()
    if letter.upper() not in letters:
        return False
    if set(before) & set("([{*") or set(after) & set(")]}*"):
        return True
    if letter.islower():
        return re.match(r"\s*(?:[.,;!]|$)", line[claimed.end() :]) is not None
    return _not_article(letter, line, claimed.end() - len(after))


def _not_article(letter: str, line: str, at: int) -> bool:
    return letter not in "AI" or _GOES_ON.match(line, at) is not None
