"""Outcomes: what the return of each trajectory is made of, off trajectories in memory or off the columns of a shard."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift.types import Message, Trajectory
from drift.weights.config import GroupBy
from drift.weights.luck import Paths
from drift.weights.returns import trajectory_return

_TURNS = "turns.list.element."
# The columns of a shard that outcomes are read off. Shards of text, ids and log-probabilities are left on disk.
COLUMNS = ["id", "task_id", "group_id", "sample", "error"]
COLUMNS += [_TURNS + name for name in ("reward", "success", "answer", "graded")]
ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("task_id", pa.string()),
        ("group_id", pa.string()),
        ("sample", pa.int32()),
        ("success", pa.bool_()),
        ("reward", pa.float64()),
        ("turns", pa.int32()),
        ("graded", pa.int32()),
        ("distinct", pa.int32()),
        ("failures", pa.int32()),
        ("first_success", pa.bool_()),
        ("first_reward", pa.float64()),
        ("first_graded", pa.bool_()),
        ("first_read", pa.bool_()),
    ]
)
# Where conversations are told apart by what was said in them: further columns of a shard, and of rows.
PATH_COLUMNS = ["messages", _TURNS + "text", _TURNS + "messages"]
PATH_ROWS = pa.schema([*ROWS, ("reply_keys", pa.list_(pa.int64())), ("words_keys", pa.list_(pa.int64()))])
_COUNTS = ("sample", "turns", "graded", "distinct", "failures")
_FLAGS = ("success", "first_success", "first_graded", "first_read")
_REWARDS = ("reward", "first_reward")


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What the return of each trajectory is made of; arrays ``(N,)``, trajectories that failed left out.

    ``ids`` and ``groups`` are lists of strings, or Arrow strings where there may be very many. Of the first turn:
    whether it succeeded, its reward, whether an answer was asked for, and whether one could be read. ``paths`` is there
    where it was asked for.
    """

    ids: Any
    groups: Any
    sample_N: NDArray[np.int64]
    success_N: NDArray[np.bool_]
    reward_N: NDArray[np.float64]
    turns_N: NDArray[np.int64]
    graded_N: NDArray[np.int64]
    distinct_N: NDArray[np.int64]
    failures_N: NDArray[np.int64]
    first_success_N: NDArray[np.bool_]
    first_reward_N: NDArray[np.float64]
    first_graded_N: NDArray[np.bool_]
    first_read_N: NDArray[np.bool_]
    paths: Paths | None = None

    def first_turn(self) -> Outcomes:
        """The same conversations as if each had ended after its first reply."""
        read_N = self.first_graded_N & self.first_read_N
        return replace(
            self,
            success_N=self.first_success_N,
            reward_N=self.first_reward_N,
            turns_N=np.ones_like(self.turns_N),
            graded_N=self.first_graded_N.astype(np.int64),
            distinct_N=read_N.astype(np.int64),
            failures_N=(self.first_graded_N & ~self.first_read_N).astype(np.int64),
            paths=self.paths.first_turn() if self.paths else None,
        )

    def returns(
        self, *, base: Literal["success", "reward"], gamma: float, repetition: float, format_failure: float
    ) -> NDArray[np.float64]:
        """``(N,)`` return of each conversation, DRIFT Eq. 12."""
        return trajectory_return(
            self.success_N if base == "success" else self.reward_N,
            self.turns_N,
            self.distinct_N,
            self.failures_N,
            gamma=gamma,
            repetition=repetition,
            format_failure=format_failure,
            graded_N=self.graded_N,
        )

    def group_index(self) -> NDArray[np.intp]:
        """``(N,)`` groups as numbers 0…G−1, in the order in which they first appear."""
        strings = pa.array(self.groups, pa.string()) if isinstance(self.groups, list) else self.groups
        if isinstance(strings, pa.ChunkedArray):
            strings = strings.combine_chunks()
        index_N: NDArray[np.intp] = strings.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.intp)
        return index_N


