"""Outcomes: how conversations went, read off trajectories in memory or off the columns of shards."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift.dataset.columns import COLUMNS, NOTE, PLAIN, Asked, outcome_columns
from drift.dataset.schema import SCHEMA, to_row
from drift.dataset.store import KIND, stream_columns
from drift.errors import ConfigError, DatasetError, require
from drift.manifest import read_manifest
from drift.types import Step, Trajectory

_TURN = SCHEMA.field("turns").type.value_type
_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in COLUMNS if "." not in name]
    + [("turns", pa.list_(pa.struct([_TURN.field(name.rpartition(".")[2]) for name in COLUMNS if "." in name])))]
)
# Read at once: each batch costs some milliseconds.
ROWS_AT_ONCE, SPOKEN_AT_ONCE = 32_768, 4096
# Keys of an outcome that are no names of what is added up.
SHAPING = ("clip", "above", "normalize")
_LISTS = ("rejected", "reply", "feedback", "loss_weight", "reply_reward")
_COUNTS = ("turns", "graded", "distinct", "failures")
_FLAGS = ("success", "known", "first_success", "first_known", "first_graded", "first_read")
_NUMBERS = {
    "sample": np.int32,
    **dict.fromkeys(_COUNTS, np.int16),
    **dict.fromkeys(_FLAGS, np.bool_),
    **dict.fromkeys(("reward", "first_reward"), np.float64),
}


@contextmanager
def giving_memory_back() -> Iterator[None]:
    """Arrow's plain allocator for a while: what is freed goes back to the machine, where its own keeps much of it."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How N conversations went, T replies in all; those that failed are left out.

    ``ids`` and ``groups`` are lists of strings, or Arrow strings where there may be very many. A success that is not
    known, which nobody judged, is false. Of the first turn: whether it succeeded, whether that is known, whether an
    answer was asked for, whether one could be read, and, where that was asked for, its reward. Of each reply,
    conversation after conversation: whether it was a mistake that another followed, and, where that was asked for, a
    key that is equal where the same was said, one of what the environment said to it, what a log says it counts for,
    and its reward. Where asked for too: what a log notes by name (JSON texts, encoded; null where it notes nothing),
    the distinct words of each opening as hashes below ``WORDS``, and a key of it that near-duplicates share.
    """

    ids: Any
    groups: Any
    sample_N: NDArray[np.int32]
    success_N: NDArray[np.bool_]
    known_N: NDArray[np.bool_]
    reward_N: NDArray[np.float64]
    turns_N: NDArray[np.int16]
    graded_N: NDArray[np.int16]
    distinct_N: NDArray[np.int16]
    failures_N: NDArray[np.int16]
    first_success_N: NDArray[np.bool_]
    first_known_N: NDArray[np.bool_]
    first_graded_N: NDArray[np.bool_]
    first_read_N: NDArray[np.bool_]
    rejected_T: NDArray[np.bool_]
    first_reward_N: NDArray[np.float64] | None = None
    reply_T: NDArray[np.int64] | None = None
    feedback_T: NDArray[np.int64] | None = None
    loss_weight_T: NDArray[np.float64] | None = None
    reply_reward_T: NDArray[np.float64] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    words: Any = None
    openings: Any = None

    def first_turn(self) -> Outcomes:
        """The outcomes as if each conversation had ended after its first reply; what is of each reply stays."""
        assert self.first_reward_N is not None, "read where it is asked for"
        read_N = self.first_graded_N & self.first_read_N
        return replace(
            self,
            success_N=self.first_success_N,
            known_N=self.first_known_N,
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

    def noted(self, name: str) -> pa.DictionaryArray:
        """What the log notes of each conversation under ``name``, encoded; raises ``ConfigError`` where nothing is."""
        texts = self.notes[name].combine_chunks()
        if texts.null_count == len(texts):
            raise ConfigError(f"the log notes no {name!r} of any conversation. Import it with that column.")
        return texts.dictionary_encode("encode")

    def noted_numbers(self, name: str) -> NDArray[np.float64]:
        """``(N,)`` the same as numbers, truth values as 1 and 0; NaN where nothing is noted."""
        texts = self.noted(name)
        values = [np.nan if text is None else json.loads(text) for text in texts.dictionary.to_pylist()]
        wrong = [value for value in values if not isinstance(value, bool | int | float)]
        if wrong:
            raise ConfigError(f"the log notes {wrong[0]!r} as {name!r}, expected a number. Add up numbers alone.")
        numbers: NDArray[np.float64] = np.array(values, float)[texts.indices.to_numpy()]
        return numbers

    def take(self, at: NDArray[np.intp]) -> Outcomes:
        """The conversations at these places, without what is of each reply."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        taken = {name: value[at] for name, value in values.items() if name.endswith("_N") and value is not None}
        places = pa.array(at)
        for name in ("ids", "groups", "words", "openings"):
            value = values[name]
            if isinstance(value, list):
                taken[name] = [value[place] for place in at.tolist()]
            elif value is not None:
                taken[name] = value.take(places)
        notes = {name: value.take(places) for name, value in self.notes.items()}
        return Outcomes(**taken, notes=notes, rejected_T=np.zeros(0, bool))

    def kept(self, kept_N: NDArray[np.bool_]) -> Outcomes:
        """Some of the conversations alone."""
        kept_T = np.repeat(kept_N, self.turns_N)
        of_replies = {each.name: getattr(self, each.name) for each in fields(self) if each.name.endswith("_T")}
        there = {name: values[kept_T] for name, values in of_replies.items() if values is not None}
        return replace(self.take(np.flatnonzero(kept_N)), **there)

    def each_reply(self, discount: float = 0.0) -> Outcomes:
        """The outcomes as if each reply were a conversation with its own reward, and later ones discounted: N is T."""
        assert self.reply_reward_T is not None, "read where it is asked for"
        to_go_T, one_T = self.reply_reward_T.copy(), np.ones(len(self.reply_reward_T), np.int16)
        if discount:
            start_N = np.cumsum(self.turns_N, dtype=np.intp) - self.turns_N
            for turn in range(int(self.turns_N.max()) - 2, -1, -1):
                at = start_N[self.turns_N > turn + 1] + turn
                to_go_T[at] += discount * to_go_T[at + 1]
        return replace(
            self.take(np.repeat(np.arange(len(self.turns_N)), self.turns_N)),
            reward_N=to_go_T,
            turns_N=one_T,
            rejected_T=self.rejected_T,
            loss_weight_T=self.loss_weight_T,
            graded_N=one_T * 0,
            distinct_N=one_T * 0,
            failures_N=one_T * 0,
        )


