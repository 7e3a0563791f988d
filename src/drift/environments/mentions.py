"""Which options of a multiple choice a text speaks of, and which numbers: for users who must not say too much."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction

from drift.problems.base import LETTERS

# Only the end of a longer text is read; ordering a long run of combining marks takes quadratic time.
MAX_CHARACTERS = 4000

_WORD = r"A-Za-z0-9'’"
_LETTER = re.compile(rf"(?<![{_WORD}])([A-Za-z])(?![{_WORD}])")
_LABELLED = re.compile(r"(?:\b(?:option|choice|answer|letter)\s{0,3}[:(\[*]{0,3}|[(\[*])$", re.IGNORECASE)
# What may follow a capital A or I for it to be a label and not a word.
_GOES_ON = re.compile(
    r"\s*(?:[^\w\s]|$)|\s+(?:is|was|are|be|because|since|as|or|and|nor|vs|versus|seems?|looks|must|might|may|could|can|"
    r"would|should|will|has|does|out|correct|right|wrong|true|false|possible|plausible|likely|unlikely|instead)\b",
    re.IGNORECASE,
)
_DIGITS = r"[0-9]{1,40}"
_NUMBER = re.compile(
    rf"([0-9]{{1,3}}(?:[, ][0-9]{{3}}){{1,12}}(?![0-9])|{_DIGITS})?(\.{_DIGITS})?"
    rf"(?:\s{{0,3}}/\s{{0,3}}({_DIGITS}))?"
)
_APART = re.compile(r"(?<=[0-9])[\s,._*\-]{1,8}(?=[0-9])")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: n for n, word in enumerate(_ONES.split())} | {word: 10 * n for n, word in enumerate(_TENS.split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_NUMERAL = re.compile("|".join((*sorted(_SMALL, key=len, reverse=True), *_SCALES)))


def plain(text: str) -> str:
    """The end of ``text`` in compatible characters, without invisible ones, white space as single spaces."""
    text = unicodedata.normalize("NFKC", text[-MAX_CHARACTERS:])
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())


def last_question(text: str) -> str:
    """The last sentence of ``text`` that ends with a question mark; the whole text if there is none."""
    sentences = re.split(r"(?<=[.!?])\s+|\n+", text[-MAX_CHARACTERS:])
    asking = [sentence for sentence in sentences if sentence.rstrip("\"'*_` )").endswith("?")]
    return asking[-1] if asking else text


def options_named(text: str, options: Sequence[str]) -> set[int]:
    """Indexes of the options that ``text`` names, by letter or by their own words; too many rather than too few."""
    text = plain(text)
    found = {LETTERS.index(letter) for letter in _letters(text, LETTERS[: len(options)])}
    left = text.casefold()
    # The longest first, so that "7 apples" is not taken for "7".
    words = [plain(option).casefold() for option in options]
    for option in sorted(filter(None, set(words)), key=len, reverse=True):
        if (shorter := _without(left, option)) != left:
            found |= {at for at, other in enumerate(words) if other == option}
            left = shorter
    return found


def _letters(text: str, letters: str) -> Iterator[str]:
    for match in _LETTER.finditer(text):
        letter = match.group(1)
        if letter.upper() not in letters:
            continue
        labelled = _LABELLED.search(text, max(0, match.start() - 16), match.start()) is not None
        if letter in "ai" and not labelled and text[match.end() : match.end() + 1] != ")":
            continue
        if letter in "AI" and not labelled and not _GOES_ON.match(text, match.end()):
            continue
        yield letter.upper()


def _without(text: str, words: str) -> str:
    """``text`` with every occurrence of ``words`` that is not part of a longer word or number blanked out."""
    pieces, start, at = [], 0, text.find(words)
    while at >= 0:
        end = at + len(words)
        before, after = text[max(0, at - 1) : at], text[end : end + 1]
        inside = (before.isalnum() and words[0].isalnum()) or (after.isalnum() and words[-1].isalnum())
        if words[-1].isdigit() and after in (".", ",") and text[end + 1 : end + 2].isdigit():
            inside = True
        if not inside:
            pieces.append(text[start:at] + "\0")
            start = end
        at = text.find(words, end)
    return "".join(pieces) + text[start:]


def numbers_named(text: str) -> set[Fraction]:
    """Magnitudes of all numbers in ``text``: digits, fractions, digits set apart, and English number words."""
    text = plain(text)
    found = set(_written(text)) | set(_written(_APART.sub("", text)))
    return found | set(_spelled(text.casefold()))


def _written(text: str) -> Iterator[Fraction]:
    for match in _NUMBER.finditer(text):
        whole, places, below = match.groups()
        if not whole and not places:
            continue
        digits = re.sub(r"[^0-9]", "", whole or "") or "0"
        value = Fraction(digits + (places or ""))
        yield value
        if below and int(below):
            yield value / int(below)
            yield Fraction(int(below))


def _spelled(text: str) -> Iterator[Fraction]:
    """Values of runs of number words, also where they are written together or with hyphens."""
    total, current, end = 0, None, -1
    for match in _NUMERAL.finditer(text):
        gap = text[end : match.start()]
        if current is not None and gap.strip(" -") not in ("", "and"):
            yield Fraction(total + current)
            total, current = 0, None
        word = match.group()
        if word in _SCALES:
            current = (1 if current is None else current) * _SCALES[word]
            if _SCALES[word] > 100:
                total, current = total + current, 0
        else:
            if current is not None and current % 100 and not (current % 100 >= 20 and current % 10 == 0):
                yield Fraction(total + current)
                total, current = 0, 0
            current = (current or 0) + _SMALL[word]
        end = match.end()
    if current is not None:
        yield Fraction(total + current)
