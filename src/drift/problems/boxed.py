"""Reading the answer out of LaTeX: the last box."""

from __future__ import annotations

import re

# One pass over commands and braces; an escaped brace is no brace.
BOX = r"(?:\\{1,2}|\x08|(?<![A-Za-z\\]))(?:b?oxed|fbox|framebox)(?![A-Za-z])\s*"
_BARE = r"\\[dt]?frac\s?(?:\{[^{}]{1,40}\}\{[^{}]{1,40}\}|\d\d)|[-+]?\d[^\s$\\{}]{0,40}|(?<=\s)[-+]?[^\s$\\{}]{1,40}"
_BRACES = re.compile(rf"{BOX}\{{|\\(?:boxed|fbox)(?![A-Za-z])\s{{0,3}}(?P<bare>{_BARE})|\\.|[{{}}]", re.DOTALL)


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every complete ``\boxed{…}``, ``\fbox{…}`` or ``\boxed 7`` that stands in no other one: start, end and content.

    In the order of their ends. Linear time.
    """
    opened: list[tuple[int, int] | None] = []  # of each open brace, where its box and the content start
    found: list[tuple[int, int, str]] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if match["bare"]:
            found.append((match.start(), match.end(), match["bare"].rstrip(".,;")))
        elif len(token) > 2:
            opened.append((match.start(), match.end()))
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            box = opened.pop()
            if box is not None:
                while found and found[-1][0] > box[0]:
                    found.pop()
                found.append((box[0], match.end(), text[box[1] : match.start()].strip()))
    return found


def boxed(text: str) -> str | None:
    r"""What the last complete box of ``text`` holds, stripped; ``None`` if there is none."""
    found = boxes(text)
    return found[-1][2] if found else None
