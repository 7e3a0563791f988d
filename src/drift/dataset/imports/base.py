"""What a reader of logged conversations gives, and the checks that all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from drift.errors import DatasetError
from drift.types import Message, Role

ROLES: tuple[str, ...] = get_args(Role)


class BadRow(DatasetError):
    """A row that can't become a trajectory; it is counted and written down, and the others go on.

    Args:
        reason: the kind of fault, under which rows are counted (docs/artifacts.md lists them).
        detail: what was found in this row, and what was expected.
        line: the row's number, from 1; 0 until it is known.
    """

    def __init__(self, reason: str, detail: str, line: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.line = reason, detail, line


@dataclass(frozen=True, kw_only=True)
class Logged:
    """One logged conversation, before it has ids.

    Attributes:
        messages: the conversation, as chat messages.
        rewards: one for each assistant message.
        success: whether it ended with the task solved; ``None`` if the log does not say.
        answers: the normalised answer of each assistant message; ``None`` where the log has none.
        group_id: the prompt that it shares with others; ``None`` takes a hash of what opens the conversation.
        id: its own name in the log, if it has one.
        info: anything else worth keeping, for each assistant message (JSON values only).
        graded: whether an answer was asked for, for each assistant message; empty where the log has no answers.
        cut_off: whether it ran out of tokens, for each assistant message; empty where none did.
    """

    messages: tuple[Message, ...]
    rewards: tuple[float, ...]
    success: bool | None
    answers: tuple[str | None, ...]
    group_id: str | None = None
    id: str | None = None
    info: tuple[Mapping[str, Any], ...] = ()
    graded: tuple[bool, ...] = ()
    cut_off: tuple[bool, ...] = ()


Reader = Callable[[Mapping[str, Any]], Logged]


def chat_messages(value: object) -> tuple[Message, ...]:
    """``value`` as chat messages that an import can use; raises ``BadRow`` where it is not."""
    if not isinstance(value, list | tuple) or not value:
        raise BadRow("no_messages", f"messages: got {show(value)}, expected a list of messages with role and content")
    found: list[Message] = []
    for at, message in enumerate(value):
        where = f"messages[{at}]"
        if not isinstance(message, Mapping):
            raise BadRow("no_messages", f"{where}: got {show(message)}, expected an object with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadRow("unknown_role", f"{where}.role: got {show(role)}, expected one of {', '.join(ROLES)}")
        if message.get("tool_calls") or message.get("function_call"):
            raise BadRow("tool_calls", f"{where}: calls tools outside its text; write the call into content")
        made: Message = {"role": role, "content": text(content, f"{where}.content")}
        thought = message.get("reasoning_content") or message.get("thinking")
        if thought and role == "assistant":
            made["reasoning_content"] = text(thought, f"{where}.reasoning_content")
        found.append(made)
    first = next((at for at, message in enumerate(found) if message["role"] == "assistant"), None)
    if first is None:
        raise BadRow("no_assistant", f"none of {len(found)} messages is the assistant's; there is nothing to train")
    if first == 0:
        raise BadRow("starts_with_assistant", "messages[0] is the assistant's, and there is no prompt before it")
    return tuple(found)


def replies(messages: tuple[Message, ...]) -> int:
    """Number of assistant messages."""
    return sum(message["role"] == "assistant" for message in messages)


def text(value: object, where: str) -> str:
    """``value`` as text that is not empty and can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow("content_not_text", f"{where}: got {show(value)}, expected text")
    if not value.strip():
        raise BadRow("empty_content", f"{where}: got {show(value)}, expected text that is not empty")
    return _whole(value, where)


def number(row: Mapping[str, Any], key: str, where: str = "") -> float:
    """The finite number under ``key``, which must be there."""
    place = where or key
    value = row.get(key)
    if value is None:
        raise BadRow("reward_missing", f"{place}: nothing there, expected a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow("reward_not_a_number", f"{place}: got {show(value)}, expected a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise BadRow("reward_not_a_number", f"{place}: got {show(value)}, expected a finite number")
    return found


def name(row: Mapping[str, Any], *keys: str) -> str | None:
    """The name under the first of ``keys`` that is there: text, or a whole number written as text."""
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise BadRow("bad_field", f"{key}: got {show(value)}, expected a text or a whole number")
        return _whole(str(value), key)
    return None


def flag(row: Mapping[str, Any], key: str) -> bool | None:
    """The truth value under ``key``; ``None`` if there is none."""
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadRow("bad_field", f"{key}: got {show(value)}, expected true or false")
    return value


def on_last(reward: float, count: int) -> tuple[float, ...]:
    """A whole conversation's reward, given to the last of ``count`` replies."""
    return (0.0,) * (count - 1) + (reward,)


def show(value: object) -> str:
    """``value`` for a message, cut short and safe to print."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _whole(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("lone_surrogate", f"{where}: half of a UTF-16 pair at character {error.start}") from error
    return value