def outcomes(trajectories: Sequence[Trajectory], *, group_by: GroupBy = "task", paths: bool = False) -> Outcomes:
    """Read outcomes off trajectories. Those with an error or without a turn have none and are left out.

    Args:
        trajectories: as recorded.
        group_by: the prompt is what the task's ``group_id`` says, or what the policy could see of it.
        paths: tell what was said in each.
    """
    kept = [t for t in trajectories if t.error is None and t.turns]
    graded = [[turn.step.answer for turn in t.turns if turn.step.graded] for t in kept]
    found: Paths | None = None
    if paths:
        replies = [[_reply_key(t.step.graded, t.step.answer, t.completion.text) for t in each.turns] for each in kept]
        found = _paths(replies, [[_words_key(turn.step.messages) for turn in each.turns] for each in kept])
    return Outcomes(
        paths=found,
        ids=[t.id for t in kept],
        groups=[t.group_id if group_by == "task" else _opening_id(t) for t in kept],
        sample_N=np.array([t.sample for t in kept], np.int64),
        success_N=np.array([t.success for t in kept], bool),
        # From the first to the last: sum() compensates since Python 3.12, and weights would hang on the version.
        reward_N=np.array([reduce(add, (turn.step.reward for turn in t.turns), 0.0) for t in kept], float),
        turns_N=np.array([len(t.turns) for t in kept], np.int64),
        graded_N=np.array(list(map(len, graded)), np.int64),
        distinct_N=np.array([len({*answers} - {None}) for answers in graded], np.int64),
        failures_N=np.array([answers.count(None) for answers in graded], np.int64),
        first_success_N=np.array([t.turns[0].step.success for t in kept], bool),
        first_reward_N=np.array([t.turns[0].step.reward for t in kept], float),
        first_graded_N=np.array([t.turns[0].step.graded for t in kept], bool),
        first_read_N=np.array([t.turns[0].step.answer is not None for t in kept], bool),
    )


def outcome_rows(batch: pa.RecordBatch, *, group_by: GroupBy = "task", paths: bool = False) -> pa.Table:
    """The outcomes of rows of a shard, read with ``COLUMNS``, as rows of ``ROWS``; failed trajectories are left out.

    The same numbers as ``outcomes`` without a Python object for each: turns of all rows lie one after the other. With
    ``paths``, or prompts by their opening, rows are read with ``PATH_COLUMNS`` too; with ``paths`` they are rows of
    ``PATH_ROWS``.
    """
    lengths = batch.column("turns").value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    kept_N = batch.column("error").is_null().to_numpy(zero_copy_only=False) & (lengths > 0)
    if not kept_N.all():
        batch, lengths = batch.filter(pa.array(kept_N)), lengths[kept_N]
    count, turns_N = len(lengths), lengths.astype(np.int64)
    end_N = np.cumsum(turns_N)
    row_T = np.repeat(np.arange(count), turns_N)
    turns = batch.column("turns").flatten()
    # Shards written before there was this column hold graded turns alone.
    has_graded = turns.type.get_field_index("graded") >= 0
    graded_T = _flags(turns.field("graded")) if has_graded else np.ones(len(row_T), bool)
    answers = turns.field("answer").dictionary_encode()
    answer_T = answers.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    read_T = graded_T & (answer_T >= 0)
    # One number for each answer of each conversation; equal ones come to lie side by side.
    kinds = max(len(answers.dictionary), 1)
    pairs = np.sort(row_T[read_T] * kinds + answer_T[read_T])
    distinct = pairs[np.diff(pairs, prepend=-1) != 0] // kinds
    start_N = end_N - turns_N
    success_T, reward_T = _flags(turns.field("success")), turns.field("reward").to_numpy(zero_copy_only=False)
    columns = {
        **{name: batch.column(name) for name in ("id", "task_id", "group_id", "sample")},
        "success": success_T[end_N - 1],
        "reward": _sums(reward_T, start_N, turns_N),
        "turns": turns_N,
        "graded": np.bincount(row_T[graded_T], minlength=count),
        "distinct": np.bincount(distinct, minlength=count),
        "failures": np.bincount(row_T[graded_T & (answer_T < 0)], minlength=count),
        "first_success": success_T[start_N],
        "first_reward": reward_T[start_N],
        "first_graded": graded_T[start_N],
        "first_read": answer_T[start_N] >= 0,
    }
    schema, bounds = PATH_ROWS if paths else ROWS, [0, *end_N.tolist()]
    words = turns.field("messages").to_pylist() if paths or group_by == "opening" else []
    if group_by == "opening":
        spoken = batch.column("messages").to_pylist()
        said = (list(itertools.chain(*words[a:b])) for a, b in itertools.pairwise(bounds))
        columns["group_id"] = [_opening_key(*each) for each in zip(spoken, turns_N.tolist(), said, strict=True)]
    if paths:
        replies = zip(
            graded_T.tolist(), turns.field("answer").to_pylist(), turns.field("text").to_pylist(), strict=True
        )
        for name, keys in (
            ("reply_keys", itertools.starmap(_reply_key, replies)),
            ("words_keys", map(_words_key, words)),
        ):
            flat = pa.array(list(keys), pa.int64())
            columns[name] = pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), flat)
    return pa.table([pa.array(columns[name]).cast(schema.field(name).type) for name in schema.names], schema=schema)


