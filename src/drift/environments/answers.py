"""Reading an answer out of a reply: the ``<answer>`` tag, and whole numbers written in ordinary ways."""

from __future__ import annotations

import re

# A tag within the answer ends the attempt, so that a reply of open tags alone is read in linear time.
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
# At most 18 digits: beyond that no task here has an answer, and int() on a million digits is an attack.
_WHOLE = re.compile(r"([+-]?)\s*(\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.0*)?")


def extract_answer(reply: str) -> str | None:
    """The text of the last ``<answer>…</answer>`` in ``reply``, stripped; ``None`` if there is none."""
    found = _ANSWER.findall(reply)
    return found[-1].strip() if found else None


def parse_whole_number(text: str) -> int | None:
    """The integer that ``text`` is, allowing a sign, thousands separators and ``.0``; ``None`` if it is not one."""
    match = _WHOLE.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None:
        return None
    sign, digits = match.groups()
    return int(sign + digits.replace(",", ""))
