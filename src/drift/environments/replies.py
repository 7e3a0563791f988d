"""A user's own replies beside what is read from them: a look at a task before hours are spent on it."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.environments.questions import check_answer
from drift.errors import ConfigError, DatasetError, require
from drift.event_loop import run_to_end
from drift.keywords import by_fields
from drift.verifiers import Verification, Verifier, make_verifier
from drift.verifiers.reading import FALLBACKS, read

# Characters of a reply and of an answer in a row of the table.
_REPLY, _ANSWER = 60, 24
# Checks in flight at once.
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class ReadReply:
    """One reply as it is read.

    Attributes:
        reply: the whole reply.
        gold: the right answer; empty if none was given.
        answer: what was read as its answer, as it stands there; ``None`` if nothing was.
        where: the place it was read from (``drift.verifiers.reading``), ``words`` for an option named in a sentence,
            or ``unread``.
        verdict: ``right``, ``wrong``, ``unparseable`` or ``unreadable gold``; empty without a gold answer.
        reason: why it is unparseable, or what is wrong with the gold answer.
    """

    reply: str
    gold: str
    answer: str | None
    where: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ReadReplies:
    """What ``verify`` found: ``rows``; as text a table of the first ``shown``, and sentences on all."""

    rows: tuple[ReadReply, ...]
    shown: int

    def __str__(self) -> str:
        table = [f"{'':>5} {'verdict':<12}{'read from':<12}{'answer':<{_ANSWER}} {'gold':<{_ANSWER}} end of the reply"]
        for number, row in enumerate(self.rows[: self.shown], 1):
            cells = (_short(row.answer or "–", _ANSWER), _short(row.gold, _ANSWER), _short(row.reply, _REPLY, end=True))
            table.append(
                f"{number:>5} {row.verdict or '–':<12.12}{row.where:<12}"
                f"{cells[0]:<{_ANSWER}} {cells[1]:<{_ANSWER}} {cells[2]}"
            )
        return "\n".join([*table, *self.sentences()])

    def sentences(self) -> list[str]:
        """How many replies were read from where, how they were judged, and what stands against judging the others."""
        places = Counter(row.where for row in self.rows)
        lines = [
            f"{len(self.rows)} replies; an answer is read from {len(self.rows) - places['unread']} of them: "
            + ", ".join(f"{place} {count}" for place, count in places.most_common())
        ]
        verdicts = Counter(row.verdict for row in self.rows if row.verdict)
        if verdicts:
            lines.append("Verdicts: " + ", ".join(f"{name} {count}" for name, count in verdicts.most_common()))
        reasons = Counter(row.reason for row in self.rows if row.reason)
        if reasons:
            lines.append(
                "Unparseable because: " + ", ".join(f"{why} ({count})" for why, count in reasons.most_common())
            )
        return lines


def _short(text: str, width: int, *, end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    return "…" + line[1 - width :] if end else line[: width - 1] + "…"


@by_fields()
def verify(
    file: Any,
    *,
    verifier: str = "",
    verifier_settings: Mapping[str, Any] | None = None,
    strict: bool = False,
    fallback: str = "",
    show: int = 100,
) -> ReadReplies:
    """Show replies beside what is read as their answer, from where, and whether it is right.

    Args:
        file: JSON Lines, each an object with reply (or messages, whose last is the reply) and, where there is one, gold
            (or answer) and options; or a text file with a reply in each line. From Python also a list of such objects.
        verifier: math, numeric, exact, choice or a registered one; choice for rows with options, else math.
        verifier_settings: settings of the verifier.
        strict: read answers from a tag or a box alone, and not from what a reply says in words.
        fallback: last_number takes the last number of a reply that gives no answer; nothing by default.
        show: how many rows the table shows.
    """
    require(fallback in FALLBACKS, "fallback", fallback, "last_number, or nothing")
    rows = list(_rows(file))
    names = {_verifier_of(row, verifier) for row in rows}
    verifiers = {name: make_verifier(name, verifier_settings or {}) for name in names}

    async def all_checked() -> list[ReadReply]:
        checked: list[ReadReply] = []
        for at in range(0, len(rows), _CHUNK):
            part = rows[at : at + _CHUNK]
            checked += await asyncio.gather(
                *(_checked(row, verifiers[_verifier_of(row, verifier)], strict, fallback) for row in part)
            )
        return checked

    return ReadReplies(rows=tuple(run_to_end(all_checked())), shown=show)


def _verifier_of(row: Mapping[str, Any], chosen: str) -> str:
    return chosen or ("choice" if row["options"] else "math")


async def _checked(row: Mapping[str, Any], verifier: Verifier, strict: bool, fallback: str) -> ReadReply:
    reply, gold = row["reply"], row["gold"]
    found = read(reply, strict=strict, fallback=fallback)
    place, answer = (found.where, found.answer) if found else ("unread", None)
    if not gold:
        return ReadReply(reply=reply, gold="", answer=answer, where=place, verdict="")
    try:
        checked = await check_answer(verifier, reply, gold, row["options"], strict=strict, fallback=fallback)
    except ConfigError as error:
        return ReadReply(
            reply=reply, gold=gold, answer=answer, where=place, verdict="unreadable gold", reason=str(error)
        )
    if found is None and checked.answer is not None:
        place, answer = "words", checked.answer
    return ReadReply(
        reply=reply, gold=gold, answer=answer, where=place, verdict=checked.verdict, reason=_reason(checked)
    )


def _reason(checked: Verification) -> str:
    return checked.reason if checked.answer is None else ""


def _rows(file: Any) -> Iterable[dict[str, Any]]:
    if not isinstance(file, (str, os.PathLike)):
        for number, row in enumerate(file, 1):
            yield _row(row, f"row {number}")
        return
    path = Path(file)
    if not path.is_file():
        raise DatasetError(f"{path}: no file there. Give replies as JSON Lines, or a text file with one in each line.")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    as_json = all(line.lstrip()[:1] in '{"' for line in lines[:1])
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if as_json else line
        except ValueError as error:
            raise DatasetError(
                f"{path}: row {number} is no JSON ({error}). Give one JSON object in each line."
            ) from None
        yield _row(row, f"{path}: row {number}")


def _row(row: Any, where: str) -> dict[str, Any]:
    row = {"reply": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise DatasetError(
            f"{where}: got {type(row).__name__}, expected an object with reply, and gold if there is one."
        )
    messages = row.get("messages") or [{}]
    reply = row.get("reply", messages[-1].get("content") if isinstance(messages[-1], Mapping) else None)
    if not isinstance(reply, str):
        known = ", ".join(sorted(map(str, row))) or "nothing"
        raise DatasetError(f"{where}: no reply in it. It has {known}; give reply, or messages that end with the reply.")
    gold = row.get("gold", row.get("answer", ""))
    options: Sequence[Any] = row.get("options") or ()
    return {"reply": reply, "gold": "" if gold is None else str(gold), "options": tuple(map(str, options))}
