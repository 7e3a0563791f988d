"""How conversations went, read off the columns of a shard: numbers, without a Python object for each conversation."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift.errors import DatasetError
from drift.types import Message

_TURNS = "turns.list.element."
# The columns of a shard that outcomes are read off. Text, ids and log-probabilities are left on disk.
COLUMNS = ["id", "task_id", "group_id", "sample", "error"]
COLUMNS += [_TURNS + name for name in ("reward", "success", "answer", "graded", "loss_weight")]
# Where conversations are told apart by what was said in them.
_SPOKEN = ["messages", _TURNS + "text", _TURNS + "messages"]
# What two bytes hold.
MOST_TURNS = 32_767
# Words of openings are told apart by hashes below this.
WORDS = 512
# Before the names of what a log notes.
NOTE = "note:"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for beside what all conversations have.

    Attributes:
        spoken: keys of what was said in each.
        replies: the reward of each reply.
        first: the reward of the first one.
        notes: what a log notes under these names.
        words: the words of the openings.
        openings: keys of the openings, equal for near-duplicates.
    """

    spoken: bool = False
    replies: bool = False
    first: bool = False
    notes: tuple[str, ...] = ()
    words: bool = False
    openings: bool = False

    @property
    def texts(self) -> bool:
        """Whether what was said must be read."""
        return self.spoken or self.words or self.openings

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return [*COLUMNS, *(_SPOKEN if self.texts else []), *([_TURNS + "info"] if self.notes else [])]

    @property
    def lists(self) -> list[str]:
        """Names of what is given beside numbers, ids, groups and mistakes."""
        given = {"loss_weight": True, "reply": self.spoken, "feedback": self.spoken}
        given |= {"reply_reward": self.replies, "words": self.words, "openings": self.openings}
        return [*(name for name, asked in given.items() if asked), *(NOTE + name for name in self.notes)]


# Nothing beside what all conversations have.
PLAIN = Asked()


def outcome_columns(batch: pa.RecordBatch, ask: Asked = PLAIN) -> dict[str, Any]:
    """The outcomes of rows of a shard, read with ``ask.columns``, by name; failed trajectories are left out.

    The same numbers as ``outcomes`` without a Python object for each: turns of all rows lie one after the other.

    Returns:
        Numbers as ``(N,)`` arrays; ids as Arrow strings, tasks and groups encoded; what is of replies as Arrow lists.
    """
    lengths = batch.column("turns").value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    kept_N = batch.column("error").is_null().to_numpy(zero_copy_only=False) & (lengths > 0)
    if not kept_N.all():
        batch, lengths = batch.filter(pa.array(kept_N)), lengths[kept_N]
    turns_N = lengths.astype(np.int64)
    if turns_N.max(initial=0) > MOST_TURNS:
        name = batch.column("id")[int(turns_N.argmax())].as_py()
        raise DatasetError(
            f"conversation {name!r} has {turns_N.max()} turns, expected at most {MOST_TURNS}. Leave it out."
        )
    turns = batch.column("turns").flatten()
    task_id = batch.column("task_id").dictionary_encode()
    same = batch.column("task_id").equals(batch.column("group_id"))
    columns: dict[str, Any] = {
        # Offsets of 64 bits: ids of very many trajectories are longer together than 32 reach.
        "id": batch.column("id").cast(pa.large_string()),
        "task_id": task_id,
        "group_id": task_id if same else batch.column("group_id").dictionary_encode(),
        "sample": batch.column("sample").to_numpy(),
        "turns": turns_N,
        **_numbers(turns, turns_N),
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(turns_N)]).astype(np.int32))
    of_replies: dict[str, Any] = {"rejected": pa.array(columns.pop("rejected_T"))}
    of_replies["loss_weight"] = _loss_weights(turns)
    if ask.replies:
        of_replies["reply_reward"] = turns.field("reward")
    if ask.spoken:
        of_replies |= _keys(turns)
    columns |= {name: pa.ListArray.from_arrays(offsets, values) for name, values in of_replies.items()}
    if ask.words or ask.openings:
        openings = list(_openings(batch, turns, offsets))
        if ask.words:
            columns["words"] = pa.array(map(_hashed_words, openings), pa.list_(pa.int16()))
        if ask.openings:
            columns["openings"] = pa.array(map(near_key, openings), pa.int64())
    return columns | _notes(turns, np.cumsum(turns_N) - 1, ask.notes)


