"""Outcomes: how conversations went, read off trajectories in memory or off the columns of shards."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift.dataset.schema import SCHEMA, to_row
from drift.dataset.store import count_trajectories, stream_columns
from drift.errors import DatasetError
from drift.types import Message, Step, Trajectory

GroupBy = Literal["task", "opening"]
_TURNS = "turns.list.element."
# The columns of a shard that outcomes are read off. Text, ids and log-probabilities are left on disk.
COLUMNS = ["id", "task_id", "group_id", "sample", "error"]
COLUMNS += [_TURNS + name for name in ("reward", "success", "answer", "graded")]
_TURN = SCHEMA.field("turns").type.value_type
_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in COLUMNS if "." not in name]
    + [("turns", pa.list_(pa.struct([_TURN.field(name.removeprefix(_TURNS)) for name in COLUMNS if "." in name])))]
)
# Where conversations are told apart by what was said in them.
_SPOKEN = ["messages", _TURNS + "text", _TURNS + "messages"]
# Read at once: each batch costs some milliseconds.
ROWS_AT_ONCE, SPOKEN_AT_ONCE = 65_536, 4096
# What two bytes hold.
MOST_TURNS = 32_767
_LISTS = ("rejected", "reply", "feedback")
_COUNTS = ("turns", "graded", "distinct", "failures")
_FLAGS = ("success", "first_success", "first_graded", "first_read")
_NUMBERS = {
    "sample": np.int32,
    **dict.fromkeys(_COUNTS, np.int16),
    **dict.fromkeys(_FLAGS, np.bool_),
    **dict.fromkeys(("reward", "first_reward"), np.float64),
}


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How N conversations went, T replies in all; those that failed are left out.

    ``ids`` and ``groups`` are lists of strings, or Arrow strings where there may be very many. Of the first turn:
    whether it succeeded, its reward, whether an answer was asked for, and whether one could be read. Of each reply,
    conversation after conversation: whether it was a mistake that another followed, and, where that was asked for, a
    key that is equal where the same was said, and one of what the environment said to it.
    """

    ids: Any
    groups: Any
    sample_N: NDArray[np.int32]
    success_N: NDArray[np.bool_]
    reward_N: NDArray[np.float64]
    turns_N: NDArray[np.int16]
    graded_N: NDArray[np.int16]
    distinct_N: NDArray[np.int16]
    failures_N: NDArray[np.int16]
    first_success_N: NDArray[np.bool_]
    first_reward_N: NDArray[np.float64]
    first_graded_N: NDArray[np.bool_]
    first_read_N: NDArray[np.bool_]
    rejected_T: NDArray[np.bool_]
    reply_T: NDArray[np.int64] | None = None
    feedback_T: NDArray[np.int64] | None = None

    def first_turn(self) -> Outcomes:
        """The outcomes as if each conversation had ended after its first reply; what is of each reply stays."""
        read_N = self.first_graded_N & self.first_read_N
        return replace(
            self,
            success_N=self.first_success_N,
            reward_N=self.first_reward_N,
            turns_N=np.ones_like(self.turns_N),
            graded_N=self.first_graded_N.astype(np.int16),
            distinct_N=read_N.astype(np.int16),
            failures_N=(self.first_graded_N & ~self.first_read_N).astype(np.int16),
        )

    def group_index(self) -> NDArray[np.intp]:
        """``(N,)`` groups as numbers 0…G−1, in the order in which they first appear."""
        groups = pa.array(self.groups, pa.string()) if isinstance(self.groups, list) else self.groups.indices
        index_N: NDArray[np.intp] = groups.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.intp)
        return index_N


def is_rejected(step: Step) -> bool:
    """Whether an answer was asked for and the reply was no success and earned nothing: a mistake, not a step."""
    return step.graded and not step.success and step.reward <= 0


def outcomes(trajectories: Sequence[Trajectory], *, group_by: GroupBy = "task", spoken: bool = False) -> Outcomes:
    """Read outcomes off trajectories. Those with an error or without a turn have none and are left out.

    Args:
        trajectories: as recorded.
        group_by: the prompt is what the task's ``group_id`` says, or what the policy could see of it.
        spoken: tell what was said in each.
    """
    rows = [to_row(trajectory) for trajectory in trajectories]
    # Text may be what no Parquet file can hold, so it is left out unless it is needed.
    schema = SCHEMA if spoken or group_by == "opening" else _SCHEMA
    read = outcome_columns(pa.RecordBatch.from_pylist(rows, schema=schema), group_by=group_by, spoken=spoken)
    return Outcomes(
        ids=read["id"].to_pylist(),
        groups=read["group_id"].to_pylist(),
        **{f"{name}_N": np.asarray(read[name], kind) for name, kind in _NUMBERS.items()},
        **{f"{name}_T": read[name].flatten().to_numpy(zero_copy_only=False) for name in _LISTS if name in read},
    )