def is_rejected(step: Step) -> bool:
    """Whether an answer was asked for and the reply was no success and earned nothing: a mistake, not a step."""
    return step.graded and not step.success and step.reward <= 0


def outcome_values(outcomes: Outcomes, outcome: str | Mapping[str, Any]) -> NDArray[np.float64]:
    """What counts of each conversation, ``(N,)``; NaN where that is not known.

    A name, or a sum of several with a factor each, ``{reward: 1, success: 0.5}``: success (1 or 0), reward (the sum of
    the replies' rewards), or a number that the log notes under that name. Then, as far as given and in this order:
    ``clip: [low, high]``; ``normalize: true``, less the mean of all and divided by their standard deviation; and
    ``above: x``, 1 where it is larger than x, else 0.
    """
    given: Mapping[str, Any] = {outcome: 1.0} if isinstance(outcome, str) else outcome
    values_N = np.zeros(len(outcomes.turns_N))
    for name, factor in given.items():
        if name not in SHAPING:
            values_N = values_N + factor * _named(outcomes, name)
    if "clip" in given:
        low, high = given["clip"]
        values_N = np.clip(values_N, low, high)
    if given.get("normalize"):
        centred_N = values_N - np.nanmean(values_N) if np.isfinite(values_N).any() else values_N
        sigma = np.sqrt(np.nanmean(centred_N**2)) if len(centred_N) else 0.0
        values_N = centred_N / sigma if sigma > 1e-12 * np.nanmax(np.abs(values_N)) else centred_N * 0.0
    if "above" in given:
        values_N = np.where(np.isnan(values_N), np.nan, values_N > given["above"])
    return values_N


def noted_names(outcome: str | Iterable[str]) -> list[str]:
    """What of an outcome only a log can note."""
    names = () if isinstance(outcome, str) else outcome
    return [name for name in names if name not in ("success", "reward", *SHAPING)]


def _named(outcomes: Outcomes, name: str) -> NDArray[np.float64]:
    if name == "success":
        return np.where(outcomes.known_N, outcomes.success_N, np.nan)
    return outcomes.reward_N.astype(float) if name == "reward" else outcomes.noted_numbers(name)


def check_outcome(outcome: Any) -> None:
    """Raise ``ConfigError`` for what can't be an outcome; which names a log notes is seen when it is read."""
    where, expected = "weights.outcome", "success, reward, or a sum such as {reward: 1, success: 0.5}"
    if not isinstance(outcome, Mapping):
        require(outcome in (None, "success", "reward"), where, outcome, expected)
        return
    require(any(name not in SHAPING for name in outcome), where, dict(outcome), expected)
    for name, value in outcome.items():
        number = isinstance(value, int | float) and np.isfinite(value)
        if name == "clip":
            pair = isinstance(value, list | tuple) and len(value) == 2 and value[0] < value[1]
            require(pair, f"{where}.clip", value, "two numbers, the smaller first")
        elif name == "normalize":
            require(isinstance(value, bool), f"{where}.normalize", value, "true or false")
        else:
            require(number and not isinstance(value, bool), f"{where}.{name}", value, "a number")


