"""Conversations as one page that needs no server, chosen as an address chooses them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from drift.errors import ConfigError, require, unknown_name
from drift.viewer.library import Library
from drift.viewer.pages import CONVERSATION, Pages


def export_page(root: Path, select: str, *, rows: int, model: str = "") -> str:
    """The page of the conversations in ``root`` that ``select`` asks for; see ``drift.view``.

    Raises:
        ConfigError: a key or a value in ``select`` that can't be, or no such conversation.
        DatasetError: there is nothing in ``root``, or it can't be read.
    """
    require(rows >= 1, "rows", rows, "a whole number ≥ 1")
    query = dict(parse_qsl(select.lstrip("?"), keep_blank_values=True))
    # An address that was copied may say more, which changes nothing here.
    known = (*CONVERSATION, "id", "page", "colour")
    for key in query:
        if key not in known:
            raise unknown_name("key", key, known, where="select")
    library = Library(root)
    found = library.find(query, patience=float("inf"))
    places = found.order[:rows].tolist()
    if "id" in query:
        at = found.columns.place_of(query["id"])
        places = [] if at is None else [at]
    if not places:
        raise ConfigError(f"select: got {select!r}, expected what some of {found.data.name}'s conversations are.")
    return Pages(library, model=model).export(found, places)
