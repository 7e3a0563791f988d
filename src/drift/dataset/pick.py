"""A few conversations out of very many, without the others in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drift.dataset.schema import from_row
from drift.dataset.store import shards
from drift.types import Trajectory


def rows_at(path: Path, places: Sequence[int], names: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    """Rows of a shard, or columns of them, by their places from 0; what comes after the last of them is not decoded.

    Raises:
        OSError: the shard can't be read; ``pyarrow.ArrowException`` where it is damaged.
    """
    rows: dict[int, dict[str, Any]] = {}
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(512, columns=names, use_threads=False):
            inside = [at for at in places if first <= at < first + len(batch)]
            taken = batch.take(pa.array([at - first for at in inside], pa.int64())).to_pylist()
            rows |= dict(zip(inside, taken, strict=True))
            first += len(batch)
            if first > max(places, default=-1):
                break
    return rows


def read_by_id(directory: Path, ids: Collection[str]) -> dict[str, Trajectory]:
    """The conversations of a data set with these ids, as far as they are there, by id."""
    found: dict[str, Trajectory] = {}
    wanted = pa.array(sorted(ids), pa.string())
    for path in shards(directory):
        with pq.ParquetFile(path) as file:
            held = file.read(columns=["id"], use_threads=False).column("id")
        places = pc.indices_nonzero(pc.is_in(held, wanted)).to_pylist()
        if places:
            found |= {row["id"]: from_row(row) for row in rows_at(path, places).values()}
    return found
