"""What a million conversations can be sorted and filtered by, in some 60 bytes each; texts are left on disk."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.dataset.schema import DAMAGED, SCHEMA
from drift.dataset.store import check_shard, shards
from drift.dataset.tally import failure_kind
from drift.errors import DatasetError
from drift.types import STOP_REASONS
from drift.viewer.stages import Stage
from drift.weights.table import FILE

_TURNS = "turns.list.element."
_COLUMNS = ["id", "task_id", "group_id", "sample", "stop_reason", "error", _TURNS + "reward", _TURNS + "success"]
# A success that nobody judged.
UNKNOWN = -1
_READINGS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Conversations, numbered in the order they were written.

    Attributes:
        ids, tasks, groups: Arrow strings.
        numbers: by name ``(N,)`` sample, turns, reward, success (1, 0 or ``UNKNOWN``), stop (of ``STOP_REASONS``),
            error (of ``kinds``; -1: none).
        kinds: what the failures are counted as.
        paths: the shards.
        start_S: ``(S + 1,)`` the number of each shard's first conversation.
        waiting: shards that are not read yet.
        problems: why a shard can't be read, in words.
        reading: a number of its own, until another data set lies there or a shard is another.
    """

    ids: pa.ChunkedArray
    tasks: pa.ChunkedArray
    groups: pa.ChunkedArray
    numbers: dict[str, NDArray[Any]]
    kinds: tuple[str, ...]
    paths: tuple[Path, ...]
    start_S: NDArray[np.int64]
    waiting: int
    problems: tuple[str, ...]
    reading: int

    def __len__(self) -> int:
        return len(self.ids)

    def place_of(self, name: str) -> int | None:
        """The number of the conversation with this id; ``None`` where there is none."""
        at = pc.index(self.ids, pa.scalar(name, self.ids.type)).as_py()
        return None if at < 0 else int(at)

    def in_group(self, group: str) -> list[int]:
        """The numbers of the conversations of a prompt, by task and sample."""
        return self._where(self.groups, group)

    def of_task(self, task: str) -> list[int]:
        """The numbers of a task's conversations, by sample."""
        return self._where(self.tasks, task)

    def _where(self, texts: pa.ChunkedArray, text: str) -> list[int]:
        found = np.flatnonzero(pc.equal(texts, pa.scalar(text, texts.type)).to_numpy()).tolist()
        return sorted(found, key=lambda at: (self.tasks[at].as_py(), int(self.numbers["sample"][at])))


