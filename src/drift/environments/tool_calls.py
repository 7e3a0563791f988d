"""Tool calls written in a reply: reading them strictly, comparing them by value, and MTU-Bench's figures."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from drift.problems.mtu_bench import ToolCall

MOST_CALLS = 32
# Characters of JSON in one reply, and how deep it may be nested: far beyond any call here, and short of any harm.
LONGEST = 20_000
DEEPEST = 32

_TAG = re.compile(r"(</?tool_call>)")
# Possessive, and with a closing quote that may be missing, so that no text is read twice.
_NESTING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
# A leading zero makes a code or a time of day, not a number.
_NUMBER = re.compile(r"([+-]?)(0|[1-9][0-9]{0,17})(?:\.([0-9]{1,18}))?")

# A call in the form it is compared in: the name and the arguments as canonical JSON.
Canonical = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ParsedReply:
    """What a reply calls.

    Attributes:
        calls: the calls, in order; empty for a reply in words; ``None`` if it could not be read.
        reason: why it could not be: ``empty``, ``tags``, ``too_many``, ``too_long``, ``too_deep``, ``not_json`` or
            ``not_a_call``; empty otherwise.
    """

    calls: tuple[ToolCall, ...] | None
    reason: str = ""


def parse_calls(reply: str) -> ParsedReply:
    """Read the calls of a reply, each ``<tool_call>{"name": "…", "arguments": {…}}</tool_call>``.

    Inside the tags nothing but JSON is read, an object of those two keys; text outside of them is the assistant's own.
    Takes linear time on any text and raises nothing.
    """
    try:
        return ParsedReply(calls=tuple(map(_call, _bodies(reply))))
    except _Unreadable as error:
        return ParsedReply(calls=None, reason=str(error))


class _Unreadable(Exception):
    """A reply can't be read; the message is the reason."""


def _bodies(reply: str) -> list[str]:
    """What stands between the tags."""
    if not reply.strip():
        raise _Unreadable("empty")
    pieces = _TAG.split(reply)
    tags, bodies = pieces[1::2], pieces[2::4]
    if tags != ["<tool_call>", "</tool_call>"] * len(bodies):
        raise _Unreadable("tags")
    if len(bodies) > MOST_CALLS:
        raise _Unreadable("too_many")
    if sum(map(len, bodies)) > LONGEST:
        raise _Unreadable("too_long")
    return bodies


def _call(body: str) -> ToolCall:
    depth = 0
    for token in _NESTING.finditer(body):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        if depth > DEEPEST:
            raise _Unreadable("too_deep")
    try:
        call = json.loads(body, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except ValueError:
        raise _Unreadable("not_json") from None
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        raise _Unreadable("not_a_call")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise _Unreadable("not_a_call")
    return ToolCall(name=name.strip(), arguments=arguments)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def canonical(value: Any) -> Any:
    """A JSON value in the form it is compared in.

    Numbers, and strings that are one, by value; strings without case and spacing; booleans as the words ``true`` and
    ``false``, because the recorded calls write either; objects in the order of their keys; lists in their own.
    """
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        whole, _, rest = format(Decimal(repr(value)), "f").partition(".")
        return _number("-" if whole.startswith("-") else "", whole.lstrip("-"), rest)
    if isinstance(value, str):
        text = " ".join(value.split()).casefold()
        number = _NUMBER.fullmatch(text)
        return text if number is None else _number(number[1], number[2], number[3] or "")
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in sorted(value.items())}
    return [canonical(item) for item in value]


def _number(sign: str, whole: str, rest: str) -> str:
    rest = rest.rstrip("0")
    text = f"{whole}.{rest}" if rest else whole
    return text if sign != "-" or text == "0" else f"-{text}"


def canonical_calls(calls: Sequence[ToolCall]) -> tuple[Canonical, ...]:
    """Calls in the form they are compared in."""
    return tuple((call.name, json.dumps(canonical(call.arguments), separators=(",", ":"))) for call in calls)


@dataclass(frozen=True, kw_only=True)
class TurnScore:
    """MTU-Bench's figures of one reply.

    Attributes:
        right: the calls are the right ones, in order (the benchmark's parameter selection, and a turn's success).
        tool_selection: at least their tools are.
        tool_number: calls that are right, of all that are in the gold or in the reply (Jaccard).
        tool_order: ``cos(π/2 · i/P) · m/G``: m the longest run of right calls in the gold's order, which starts at i of
            the reply's P calls; G calls are in the gold.
    """

    right: bool
    tool_selection: bool
    tool_number: float
    tool_order: float


def score_turn(given: Sequence[Canonical] | None, gold: Sequence[Canonical]) -> TurnScore:
    """Score the calls of one reply; ``None`` stands for a reply that can't be read, which has no call and is wrong.

    The published scorer puts the reply's calls into the gold's order and drops calls of other tools before it compares,
    so that neither costs anything; here both do.
    """
    if given is None:
        return TurnScore(right=False, tool_selection=False, tool_number=0.0, tool_order=0.0)
    shared, either = Counter(given) & Counter(gold), Counter(given) | Counter(gold)
    return TurnScore(
        right=list(given) == list(gold),
        tool_selection=[name for name, _ in given] == [name for name, _ in gold],
        tool_number=shared.total() / either.total() if either else 1.0,
        tool_order=_order(given, gold),
    )


def _order(given: Sequence[Canonical], gold: Sequence[Canonical]) -> float:
    if list(given) == list(gold):
        return 1.0
    if not given or not gold:
        return 0.0
    # Of equally long runs that which starts first in the gold, then in the reply.
    run = difflib.SequenceMatcher(None, gold, given, autojunk=False).find_longest_match()
    return math.cos(math.pi / 2 * (run.b / len(given))) * run.size / len(gold)


def score_dialogue(first_N: Sequence[TurnScore], turns: int) -> dict[str, float]:
    """MTU-Bench's figures of one dialogue of ``turns`` user turns, from the first reply to each; those that were not
    reached count as wrong.

    ``success``: all right. ``turn_success``: share right. ``soft_turn_success``: the mean of ``1 − e^{−(j−i)}`` over
    turns j that are right, i the last one before that is not (1 where there is none), 0 where wrong.
    ``task_process``: share of turns before the first that is wrong.
    """
    right = [score.right for score in first_N] + [False] * (turns - len(first_N))
    soft, wrong_at = 0.0, None
    for at, correct in enumerate(right):
        if not correct:
            wrong_at = at
        else:
            soft += 1.0 if wrong_at is None else 1 - math.exp(wrong_at - at)
    return {
        "success": float(all(right)),
        "turn_success": sum(right) / turns,
        "soft_turn_success": soft / turns,
        "task_process": (right.index(False) if not all(right) else turns) / turns,
    }