def sorted_outcomes(rows: pa.Table) -> Outcomes:
    """Rows of ``ROWS`` as outcomes, sorted by task and sample as ``read_trajectories`` sorts them."""
    tasks = rows.column("task_id").combine_chunks().dictionary_encode()
    rank = np.empty(len(tasks.dictionary), np.int64)
    rank[pc.array_sort_indices(tasks.dictionary).to_numpy()] = np.arange(len(rank))
    # Rows of one task and sample stay in the order in which they were written.
    order = np.lexsort((rows.column("sample").to_numpy(), rank[tasks.indices.to_numpy()]))
    rows = rows.take(pa.array(order))
    columns: dict[str, Any] = {f"{name}_N": rows.column(name).to_numpy().astype(np.int64) for name in _COUNTS}
    columns |= {f"{name}_N": rows.column(name).to_numpy().astype(bool) for name in _FLAGS}
    columns |= {f"{name}_N": rows.column(name).to_numpy() for name in _REWARDS}
    if "reply_keys" in rows.column_names:
        columns["paths"] = _paths(rows["reply_keys"], rows["words_keys"])
    return Outcomes(ids=rows["id"], groups=rows["group_id"], **columns)


def _opening_id(trajectory: Trajectory) -> str:
    said = [message for turn in trajectory.turns for message in turn.step.messages]
    return _opening_key(trajectory.messages, len(trajectory.turns), said)


def _opening_key(messages: Sequence[Message], turns: int, said: Sequence[Message]) -> str:
    """Names what the policy could see before its first reply: what is left without replies and the words after them."""
    opening = messages[: len(messages) - turns - len(said)]
    return f"opening-{_digest([[m['role'], m['content']] for m in opening])[:32]}"


def _reply_key(graded: bool, answer: str | None, text: str) -> int:
    """Equal for equal replies: those that were judged by their answer in normalised form, others by their words."""
    return _key([answer] if graded else text)


def _words_key(messages: Sequence[Message]) -> int:
    return _key([[message["role"], message["content"]] for message in messages])


def _key(value: Any) -> int:
    return int.from_bytes(bytes.fromhex(_digest(value)[:16]), "big", signed=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _paths(replies: Any, words: Any) -> Paths:
    """Lists of keys, a list for each conversation, as ``Paths``."""
    reply, word = (
        pa.array(each, pa.list_(pa.int64())) if isinstance(each, list) else each for each in (replies, words)
    )
    flat_T, words_T = (pc.list_flatten(each).to_numpy() for each in (reply, word))
    return Paths(flat_T, words_T, pc.list_value_length(reply).to_numpy().astype(np.int64))


def _flags(column: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = column.fill_null(False).to_numpy(zero_copy_only=False)
    return flags


def _sums(values_T: NDArray[np.float64], start_N: NDArray[np.int64], length_N: NDArray[np.int64]) -> Any:
    """``(N,)`` sums of runs of ``values_T``, each added up from its first value to its last."""
    total_N = values_T[start_N] + 0.0
    at, turn = np.flatnonzero(length_N > 1), 1
    while len(at):
        total_N[at] += values_T[start_N[at] + turn]
        turn += 1
        at = at[length_N[at] > turn]
    return total_N
