"""Trajectories as Arrow rows and back (docs/artifacts.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from drift.types import Completion, Message, Step, Trajectory, Turn

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TURN = pa.struct(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("done", pa.bool_()),
        ("success", pa.bool_()),
        ("answer", pa.string()),
        ("messages", _MESSAGES),
        ("info", pa.string()),
        ("graded", pa.bool_()),
        ("thinking", pa.string()),
        ("loss_weight", pa.float64()),
        ("extras", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task_id", pa.string()),
        ("group_id", pa.string()),
        ("sample", pa.int32()),
        ("policy", pa.string()),
        ("seed", pa.int64()),
        ("messages", _MESSAGES),
        ("turns", pa.list_(_TURN)),
        ("stop_reason", pa.string()),
        ("error", pa.string()),
        ("text_only", pa.bool_()),
        ("tools", pa.string()),
        ("extras", pa.string()),
    ]
)
# What reading a damaged Parquet file raises: the name of a column may be no text.
DAMAGED = (pa.ArrowException, OSError, UnicodeError)
# What data had before there were such columns.
_AS_EVER = {"graded": True, "thinking": "", "loss_weight": 1.0, "extras": None, "tools": None}


def to_row(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain values that fit ``SCHEMA``."""
    return {
        "id": trajectory.id,
        "task_id": trajectory.task_id,
        "group_id": trajectory.group_id,
        "sample": trajectory.sample,
        "policy": trajectory.policy,
        "seed": trajectory.seed,
        "messages": _plain(trajectory.messages),
        "turns": [
            {
                "prompt_ids": turn.prompt_ids,
                "token_ids": turn.completion.token_ids,
                "logprobs": turn.completion.logprobs,
                "text": turn.completion.text,
                "finish_reason": turn.completion.finish_reason,
                "reward": turn.step.reward,
                "done": turn.step.done,
                "success": turn.step.success,
                "answer": turn.step.answer,
                "messages": _plain(turn.step.messages),
                "info": json.dumps(dict(turn.step.info), sort_keys=True),
                "graded": turn.step.graded,
                "thinking": turn.completion.thinking,
                "loss_weight": turn.loss_weight,
                "extras": _extras(turn.step.messages),
            }
            for turn in trajectory.turns
        ],
        "stop_reason": trajectory.stop_reason,
        "error": trajectory.error,
        "text_only": trajectory.text_only,
        "tools": json.dumps(trajectory.tools) if trajectory.tools else None,
        "extras": _extras(trajectory.messages),
    }


def _plain(messages: Sequence[Message]) -> list[Message]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _extras(messages: Sequence[Message]) -> str | None:
    """What messages have beside role and content, as JSON: one object for each; ``None`` where none has any."""
    extras = [{key: value for key, value in each.items() if key not in ("role", "content")} for each in messages]
    return json.dumps(extras, sort_keys=True) if any(extras) else None


def messages_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of a row, or of a turn in it, with their ``extras``."""
    if not row.get("extras"):
        return tuple(row["messages"])
    return tuple({**each, **more} for each, more in zip(row["messages"], json.loads(row["extras"]), strict=True))  # type: ignore[typeddict-item]


def from_row(row: dict[str, Any]) -> Trajectory:
    """The trajectory that ``to_row`` made ``row`` from; log-probabilities come back in float32."""
    turns = []
    for turn in row["turns"]:
        logprobs = turn["logprobs"]
        completion = Completion(
            text=turn["text"],
            token_ids=tuple(turn["token_ids"]),
            logprobs=None if logprobs is None else tuple(logprobs),
            finish_reason=turn["finish_reason"],
            # Shards written before there was this column have the thinking in the text, where there is any.
            thinking=turn.get("thinking") or "",
        )
        step = Step(
            messages=messages_of(turn),
            reward=turn["reward"],
            done=turn["done"],
            success=turn["success"],
            answer=turn["answer"],
            info=json.loads(turn["info"]),
            # Shards written before there was this column hold graded turns alone.
            graded=turn.get("graded", True),
        )
        weight = turn.get("loss_weight")
        turns.append(
            Turn(
                prompt_ids=tuple(turn["prompt_ids"]),
                completion=completion,
                step=step,
                loss_weight=1.0 if weight is None else weight,
            )
        )
    plain = {key: row[key] for key in ("id", "task_id", "group_id", "sample", "policy", "seed", "stop_reason", "error")}
    plain["text_only"] = bool(row.get("text_only"))
    plain["tools"] = tuple(json.loads(row.get("tools") or "[]"))
    return Trajectory(**plain, messages=messages_of(row), turns=tuple(turns))


def dataset_hash(trajectories: Iterable[Trajectory]) -> str:
    """Hash of what was said and how it was judged, in whatever order the trajectories come.

    Left out: log-probabilities, whose last bits depend on the batch, ``info``, which is the environment's own, and
    ``text_only``, which the ids tell.
    What is as it always was (``graded``, no ``thinking``, a ``loss_weight`` of 1, no ``tools`` or ``extras``) is left
    out, so that such data keep the hash they always had.
    """
    # 32 bytes each: texts would take four times as much.
    digests = bytearray()
    for trajectory in trajectories:
        row = to_row(trajectory)
        del row["text_only"]
        for turn in row["turns"]:
            del turn["logprobs"], turn["info"]
        for part in (row, *row["turns"]):
            for key in [key for key, usual in _AS_EVER.items() if part.get(key, ...) == usual]:
                del part[key]
        digests += hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
    # Sorted where they lie, byte by byte.
    digest_N = np.frombuffer(digests, "V32")
    digest_N.sort()
    whole, between = hashlib.sha256(), b""
    for digest in digest_N:
        whole.update(between + digest.tobytes().hex().encode())
        between = b"\n"
    return whole.hexdigest()
