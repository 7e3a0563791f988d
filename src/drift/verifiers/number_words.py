"""Numbers in English words."""

from __future__ import annotations

import re
from fractions import Fraction

_ONE_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_ONES = _ONE_NAMES.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: at for at, word in enumerate(_ONES)} | {word: 20 + 10 * at for at, word in enumerate(_TENS)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12} | {
    "lakh": 10**5,
    "crore": 10**7,
}


_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}


def number_in_words(text: str) -> Fraction | None:
    """The number that English words spell, as in "two hundred and five" or "two and a half"; ``None`` if none."""
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word]
    part = _PARTS.get({"halves": "half"}.get(words[-1], words[-1].removesuffix("s"))) if words else None
    if part is None:
        whole = _whole(words[1:] if words[:1] == ["a"] and len(words) > 1 else words)
        return None if whole is None else Fraction(whole)
    at = max((place for place, word in enumerate(words) if word == "and"), default=-1)
    counted = [word for word in words[at + 1 : -1] if word not in ("a", "an")]
    above = _whole(counted) if counted else 1
    before = _whole(words[:at]) if at >= 0 else 0
    # "Twenty-fifth" and "third" are places in an order.
    named = words[-1].endswith(("s", "half")) or (above == 1 and len(words) > 1)
    return None if above is None or before is None or not named else before + Fraction(above, part)


def _whole(words: list[str]) -> int | None:
    words = [word for word in words if word != "and"]
    negative = bool(words) and words[0] in ("minus", "negative")
    words = words[1:] if negative else words
    if not words or len(words) > 20 or any(word not in _SMALL and word not in SCALES for word in words):
        return None
    total = group = 0
    last = 10**3
    for word in words:
        if word in _SMALL:
            value = _SMALL[word]
            if value >= last:
                return None
            group, last = group + value, (10 if value >= 20 else 0)
        elif word in ("hundred", "dozen"):
            group, last = max(group, 1) * SCALES[word], 100
        else:
            total, group, last = total + max(group, 1) * SCALES[word], 0, 10**3
    return -(total + group) if negative else total + group