def outcomes(trajectories: Sequence[Trajectory], **asked: Any) -> Outcomes:
    """Read outcomes off trajectories. Those with an error or without a turn have none and are left out.

    Args:
        trajectories: as recorded.
        asked: fields of ``Asked``.
    """
    rows, ask = [to_row(trajectory) for trajectory in trajectories], Asked(**asked)
    # Text may be what no Parquet file can hold, so it is left out unless it is needed.
    read = outcome_columns(pa.RecordBatch.from_pylist(rows, schema=SCHEMA if ask.columns != COLUMNS else _SCHEMA), ask)
    return Outcomes(
        ids=read["id"].to_pylist(),
        groups=read["group_id"].to_pylist(),
        **{f"{name}_N": np.asarray(read[name], kind) for name, kind in _NUMBERS.items()},
        **{f"{name}_T": _flat(name, read[name]) for name in _LISTS if name in read},
        notes={name: pa.chunked_array([read[NOTE + name]]) for name in ask.notes},
        words=pa.chunked_array([read["words"]]) if ask.words else None,
        openings=pa.chunked_array([read["openings"]]) if ask.openings else None,
    )


def read_outcomes(directory: str | Path, **asked: Any) -> Outcomes:
    """The outcomes of a finished data set, in the order of tasks and samples, whatever order they were written in.

    Some 60 bytes for each conversation, its id among them.

    Args:
        directory: the data set.
        asked: fields of ``Asked``.

    Raises:
        DatasetError: it is missing, empty, damaged or incomplete, or every conversation in it failed.
    """
    ask = Asked(**asked)
    # Where that is not what is there, the stream says so before its first batch.
    total, count = int(read_manifest(Path(directory), KIND)["counts"].get("trajectories", 0)), 0
    # In place from the start: parts that are joined later would be there twice.
    kinds = {name: kind for name, kind in _NUMBERS.items() if ask.first or name != "first_reward"}
    numbers: dict[str, Any] = {name: np.empty(total, kind) for name, kind in kinds.items()}
    parts: dict[str, list[Any]] = {"id": [], "task_id": [], "group_id": [], "rejected": []}
    parts |= {name: [] for name in ask.lists}
    for read in stream_outcomes(directory, ask):
        for name, values in numbers.items():
            values[count : count + len(read["id"])] = read[name]
        for name, chunks in parts.items():
            chunks.append(read[name])
        count += len(read["id"])
    if not count:
        raise DatasetError(f"{directory}: all {total} trajectories failed; there is nothing to weigh.")
    numbers = {name: values[:count] for name, values in numbers.items()}
    if all(map(operator.is_, parts["task_id"], parts["group_id"])):
        # Tasks are the groups, as they mostly are.
        del parts["group_id"]
    pa.default_memory_pool().release_unused()
    found = _in_order(numbers, {name: _joined(parts.pop(name)) for name in list(parts)})
    pa.default_memory_pool().release_unused()
    return found


def stream_outcomes(directory: str | Path, ask: Asked = PLAIN) -> Iterator[dict[str, Any]]:
    """What ``read_outcomes`` reads, some rows at a time, in the order they were written; see ``outcome_columns``."""
    rows = SPOKEN_AT_ONCE if ask.texts or ask.notes else ROWS_AT_ONCE
    for batch in _together(stream_columns(directory, ask.columns, rows=rows), rows):
        yield outcome_columns(batch, ask)
        # Or what is read with leaves its mark on the peak.
        pa.default_memory_pool().release_unused()


def _in_order(numbers: dict[str, Any], held: dict[str, Any]) -> Outcomes:
    """Columns as outcomes, sorted by task and sample as ``read_trajectories`` sorts them."""
    tasks = held.pop("task_id").unify_dictionaries().combine_chunks()
    groups = held.pop("group_id").unify_dictionaries().combine_chunks() if "group_id" in held else tasks
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
        for name in list(held):
            held[name] = _taken(held.pop(name), order)
            pa.default_memory_pool().release_unused()
    flat = {f"{name}_T": _flat(name, held.pop(name)) for name in list(held) if name in _LISTS}
    notes = {name.removeprefix(NOTE): held.pop(name) for name in list(held) if name.startswith(NOTE)}
    named = {f"{name}_N": values for name, values in numbers.items()}
    more: dict[str, Any] = {name: held.get(name) for name in ("words", "openings")}
    return Outcomes(ids=held["id"], groups=groups, notes=notes, **more, **named, **flat)


def _taken(column: pa.ChunkedArray, order: NDArray[np.intp]) -> pa.ChunkedArray:
    """A column in another order, some rows at a time: places of all that is in lists take more room than what is."""
    whole = pa.concat_arrays(column.chunks)
    starts = range(0, len(order), ROWS_AT_ONCE)
    return pa.chunked_array([whole.take(pa.array(order[at : at + ROWS_AT_ONCE])) for at in starts])


def _joined(chunks: list[pa.Array]) -> pa.ChunkedArray:
    """Chunks as one column; what replies count for may be truth values in some of them."""
    told = {chunk.type for chunk in chunks}
    return pa.chunked_array([chunk.cast(pa.list_(pa.float64())) for chunk in chunks] if len(told) > 1 else chunks)


def _flat(name: str, lists: pa.Array | pa.ChunkedArray) -> Any:
    """What is of each reply; ``None`` where a log says nothing of what replies count for."""
    flat = pc.list_flatten(lists)
    return None if name == "loss_weight" and pa.types.is_boolean(flat.type) else np.asarray(flat)


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
