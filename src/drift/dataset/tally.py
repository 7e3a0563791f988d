"""What a data set's manifest counts of its conversations: how they ended, why some failed, what replies were like."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from typing import Any

import numpy as np

from drift.types import Trajectory, Turn

# Failures of which nothing is on record but the words: the policy gave no reply.
NO_REPLY = "server "
_UNUSABLE = "reply "


def failure_kind(error: str) -> str:
    """What an error is counted as: the words before its colon, such as ``content_filter`` or ``environment.step``."""
    kind = error.removeprefix(NO_REPLY).removeprefix(_UNUSABLE).partition(":")[0]
    return kind.partition(" raised ")[0].partition(" returned ")[0]


class Tally:
    """Counts conversations as they pass."""

    def __init__(self) -> None:
        self._stops: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._words: dict[str, str] = {}
        self._replies: Counter[str] = Counter()
        self._tokens: int | None = 0
        # Hashes of each conversation's task, and of what was said in it: 16 bytes.
        self._tasks, self._said = array("Q"), array("Q")

    def add(self, trajectory: Trajectory) -> None:
        """Count one."""
        self._stops[trajectory.stop_reason] += 1
        sampled = trajectory.tokens_sampled
        self._tokens = None if self._tokens is None or sampled is None else self._tokens + sampled
        for turn in trajectory.turns:
            self._replies.update(reply_kinds(turn))
        if trajectory.error is not None:
            kind = failure_kind(trajectory.error)
            self._failures[kind] += 1
            self._words.setdefault(kind, trajectory.error)
        elif trajectory.turns:
            said = "\x1f".join(turn.completion.text for turn in trajectory.turns)
            self._tasks.append(_hash(trajectory.task_id))
            self._said.append(_hash(said))

    @property
    def tokens_sampled(self) -> int | None:
        """Tokens of all replies; ``None`` where a policy did not tell."""
        return self._tokens

    @property
    def counts(self) -> dict[str, int]:
        """Conversations, in all and by the reason why they ended."""
        return {
            "trajectories": self._stops.total(),
            **{f"stop_{reason}": count for reason, count in sorted(self._stops.items())},
        }

    def record(self) -> dict[str, Any]:
        """For the manifest: failed conversations by kind with one example's words, replies by kind, and tasks with
        several conversations, those in which all say the same among them.
        """
        tasks_N, said_N = (np.frombuffer(each, np.uint64) for each in (self._tasks, self._said))
        order = np.lexsort((said_N, tasks_N))
        tasks_N, said_N = tasks_N[order], said_N[order]
        # Where each task begins and ends; what is said in it is sorted, so all is alike where its ends are.
        edges = np.flatnonzero(np.concatenate([[True], tasks_N[1:] != tasks_N[:-1], [True]])[: len(order) + 1])
        first_G, last_G = edges[:-1], edges[1:] - 1
        several_G = first_G < last_G
        alike_G = several_G & (said_N[first_G] == said_N[last_G])
        return {
            "failures": dict(sorted(self._failures.items())),
            "failure_words": dict(sorted(self._words.items())),
            "replies": dict(sorted(self._replies.items())),
            "repeated_tasks": {"tasks": int(several_G.sum()), "all_alike": int(alike_G.sum())},
        }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest())


def reply_kinds(turn: Turn) -> list[str]:
    """What a reply is counted as, beside why it ended: ``empty_reply``, ``reasoning``, ``reasoning_only``."""
    reply = turn.completion
    kinds: list[str] = [reply.finish_reason]
    if reply.thinking:
        kinds += ["reasoning"] if reply.text else ["reasoning", "reasoning_only"]
    elif not reply.text and reply.finish_reason != "tool_calls":
        kinds.append("empty_reply")
    return kinds
