"""Single conversations, good or bad, for KTO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from drift.exports.config import ExportConfig
from drift.exports.conversations import Conversation, plain


def labelled(group: Sequence[Conversation], config: ExportConfig, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """``kto``: each conversation from its first reply to its last, and whether it is a good one."""
    for conversation in group:
        good = conversation.trajectory.success if config.threshold is None else conversation.value > config.threshold
        counts["good" if good else "bad"] += 1
        part = conversation.part(0, len(conversation.reply_at) - 1)
        row: dict[str, Any] = {
            "prompt": plain(conversation.history(0)),
            "completion": plain(part.messages),
            "label": good,
            "group_id": conversation.trajectory.group_id,
            "completion_id": conversation.trajectory.id,
            "completion_return": conversation.value,
        }
        if part.token_ids is not None:
            row["sampled_ids"] = {
                "prompt": list(conversation.history_ids(0)),
                "completion": part.token_ids,
                "completion_mask": list(map(int, part.sampled or ())),
            }
        yield row
