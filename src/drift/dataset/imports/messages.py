"""``messages``: what most chat tooling logs, one object per conversation; ``trajectories``: rollouts of drift itself.

The latter were recorded as text alone, or for another model's tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from drift.dataset.imports.base import BadRow, Logged, chat_messages, flag, name, number, on_last, replies, show


def messages(row: Mapping[str, Any], *, reward: str = "reward") -> Logged:
    """``{messages: [{role, content}, …], reward, id?, group_id? or prompt_id?, success?}``.

    The assistant's messages may have ``reasoning_content`` (or ``thinking``), and ``finish_reason``: one that is
    ``length`` was cut off, and no end is trained after it.

    Args:
        row: one conversation.
        reward: the field that holds the reward of the whole conversation.
    """
    found = chat_messages(row.get("messages"))
    count = replies(found)
    return Logged(
        messages=found,
        rewards=on_last(number(row, reward), count),
        success=flag(row, "success"),
        answers=(None,) * count,
        group_id=name(row, "group_id", "prompt_id"),
        id=name(row, "id"),
        cut_off=tuple(said.get("finish_reason") == "length" for said in row["messages"] if said["role"] == "assistant"),
    )


def trajectories(row: Mapping[str, Any]) -> Logged:
    """A row of docs/artifacts.md, from a directory of trajectories: what was said and how it was judged is kept."""
    if row.get("error"):
        raise BadRow("failed", f"its environment failed: {show(row['error'])}")
    found, turns = chat_messages(row.get("messages")), row.get("turns")
    if not isinstance(turns, list | tuple) or len(turns) != replies(found):
        raise BadRow("turn_mismatch", f"turns: got {show(turns)}, expected one for each of {replies(found)} replies")
    spoken = (message for message in found if message["role"] == "assistant")
    for message, turn in zip(spoken, turns, strict=True):
        if turn.get("thinking"):
            message["reasoning_content"] = turn["thinking"]
    return Logged(
        messages=found,
        rewards=tuple(float(turn["reward"]) for turn in turns),
        success=turns[-1]["success"],
        answers=tuple(turn["answer"] for turn in turns),
        group_id=name(row, "group_id"),
        id=name(row, "id"),
        info=tuple(json.loads(turn["info"]) for turn in turns),
        # Shards written before there was this column hold graded turns alone.
        graded=tuple(turn.get("graded", True) for turn in turns),
        cut_off=tuple(turn["finish_reason"] == "length" for turn in turns),
    )