def read_outcomes(directory: str | Path, *, group_by: GroupBy = "task", spoken: bool = False) -> Outcomes:
    """The outcomes of a finished data set, in the order of tasks and samples, whatever order they were written in.

    Some 60 bytes for each conversation, its id among them.

    Args:
        directory: the data set.
        group_by: as of ``outcomes``.
        spoken: tell what was said in each.

    Raises:
        DatasetError: it is missing, empty, damaged or incomplete, or every conversation in it failed.
    """
    large = spoken or group_by == "opening"
    columns, rows = ([*COLUMNS, *_SPOKEN], SPOKEN_AT_ONCE) if large else (COLUMNS, ROWS_AT_ONCE)
    total, count = count_trajectories(directory), 0
    # In place from the start: parts that are joined later would be there twice.
    numbers: dict[str, Any] = {name: np.empty(total, kind) for name, kind in _NUMBERS.items()}
    parts: dict[str, list[Any]] = {"id": [], "task_id": [], "group_id": [], "rejected": []}
    if spoken:
        parts |= {"reply": [], "feedback": []}
    for batch in _together(stream_columns(directory, columns, rows=rows), rows):
        read = outcome_columns(batch, group_by=group_by, spoken=spoken)
        # More than the manifest says is an error, which the stream raises at its end.
        if count + len(read["id"]) <= total:
            for name, values in numbers.items():
                values[count : count + len(read["id"])] = read[name]
        for name, chunks in parts.items():
            chunks.append(read[name])
        count += len(read["id"])
        # Or what is read with leaves its mark on the peak.
        pa.default_memory_pool().release_unused()
    if not count:
        raise DatasetError(f"{directory}: all {total} trajectories failed; there is nothing to weigh.")
    numbers = {name: values[:count] for name, values in numbers.items()}
    pa.default_memory_pool().release_unused()
    found = _in_order(numbers, {name: pa.chunked_array(parts.pop(name)) for name in list(parts)})
    pa.default_memory_pool().release_unused()
    return found


def _in_order(numbers: dict[str, Any], held: dict[str, Any]) -> Outcomes:
    """Columns as outcomes, sorted by task and sample as ``read_trajectories`` sorts them."""
    tasks, groups = (held.pop(name).unify_dictionaries().combine_chunks() for name in ("task_id", "group_id"))
    rank = np.empty(len(tasks.dictionary), np.int32)
    rank[pc.array_sort_indices(tasks.dictionary).to_numpy()] = np.arange(len(rank))
    # Rows of one task and sample stay in the order in which they were written.
    order = np.lexsort((numbers["sample"], rank[tasks.indices.to_numpy()]))
    del tasks
    if not (np.diff(order) == 1).all():
        groups = groups.take(pa.array(order))
        # One column at a time, so that no second copy of all of them is in memory.
        for name in numbers:
            numbers[name] = numbers[name][order]
        for name in held:
            held[name] = held[name].take(pa.array(order))
    flat = {f"{name}_T": pc.list_flatten(held.pop(name)).to_numpy() for name in list(held) if name != "id"}
    return Outcomes(ids=held["id"], groups=groups, **{f"{name}_N": values for name, values in numbers.items()}, **flat)


def _together(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of many small shards in one of about ``rows``."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        # Shards of one data set may have been written before and after there was a column.
        if held and not batch.schema.equals(held[0].schema):
            yield pa.concat_batches(held)
            held = []
        held.append(batch)
        if sum(map(len, held)) >= rows:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def outcome_columns(batch: pa.RecordBatch, *, group_by: GroupBy = "task", spoken: bool = False) -> dict[str, Any]:
    """The outcomes of rows of a shard, read with ``COLUMNS``, by name; failed trajectories are left out.

    The same numbers as ``outcomes`` without a Python object for each: turns of all rows lie one after the other. With
    ``spoken``, or prompts by their opening, what was said must have been read too.

    Returns:
        Numbers as ``(N,)`` arrays; ids as Arrow strings, tasks and groups encoded; what is of replies as Arrow lists.
    """
    lengths = batch.column("turns").value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    kept_N = batch.column("error").is_null().to_numpy(zero_copy_only=False) & (lengths > 0)
    if not kept_N.all():
        batch, lengths = batch.filter(pa.array(kept_N)), lengths[kept_N]
    count, turns_N = len(lengths), lengths.astype(np.int64)
    if turns_N.max(initial=0) > MOST_TURNS:
        name = batch.column("id")[int(turns_N.argmax())].as_py()
        raise DatasetError(
            f"conversation {name!r} has {turns_N.max()} turns, expected at most {MOST_TURNS}. Leave it out."
        )
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
    rejected_T = graded_T & ~success_T & (reward_T <= 0)
    rejected_T[end_N - 1] = False
    offsets = pa.array(np.concatenate([[0], end_N]).astype(np.int32))
    task_id = batch.column("task_id").dictionary_encode()
    same = batch.column("task_id").equals(batch.column("group_id"))
    columns: dict[str, Any] = {
        # Offsets of 64 bits: ids of very many trajectories are longer together than 32 reach.
        "id": batch.column("id").cast(pa.large_string()),
        "task_id": task_id,
        "group_id": task_id if same else batch.column("group_id").dictionary_encode(),
        "sample": batch.column("sample").to_numpy(),
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
        "rejected": pa.ListArray.from_arrays(offsets, pa.array(rejected_T)),
    }
    words = turns.field("messages").to_pylist() if spoken or group_by == "opening" else []
    if group_by == "opening":
        opened = batch.column("messages").to_pylist()
        said = (list(itertools.chain(*words[a:b])) for a, b in itertools.pairwise(offsets.to_pylist()))
        keys = [_opening_key(*each) for each in zip(opened, turns_N.tolist(), said, strict=True)]
        columns["group_id"] = pa.array(keys, pa.string()).dictionary_encode()
    if spoken:
        replies = zip(
            graded_T.tolist(), turns.field("answer").to_pylist(), turns.field("text").to_pylist(), strict=True
        )
        for name, values in (("reply", itertools.starmap(_reply_key, replies)), ("feedback", map(_words_key, words))):
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(list(values), pa.int64()))
    return columns


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
