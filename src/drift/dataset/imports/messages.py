"""``messages``: what most chat tooling logs, one object per conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.dataset.imports.base import Logged, chat_messages, flag, name, number, on_last, replies


def messages(row: Mapping[str, Any], *, reward: str = "reward") -> Logged:
    """``{messages: [{role, content}, …], reward, id?, group_id? or prompt_id?, success?}``.

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
    )