class Index:
    """Reads the cheap columns of a data set a shard at a time, finished or not, and goes on as shards are added.

    Args:
        directory: the data set.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._lock = directory, threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._reading = next(_READINGS)
        self._read: dict[Path, tuple[int, int]] = {}
        self._blocks: list[dict[str, Any]] = []
        self._kinds: dict[str, int] = {}
        self._problems: list[str] = []
        self._columns: Columns | None = None

    def read(self, seconds: float = float("inf")) -> Columns:
        """What can be read within ``seconds``, a shard at least; what was read before is there at once."""
        deadline = time.monotonic() + seconds
        known = [(path, _stamp(path)) for path in shards(self._directory)]
        while True:
            with self._lock:
                if known[: len(self._read)] != list(self._read.items()):
                    # Another data set has taken this one's place, or a shard was changed.
                    self._begin()
                waiting = known[len(self._read) :]
                if waiting:
                    self._add(*waiting[0])
                if len(waiting) <= 1 or time.monotonic() > deadline:
                    return self._joined(max(0, len(waiting) - 1))

    def _add(self, path: Path, stamp: tuple[int, int]) -> None:
        try:
            check_shard(path)
            with pq.ParquetFile(path) as file:
                table = file.read(columns=_COLUMNS, use_threads=False).combine_chunks()
        except DAMAGED as error:
            self._problems.append(f"{path.name} can't be read and is left out: {str(error).rstrip('.')}.")
            table = pa.table({name: [] for name in SCHEMA.names}, schema=SCHEMA)
        self._read[path] = stamp
        self._blocks.append(self._numbers(table))
        self._columns = None

    def _numbers(self, table: pa.Table) -> dict[str, Any]:
        turns = table.column("turns").combine_chunks()
        turns_N = turns.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        some_N, end_N = turns_N > 0, np.cumsum(turns_N)
        flat = turns.flatten()
        reward_N, success_N = np.zeros(len(turns_N)), np.zeros(len(turns_N), np.int8)
        if some_N.any():
            reward_N[some_N] = np.add.reduceat(
                flat.field("reward").to_numpy(zero_copy_only=False), (end_N - turns_N)[some_N]
            )
            judged_T = flat.field("success").cast(pa.int8()).fill_null(UNKNOWN).to_numpy(zero_copy_only=False)
            success_N[some_N] = judged_T[end_N[some_N] - 1]
        error_N = np.full(len(turns_N), -1, np.int16)
        errors = table.column("error")
        for at in np.flatnonzero(errors.is_valid().to_numpy()):
            kind = failure_kind(errors[int(at)].as_py())
            error_N[at] = self._kinds.setdefault(kind, len(self._kinds))
        stops = pc.index_in(table.column("stop_reason"), pa.array(STOP_REASONS))
        return {
            "ids": table.column("id"),
            "tasks": table.column("task_id"),
            "groups": table.column("group_id"),
            "sample": table.column("sample").to_numpy(),
            "turns": turns_N.astype(np.int32),
            "reward": reward_N,
            "success": success_N,
            "stop": stops.fill_null(-1).to_numpy().astype(np.int8),
            "error": error_N,
        }

    def _joined(self, waiting: int) -> Columns:
        if self._columns is None or self._columns.waiting != waiting:
            empty = self._numbers(pa.table({name: [] for name in SCHEMA.names}, schema=SCHEMA))
            blocks = [empty, *self._blocks]
            texts = {name: _strings([block[name] for block in blocks]) for name in ("ids", "tasks", "groups")}
            names = [name for name in empty if name not in texts]
            self._columns = Columns(
                **texts,
                numbers={name: np.concatenate([block[name] for block in blocks]) for name in names},
                kinds=tuple(self._kinds),
                paths=tuple(self._read),
                start_S=np.cumsum([len(block["sample"]) for block in blocks]),
                waiting=waiting,
                problems=tuple(self._problems),
                reading=self._reading,
            )
        return self._columns


def _stamp(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def _strings(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """What weights say of the conversations of an index.

    Attributes:
        return_N, weight_N: return, and the weight of the largest ``|w|`` of its replies; NaN where there is none.
        largest: the largest ``|w|`` of all.
    """

    return_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]
    largest: float
    _place_N: NDArray[np.int64]
    _lists: pa.ChunkedArray

    def of(self, at: int) -> list[float] | None:
        """The weights of a conversation's replies; ``None`` where it has none."""
        place = int(self._place_N[at])
        return None if place < 0 else self._lists[place].as_py()


def weigh_index(columns: Columns, weights: Stage) -> Weighed:
    """Join ``weights`` to conversations by their ids; raises ``DatasetError`` where they can't be read."""
    path = weights.path / FILE
    try:
        table = pq.read_table(path, columns=["id", "return", "weights"])
    except DAMAGED as error:
        raise DatasetError(f"{path} can't be read: {error}. Run drift weigh again.") from error
    lists = table.column("weights")
    weights_T = pc.list_flatten(lists).to_numpy()
    lengths = pc.list_value_length(lists).to_numpy()
    start_N, some_N = (np.cumsum(lengths) - lengths)[lengths > 0], lengths > 0
    # Places from the end: what has no weights is at -1.
    heaviest, returns = (np.full(len(lengths) + 1, np.nan) for _ in range(2))
    returns[:-1] = table.column("return").to_numpy()
    if some_N.any():
        most, least = np.maximum.reduceat(weights_T, start_N), np.minimum.reduceat(weights_T, start_N)
        heaviest[:-1][some_N] = np.where(most >= -least, most, least)
    place_N = pc.index_in(columns.ids, table.column("id").cast(pa.string())).fill_null(-1).to_numpy().astype(np.int64)
    largest = float(np.abs(weights_T).max(initial=0.0))
    values = {"return_N": returns[place_N], "weight_N": heaviest[place_N]}
    return Weighed(**values, largest=largest, _place_N=place_N, _lists=lists)
