"""Templates in which nothing that a model or a log said is ever markup, nor moves what is around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Control characters but for line breaks and tabs, halves of surrogate pairs, what turns the direction of text around,
# other line ends, what has no width, and letters of the plane that nobody sees.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    r"""``text`` with what can't be seen, or moves what is around it, as ``\x1b`` or ``\u202e``."""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def link(place: str, query: Mapping[str, Any] = {}, /, **changes: Any) -> str:
    """An address below the viewer's own: ``place`` with ``query`` and changes of it; what is empty is left out."""
    found = {key: value for key, value in {**query, **changes}.items() if value not in ("", None)}
    return f"{place}?{urlencode(found, errors='replace')}" if found else place


def number(value: Any) -> str:
    """A number as a person reads it; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"


def templates() -> Environment:
    """The viewer's templates."""
    found = Environment(
        loader=PackageLoader("drift.viewer"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "zip": zip}
    found.globals["link"] = link
    # Compiled now, so that no page waits for it.
    for name in found.list_templates():
        found.get_template(name)
    return found
