"""Rows of a log file, one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from drift.dataset.imports.base import BadRow, show
from drift.dataset.store import KIND, count_trajectories, shards
from drift.errors import DatasetError
from drift.manifest import read_manifest

_CHUNK = 1 << 20
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log: JSON Lines, Parquet if it begins as such, or a directory of trajectories.

    Attributes:
        path: the file or directory.
        sha256: of its bytes; of a directory, its ``dataset_hash``.
        rows: how many lines or rows it has, empty lines included.
        parquet: the Parquet files to read in turn; none for JSON Lines.
    """

    path: Path
    sha256: str
    rows: int
    parquet: tuple[Path, ...]

    def __iter__(self) -> Iterator[tuple[int, object]]:
        """Line number (Parquet: row number) from 1, and the value there, or the ``BadRow`` that it is."""
        return self._parquet_rows() if self.parquet else self._json_rows()

    def _json_rows(self) -> Iterator[tuple[int, object]]:
        with self.path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    yield line, json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    fault = f"{error.msg} at character {error.pos}" if isinstance(error, JSONDecodeError) else error
                    start = raw[:40].decode(errors="replace").strip()
                    yield line, BadRow("not_json", f"{fault}; the line begins {show(start)}")

    def _parquet_rows(self) -> Iterator[tuple[int, object]]:
        line = 0
        for path in self.parquet:
            try:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH):
                    for row in batch.to_pylist():
                        line += 1
                        yield line, row
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from error


def open_source(path: Path) -> Source:
    """Look at a log: hash, number of rows, and which kind it is.

    Raises:
        DatasetError: there is no such file, it can't be read, or it is a directory without finished trajectories.
    """
    if path.is_dir():
        rows, parts = count_trajectories(path), tuple(shards(path))
        return Source(path=path, sha256=read_manifest(path, KIND)["dataset_hash"], rows=rows, parquet=parts)
    digest, newlines, ended, head = hashlib.sha256(), 0, True, b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                head = head or chunk[:4]
                digest.update(chunk)
                newlines += chunk.count(b"\n")
                ended = chunk.endswith(b"\n")
        parquet = head == b"PAR1"
        rows = pq.ParquetFile(path).metadata.num_rows if parquet else newlines + (not ended)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    return Source(path=path, sha256=digest.hexdigest(), rows=rows, parquet=(path,) if parquet else ())


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DatasetError(f"{path} can't be read: {reason.rstrip('.')}. Give a file of JSON Lines or Parquet.")
