"""``trajectories``: rollouts of drift itself that were recorded as text alone, or for another model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from drift.dataset.imports.base import BadRow, Logged, name_of, show
from drift.dataset.schema import messages_of
from drift.types import Message


def trajectories(row: Mapping[str, Any]) -> Logged:
    """A row of docs/artifacts.md, from a directory of trajectories: what was said and how it was judged is kept."""
    try:
        return _logged(row)
    except BadRow:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {show(str(error))}"
        raise BadRow("bad_field", f"expected a trajectory as in docs/artifacts.md, got another row ({what})") from error


def _logged(row: Mapping[str, Any]) -> Logged:
    if row.get("error"):
        raise BadRow("failed", f"its environment failed: {show(row['error'])}")
    messages, turns = messages_of(row), row.get("turns")
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRow("turn_mismatch", f"turns: got {show(turns)}, expected one for each reply")
    places: list[int] = []
    at = len(messages)
    for turn in reversed(turns):
        # An opening, and what an environment says, may hold messages of the assistant that are no replies.
        at -= 1 + len(turn["messages"])
        places.insert(0, at)
    if at < 1 or any(messages[place]["role"] != "assistant" for place in places):
        raise BadRow("turn_mismatch", f"turns: {len(turns)}, expected one for each reply of {len(messages)} messages")
    said: list[Message] = [*messages]
    for place, turn in zip(places, turns, strict=True):
        if turn.get("thinking"):
            said[place] = {**said[place], "reasoning_content": turn["thinking"]}
    weights = (turn.get("loss_weight") for turn in turns)
    return Logged(
        messages=tuple(said),
        rewards=tuple(float(turn["reward"]) for turn in turns),
        success=turns[-1].get("success"),
        answers=tuple(turn.get("answer") for turn in turns),
        group_id=name_of(row.get("group_id"), "group_id"),
        id=name_of(row.get("id"), "id"),
        info=tuple(json.loads(turn["info"]) for turn in turns),
        # Shards written before there was this column hold graded turns alone.
        graded=tuple(turn.get("graded", True) for turn in turns),
        cut_off=tuple(turn["finish_reason"] == "length" for turn in turns),
        replies=tuple(places),
        loss_weights=tuple(1.0 if weight is None else weight for weight in weights),
        tools=tuple(json.loads(row.get("tools") or "[]")),
    )
