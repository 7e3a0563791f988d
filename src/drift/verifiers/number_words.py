"""Whole numbers in English words."""

from __future__ import annotations

import re

_ONE_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_ONES = _ONE_NAMES.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: at for at, word in enumerate(_ONES)} | {word: 20 + 10 * at for at, word in enumerate(_TENS)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}


def number_in_words(text: str) -> int | None:
    """The whole number that English words spell, as in "two hundred and five"; ``None`` if they spell none."""
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word and word != "and"]
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
