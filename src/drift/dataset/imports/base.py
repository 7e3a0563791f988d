"""What a reader of logged conversations gives, and the checks that all of them share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from drift.errors import DatasetError
from drift.types import Message

# The group of a conversation whose row is one group: the import names it by its line.
OF_ITS_ROW = "\0row"
# Under which names an entry of a list of scores has what it says.
_VALUES = ("value", "score", "stringValue", "label")


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


class PassedOver(BadRow):
    """A row that is no conversation, or one that another holds: no fault, counted and left out."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """One logged conversation, before it has ids.

    Attributes:
        messages: the conversation, as chat messages.
        rewards: one for each reply.
        success: whether it ended with the task solved; ``None`` if the log does not say.
        answers: the normalised answer of each reply; ``None`` where the log has none.
        group_id: the prompt that it shares with others; ``None`` takes a hash of what opens the conversation.
        id: its own name in the log, if it has one.
        info: anything else worth keeping, for each reply (JSON values only).
        graded: whether an answer was asked for, for each reply; empty where the log has no answers.
        cut_off: whether it ran out of tokens, for each reply; empty where none did.
        replies: which messages are replies; ``None`` takes every one of the assistant's. What else the assistant said
            (a greeting, an example) is seen and not trained.
        loss_weights: what the log says of the loss of each reply; empty where it says nothing.
        tools: what the assistant could call.
        remarks: what the import must count, each under its own name (docs/artifacts.md lists them).
        unused: fields of the row that hold something and were not read.
        part: which conversation of its row it is, where there are several.
        fault: why its rewards can't be used; told only where no other row holds the conversation.
        grows: rows of this kind may be logged once for each reply, so that one may begin another.
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
    replies: tuple[int, ...] | None = None
    loss_weights: tuple[float, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    part: str | None = None
    fault: BadRow | None = None
    grows: bool = False

    @property
    def reply_places(self) -> tuple[int, ...]:
        """Index of each reply in ``messages``."""
        if self.replies is not None:
            return self.replies
        return tuple(at for at, message in enumerate(self.messages) if message["role"] == "assistant")


Reader = Callable[[Mapping[str, Any]], Logged | Sequence[Logged | BadRow]]


class Fields(Mapping[str, Any]):
    """An object of a log that knows which of its fields were read, so that none is lost in silence.

    What is empty (null, NaN, no text, no elements) is not there.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values_by_name = values
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __contains__(self, name: object) -> bool:
        return name in self.values_by_name

    def there(self, *names: str) -> str | None:
        """The first of ``names`` under which there is something, without reading it."""
        values = self.values_by_name
        return next((name for name in names if name in values and not is_empty(values[name])), None)

    def take(self, *names: str) -> Any:
        """What is under the first of ``names`` that holds something; ``None`` where none does."""
        name = self.there(*names)
        return None if name is None else self[name]

    def names(self) -> str:
        """Names of the fields that hold something, for a message."""
        return ", ".join(str(name) for name, value in self.values_by_name.items() if not is_empty(value))

    def path(self, path: str) -> Any:
        """What lies under a name, or under names joined with dots; ``None`` where there is nothing.

        A key that is spelled with the dot comes first. In a list of objects, the one of that ``name`` (or ``key``) is
        meant, and its ``value`` (or ``score``, or words).
        """
        found = _under(self.values_by_name, path)
        self._read.add(path)
        return found

    def read_like(self, other: Fields) -> None:
        """Count as read what was read of ``other``, which holds the same fields."""
        self._read |= other._read

    def paths_below(self, name: str) -> list[str]:
        """The paths that were read of what lies under ``name``."""
        return [path.removeprefix(f"{name}.") for path in self._read if path.startswith(f"{name}.")]

    def unread(self) -> list[str]:
        """Names of the fields that hold something and were not read; of those read in part, with a dot."""
        unread = []
        for name, value in self.values_by_name.items():
            if name in self._read or is_empty(value):
                continue
            inner = [path for path in self._read if path.startswith(f"{name}.")]
            if not inner or not isinstance(value, Mapping):
                unread += [] if inner else [name]
                continue
            places = (f"{name}.{key}" for key, each in value.items() if not is_empty(each))
            unread += [at for at in places if not any(path == at or path.startswith(f"{at}.") for path in inner)]
        return unread


def _under(value: Any, path: str) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value = json_or_none(value)
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        for end in (at for at, letter in enumerate(path) if letter == "."):
            if path[:end] in value:
                return _under(value[path[:end]], path[end + 1 :])
    elif isinstance(value, list | tuple):
        head, _, rest = path.partition(".")
        for each in value:
            if isinstance(each, Mapping) and path in (each.get("name"), each.get("key")):
                return next((each[key] for key in _VALUES if not is_empty(each.get(key))), None)
        if head.isdigit() and int(head) < len(value):
            return _under(value[int(head)], rest) if rest else value[int(head)]
        if len(value) == 1:
            return _under(value[0], path)
    return None


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, NaN, no text, no elements."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str | bytes | list | tuple | dict) and not value)
    )


def json_or_none(text: str | bytes) -> Any:
    """The JSON value that ``text`` is; ``None`` where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def unfolded(value: Any) -> Any:
    """``value``, or what it holds where it is a list or an object written as text, as tables have them."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        inner = json_or_none(value)
        return value if inner is None else inner
    return value


def whole_text(value: str, where: str) -> str:
    """``value``, which must be text that UTF-8 can write."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("lone_surrogate", f"{where}: half of a UTF-16 pair at character {error.start}") from error
    return value


def plain_json(value: Any, where: str) -> Any:
    """``value`` as JSON values that can be written; what JSON has not (bytes, dates) becomes text."""
    return json.loads(whole_text(json.dumps(value, ensure_ascii=False, default=str), where))


def text(value: object, where: str) -> str:
    """``value`` as text that is not empty and can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow("content_not_text", f"{where}: got {show(value)}, expected text")
    if not value.strip():
        raise BadRow("empty_content", f"{where}: got {show(value)}, expected text that is not empty")
    return whole_text(value, where)


def name_of(value: Any, where: str) -> str | None:
    """A name: text, or a number as text (1.0, which tables make of 1, is 1), or anything else as JSON."""
    if is_empty(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    written = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return whole_text(written, where)


def with_notes(logged: Logged, noted: Mapping[str, Any]) -> Logged:
    """With what else is to be kept of a conversation in the ``info`` of its last reply, but for what is there."""
    info = list(logged.info or [{}] * len(logged.rewards))
    info[-1] = {**{name: value for name, value in noted.items() if value is not None}, **info[-1]}
    return replace(logged, info=tuple(info))


def replies(messages: Sequence[Message]) -> int:
    """Number of the assistant's messages."""
    return sum(message["role"] == "assistant" for message in messages)


def on_last(reward: float, count: int) -> tuple[float, ...]:
    """A whole conversation's reward, given to the last of ``count`` replies."""
    return (0.0,) * (count - 1) + (reward,)


def show(value: object) -> str:
    """``value`` for a message, cut short and safe to print."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