def _numbers(turns: pa.StructArray, turns_N: NDArray[np.int64]) -> dict[str, Any]:
    """What counts, by name, of conversations whose turns lie one after the other."""
    count, end_N = len(turns_N), np.cumsum(turns_N)
    row_T, start_N = np.repeat(np.arange(count), turns_N), end_N - turns_N
    # Shards written before there was this column hold graded turns alone.
    graded_T = _flags(turns.field("graded")) if _has(turns, "graded") else np.ones(len(row_T), bool)
    answers = turns.field("answer").dictionary_encode()
    answer_T = answers.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    read_T = graded_T & (answer_T >= 0)
    # One number for each answer of each conversation; equal ones come to lie side by side.
    kinds = max(len(answers.dictionary), 1)
    pairs = np.sort(row_T[read_T] * kinds + answer_T[read_T])
    distinct = pairs[np.diff(pairs, prepend=-1) != 0] // kinds
    success_T, reward_T = _flags(turns.field("success")), turns.field("reward").to_numpy(zero_copy_only=False)
    known_T = turns.field("success").is_valid().to_numpy(zero_copy_only=False)
    rejected_T = graded_T & ~success_T & (reward_T <= 0)
    rejected_T[end_N - 1] = False
    return {
        "success": success_T[end_N - 1],
        "known": known_T[end_N - 1],
        "reward": _sums(reward_T, start_N, turns_N),
        "graded": np.bincount(row_T[graded_T], minlength=count),
        "distinct": np.bincount(distinct, minlength=count),
        "failures": np.bincount(row_T[graded_T & (answer_T < 0)], minlength=count),
        "first_success": success_T[start_N],
        "first_known": known_T[start_N] & known_T[end_N - 1],
        "first_reward": reward_T[start_N],
        "first_graded": graded_T[start_N],
        "first_read": answer_T[start_N] >= 0,
        "rejected_T": rejected_T,
    }


def _loss_weights(turns: pa.StructArray) -> pa.Array:
    """What a log says that each reply counts for; truth values, which take a bit each, where it is 1 for all."""
    given = turns.field("loss_weight").fill_null(1.0) if _has(turns, "loss_weight") else pa.array([1.0])
    return given if pc.any(pc.not_equal(given, 1.0)).as_py() else pa.array(np.ones(len(turns), bool))


def _keys(turns: pa.StructArray) -> dict[str, pa.Array]:
    """Of each reply: a key that is equal where the same was said, and one of what the environment said to it."""
    graded = turns.field("graded").to_pylist() if _has(turns, "graded") else [True] * len(turns)
    replies = zip(graded, turns.field("answer").to_pylist(), turns.field("text").to_pylist(), strict=True)
    keys = {"reply": list(itertools.starmap(_reply_key, replies))}
    keys["feedback"] = list(map(_words_key, turns.field("messages").to_pylist()))
    return {name: pa.array(values, pa.int64()) for name, values in keys.items()}


def _openings(batch: pa.RecordBatch, turns: pa.StructArray, offsets: pa.Array) -> Iterator[Sequence[Message]]:
    """What the policy could see before its first reply: what is left without replies and the words after them."""
    said = turns.field("messages").value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    until = np.concatenate([[0], np.cumsum(said)])
    for messages, (start, end) in zip(
        batch.column("messages").to_pylist(), itertools.pairwise(offsets.to_pylist()), strict=True
    ):
        yield messages[: len(messages) - (end - start) - int(until[end] - until[start])]


def _notes(turns: pa.StructArray, last_N: NDArray[np.int64], names: Sequence[str]) -> dict[str, pa.Array]:
    """What a log notes with the last reply under some names, as JSON texts."""
    if not names:
        return {}
    noted = [json.loads(text or "{}") for text in turns.field("info").take(pa.array(last_N)).to_pylist()]
    return {
        NOTE + name: pa.array(
            [None if each.get(name) is None else json.dumps(each[name], sort_keys=True) for each in noted], pa.string()
        )
        for name in names
    }


def near_key(opening: Sequence[Message]) -> int:
    """The same for what opens alike but for case, punctuation, order and repetition of words."""
    text = " ".join(message["content"] or "" for message in opening).lower()
    return _key(sorted(set(re.findall(r"\w+", text))))


def _hashed_words(opening: Sequence[Message]) -> list[int]:
    """The distinct words of what opens a conversation, in lower case, as hashes below ``WORDS``."""
    text = " ".join(message["content"] for message in opening).lower()
    return sorted({zlib.crc32(word.encode(errors="replace")) % WORDS for word in re.findall(r"\w+", text)})


def _reply_key(graded: bool, answer: str | None, text: str) -> int:
    """Equal for equal replies: those that were judged by their answer in normalised form, others by their words."""
    return _key([answer] if graded else text)


def _words_key(messages: Sequence[Message]) -> int:
    return _key([[message["role"], message["content"]] for message in messages])


def _key(value: Any) -> int:
    return int.from_bytes(bytes.fromhex(_digest(value)[:16]), "big", signed=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _has(turns: pa.StructArray, name: str) -> bool:
    return bool(turns.type.get_field_index(name) >= 0)


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
