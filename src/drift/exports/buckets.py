"""Rows on disk in buckets, so that what belongs together can be loaded together however many rows there are."""

from __future__ import annotations

import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift.manifest import writing

ROWS_PER_WRITE = 131_072


class Buckets:
    """Arrow rows in buckets by the hash of one of their columns: equal values lie in one bucket.

    They lie in one file without a name, which the system removes however the process ends.

    Args:
        directory: where; made if missing.
        schema: of the rows.
        key: name of the column that decides, one of strings.
        count: number of buckets.
        rows_per_write: rows held in memory before they are written; few where rows are large.

    Raises:
        StorageError: the disk refuses.
    """

    def __init__(
        self, directory: Path, schema: pa.Schema, key: str, count: int, *, rows_per_write: int = ROWS_PER_WRITE
    ) -> None:
        self._directory, self._schema, self._key, self.count = directory, schema, key, count
        self._rows_per_write = rows_per_write
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was not written yet is wanted by nobody, also where the disk refuses it.
        with suppress(OSError):
            self._file.close()

    def add(self, rows: pa.Table) -> None:
        """Put rows into their buckets, after those that are there already."""
        self._pending.append(rows)
        self._pending_rows += len(rows)
        if self._pending_rows >= self._rows_per_write:
            self._flush()

    def read(self, bucket: int) -> pa.Table:
        """The rows of a bucket, in the order in which they were added."""
        self._flush()
        parts = [self._schema.empty_table()]
        for offset, length in self._places[bucket]:
            # Seeking writes what is still in memory.
            with writing(self._directory):
                self._file.seek(offset)
                data = self._file.read(length)
            parts.append(pa.ipc.open_stream(pa.py_buffer(data)).read_all())
        return pa.concat_tables(parts).combine_chunks()

    def _flush(self) -> None:
        if not self._pending_rows:
            return
        rows = pa.concat_tables(self._pending).combine_chunks()
        self._pending, self._pending_rows = [], 0
        bucket_N = bucket_of(rows.column(self._key), self.count)
        rows = rows.take(pa.array(np.argsort(bucket_N, kind="stable")))
        bounds = np.concatenate([[0], np.cumsum(np.bincount(bucket_N, minlength=self.count))])
        with writing(self._directory):
            offset = self._file.seek(0, 2)
            for bucket in np.flatnonzero(np.diff(bounds)):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, self._schema) as stream:
                    stream.write_table(rows.slice(bounds[bucket], bounds[bucket + 1] - bounds[bucket]))
                length = self._file.write(sink.getvalue())
                self._places[bucket].append((offset, length))
                offset += length


def bucket_of(strings: pa.ChunkedArray, count: int) -> NDArray[np.int64]:
    """``(N,)`` in which of ``count`` buckets each string lies: its CRC-32 modulo ``count``, on every machine."""
    if count == 1:
        return np.zeros(len(strings), np.int64)
    codes = strings.combine_chunks().dictionary_encode()
    hashed = map(zlib.crc32, codes.dictionary.cast(pa.binary()).to_pylist())
    bucket_D = np.fromiter(hashed, np.int64, len(codes.dictionary)) % count
    bucket_N: NDArray[np.int64] = bucket_D[codes.indices.to_numpy()]
    return bucket_N
