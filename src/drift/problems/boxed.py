"""Reading the answer out of LaTeX: the last box."""

from __future__ import annotations

import re

# One pass over commands and braces; an escaped brace is no brace.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{…}`` of ``text`` holds, stripped; ``None`` if there is none. Linear time."""
    opened: list[int | None] = []  # where the content of each open brace starts, if it belongs to a box
    found: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.startswith("\\boxed"):
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None:
                found = (start, match.start())
    return None if found is None else text[found[0] : found[1]].strip()
