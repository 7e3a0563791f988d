"""Which conversations, in which order: the part of an address after the question mark."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.dataset.pick import rows_at
from drift.dataset.schema import DAMAGED
from drift.errors import require, unknown_name
from drift.types import STOP_REASONS
from drift.viewer.index import UNKNOWN, Columns, Weighed

SUCCESSES = {"yes": 1, "no": 0, "unknown": UNKNOWN}
# What has numbers, as "least..most", either of which may be left out, or one number.
RANGES = ("turns", "reward", "return", "weight")
SORTS = ("turns", "reward", "return", "weight", "success", "sample")
KEYS = ("q", "task", "success", "stop", "error", *RANGES, "sort")
_SPOKEN = "messages.list.element.content"


def choose(
    columns: Columns, weighed: Weighed | None, query: Mapping[str, str], said_N: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The numbers of the conversations that ``query`` asks for, in its order.

    Args:
        columns: of a data set.
        weighed: its weights, without which nobody has a return or a weight.
        query: values by ``KEYS``; empty ones ask for nothing. ``sort`` is one of ``SORTS``, ``-`` before it from the
            largest down.
        said_N: ``(N,)`` where ``q`` was said, as ``Search`` finds it.

    Raises:
        ConfigError: a value that can't be, or a sort that there is none.
    """
    numbers = columns.numbers
    kept_N = np.ones(len(columns), bool) if said_N is None else said_N.copy()
    if query.get("success"):
        require(query["success"] in SUCCESSES, "success", query["success"], "yes, no or unknown")
        kept_N &= numbers["success"] == SUCCESSES[query["success"]]
    if query.get("stop"):
        require(query["stop"] in STOP_REASONS, "stop", query["stop"], f"one of {', '.join(STOP_REASONS)}")
        kept_N &= numbers["stop"] == STOP_REASONS.index(query["stop"])
    if wanted := query.get("error"):
        known = {"any": np.arange(len(columns.kinds)), "none": np.array([-1])}
        known |= {kind: np.array([code]) for code, kind in enumerate(columns.kinds)}
        if wanted not in known:
            raise unknown_name("kind of failure", wanted, known)
        kept_N &= np.isin(numbers["error"], known[wanted])
    if query.get("task"):
        found = (pc.match_substring(texts, query["task"]).to_numpy() for texts in (columns.tasks, columns.groups))
        kept_N &= np.logical_or(*found)
    for name in RANGES:
        if query.get(name):
            low, high = _range(name, query[name])
            values_N = _values(columns, weighed, name)
            kept_N &= (values_N >= low) & (values_N <= high)
    order = np.flatnonzero(kept_N)
    sort = query.get("sort", "")
    if sort:
        name = sort.removeprefix("-")
        require(name in SORTS, "sort", sort, f"one of {', '.join(SORTS)}, with - before it from the largest down")
        values_N = _values(columns, weighed, name)[order]
        # What has no value comes last, whichever way.
        order = order[np.argsort(-values_N if sort[0] == "-" else values_N, kind="stable")]
    return order


def _values(columns: Columns, weighed: Weighed | None, name: str) -> NDArray[np.float64]:
    if name in ("return", "weight"):
        if weighed is None:
            return np.full(len(columns), np.nan)
        return weighed.return_N if name == "return" else weighed.weight_N
    return np.asarray(columns.numbers[name], float)


def _range(name: str, text: str) -> tuple[float, float]:
    low, dots, high = text.strip().partition("..")
    try:
        ends = (float(low) if low else -np.inf, float(high) if high else np.inf)
    except ValueError:
        ends = (np.nan, np.nan)
    if not dots:
        ends = (ends[0], ends[0])
    require(ends[0] <= ends[1], name, text, "a number, or a range such as 0.5..2, 3.. or ..1")
    return ends


class Search:
    """Where a text was said, in any case; finds it shard by shard, and goes on where it was.

    Args:
        text: what must be in a message.
    """

    def __init__(self, text: str) -> None:
        self._text, self._lock = text, threading.Lock()
        self._said: list[NDArray[np.bool_]] = []

    def read(self, columns: Columns, seconds: float) -> tuple[NDArray[np.bool_], int]:
        """``(N,)`` where it was said as far as that is known after ``seconds``, and how many shards are left."""
        deadline, at_once = time.monotonic() + seconds, os.cpu_count() or 1
        with self._lock, ThreadPoolExecutor(at_once) as pool:
            while len(self._said) < len(columns.paths):
                at = len(self._said)
                self._said += pool.map(self._shard, columns.paths[at : at + at_once], np.diff(columns.start_S)[at:])
                if time.monotonic() > deadline:
                    break
            said_N = np.zeros(len(columns), bool)
            found = np.concatenate([[False][:0], *self._said])[: len(columns)]
            said_N[: len(found)] = found
            return said_N, max(0, len(columns.paths) - len(self._said))

    def _shard(self, path: Path, rows: int) -> NDArray[np.bool_]:
        said_N = np.zeros(rows, bool)
        try:
            with pq.ParquetFile(path) as file:
                lists = file.read(columns=[_SPOKEN], use_threads=False).column(0).combine_chunks()
        except DAMAGED:
            # The index tells that it can't be read.
            return said_N
        found = pc.match_substring(lists.flatten().field("content"), self._text, ignore_case=True)
        row_T = np.repeat(np.arange(len(lists)), lists.value_lengths().fill_null(0).to_numpy())
        said_N[row_T[np.flatnonzero(found.fill_null(False).to_numpy(zero_copy_only=False))]] = True
        return said_N


def read_rows(columns: Columns, places: Any, names: list[str] | None = None) -> dict[int, dict[str, Any]]:
    """Whole conversations, or columns of them, by their numbers; what can't be read is left out."""
    rows: dict[int, dict[str, Any]] = {}
    shard_of = np.searchsorted(columns.start_S, places, side="right") - 1
    for shard in dict.fromkeys(shard_of.tolist()):
        wanted = [int(at) for at, of in zip(places, shard_of, strict=True) if of == shard]
        first = int(columns.start_S[shard])
        try:
            found = rows_at(columns.paths[shard], [at - first for at in wanted], names)
        except DAMAGED:
            continue
        rows |= {first + at: row for at, row in found.items()}
    return rows
