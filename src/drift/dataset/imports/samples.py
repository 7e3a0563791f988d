"""Rows that list several replies to one prompt, each with its reward: a row for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from drift.dataset.imports.base import BadRow, Fields, is_empty, show, unfolded
from drift.dataset.imports.columns import Columns
from drift.dataset.imports.messages import ASKS, ENDS

# Under which names replies are listed, and one reply of such a list has its text.
_LISTS = ("completions", "responses", "generations", "outputs", "candidates", "samples", "replies", "answers")
_TEXTS = (
    *("response", "completion", "text", "generated_text", "generation", "output", "reply", "answer"),
    *("message", "content"),
)
# Where most rows have one reply.
_SINGLE = ("completion", "response", "output")
_SPEAKERS = ("role", "from")
# Lists beside the replies whose entries are known by another name.
_SINGULAR = {"rewards": "reward", **{f"{end}s": end for end in ENDS}}


def samples_in(row: Fields) -> str | None:
    """Under which name a row lists replies to its prompt; ``None`` where it does not.

    What is listed as ``answers`` beside a reply is what was right.
    """
    single = row.there(*_SINGLE)
    if single:
        # A text that is a list as JSON is what a model said.
        value = row.values_by_name[single]
        return single if isinstance(value, list) and all(isinstance(each, str) for each in value) else None
    return next((name for name in _LISTS if _is_replies(unfolded(row.values_by_name.get(name)))), None)


def _is_replies(value: Any) -> bool:
    """Whether ``value`` is a list of replies, rather than of the messages of one conversation."""
    if is_empty(value) or not isinstance(value, list | tuple):
        return False
    speakers = {str(each.get("role", "assistant")) for each in value if isinstance(each, Mapping)}
    return all(isinstance(each, str | Mapping | list | None) for each in value) and not speakers & {"user", "system"}


def one_reply_each(row: Fields, name: str, ask: str, columns: Columns) -> list[tuple[str, Fields, Columns]]:
    """For each of the replies under ``name``: where it is, a row with it as ``completion``, and where that has what.

    What a reply is worth, its success and its end are its own, or those at its place in a list beside the replies.

    Raises:
        BadRow: there is one reward for all of them.
    """
    replies: Sequence[Any] = unfolded(row[name])
    # completions.score is the score of each.
    told = {key: getattr(columns, key).removeprefix(f"{name}.") for key in ("reward", "success", "id", "system")}
    inner = replace(columns, **told, notes=[note.removeprefix(f"{name}.") for note in columns.notes], messages="")
    shared = {key: value for key, value in row.values_by_name.items() if key not in (name, ask)}
    shared["prompt" if ask not in ASKS else ask] = row[ask]
    listed = {}
    for path in dict.fromkeys([*shared, *filter(None, told.values()), *inner.notes]):
        values = unfolded(Fields(row.values_by_name).path(path))
        if isinstance(values, list | tuple) and len(values) == len(replies) and not any(map(_holds_more, values)):
            listed[_SINGULAR.get(path, path)] = values
            if path in _SINGULAR:
                shared.pop(path)
                row.path(path)
    own = [_apart(reply) for reply in replies]
    for path in [told["reward"]] if told["reward"] else ["reward", "rewards"]:
        value = Fields(row.values_by_name).path(path)
        alone = _SINGULAR.get(path, path) not in listed and not is_empty(value) and len(replies) > 1
        if alone and any(is_empty(Fields(each).path(path)) for each in own):
            expected = f"a list with one for each of {len(replies)} replies in {name}"
            raise BadRow("turn_mismatch", f"{path}: got {show(value)}, expected {expected}")
    entries = [{path: values[at] for path, values in listed.items()} for at in range(len(replies))]
    return [
        (f"{name}.{at}", Fields({**shared, **beside, **reply}), inner)
        for at, (beside, reply) in enumerate(zip(entries, own, strict=True))
    ]


def _holds_more(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _apart(reply: Any) -> dict[str, Any]:
    """The fields of a reply, its text as ``completion``; a message is one as a whole."""
    if isinstance(reply, Mapping) and not any(name in reply for name in _SPEAKERS):
        text = next((key for key in _TEXTS if not is_empty(reply.get(key))), None)
        if text:
            return {**{key: value for key, value in reply.items() if key != text}, "completion": reply[text]}
    return {"completion": reply}
