"""weights.parquet: a row for each conversation with a weight for each reply. What is there is what is trained."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.checksums import sum_of
from drift.dataset.schema import DAMAGED
from drift.dataset.store import read_checked, repeated
from drift.errors import DatasetError
from drift.manifest import read_manifest
from drift.weights.groups import Floats

KIND, FILE, ROWS = "weights", "weights.parquet", 65_536
_NAMES, _LISTS = pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float64())
SCHEMA = pa.schema({"id": pa.large_string(), "group_id": _NAMES, "return": pa.float64(), "weights": _LISTS})


class WeightTable(Mapping[str, Sequence[float]]):
    """Weights as they were written: those of each conversation's replies by its id, without an object for each.

    Attributes:
        ids: Arrow strings, one for each of N conversations.
        start_N, weights_T: ``(N + 1,)`` where each conversation's replies begin in the ``(T,)`` weights.
        hash: SHA-256 of ids and weights, in the order of the file.
    """

    def __init__(self, ids: pa.ChunkedArray, start_N: NDArray[np.int64], weights_T: Floats) -> None:
        self.ids, self.start_N, self.weights_T = ids, start_N, weights_T
        self.hash = weights_hash(ids, start_N, weights_T)
        # Eight bytes of each id, sorted: texts would take four times as much.
        key_N = np.fromiter(map(hash, self), np.int64, len(ids))
        self._place_N = np.argsort(key_N, kind="stable").astype(np.uint32)
        self._key_N = key_N[self._place_N]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return (name for at in range(0, len(self.ids), ROWS) for name in self.ids[at : at + ROWS].to_pylist())

    def __getitem__(self, name: str) -> Sequence[float]:
        first, last = (np.searchsorted(self._key_N, hash(name), side) for side in ("left", "right"))
        for place in self._place_N[first:last].tolist():
            if self.ids[place].as_py() == name:
                return list(self.weights_T[self.start_N[place] : self.start_N[place + 1]].tolist())
        raise KeyError(name)


def weights_hash(ids: pa.ChunkedArray, start_N: NDArray[np.int64], weights_T: Floats) -> str:
    """SHA-256 of ids, number of replies and weights, in the order of the arguments."""
    digest = hashlib.sha256()
    for at in range(0, len(ids), ROWS):
        end = min(at + ROWS, len(ids))
        digest.update("\n".join([*ids[at:end].to_pylist(), ""]).encode())
        digest.update(np.diff(start_N[at : end + 1]).astype("<i8").tobytes())
        digest.update(weights_T[start_N[at] : start_N[end]].astype("<f8").tobytes())
    return digest.hexdigest()


def write_table(path: Path, ids: pa.ChunkedArray, groups: Any, returns_N: Floats, start_N: Any, weights_T: Any) -> None:
    """Write ``weights.parquet``; a part at a time, so that no second copy of all of it is in memory."""
    # Ids differ: looking for equal ones is a quarter of the time.
    repeated = ["group_id", "return", "weights.list.element"]
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=repeated) as writer:
        for at in range(0, len(ids), ROWS):
            end = min(at + ROWS, len(ids))
            offsets = pa.array((start_N[at : end + 1] - start_N[at]).astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(weights_T[start_N[at] : start_N[end]]))
            # Names of this part alone, as they come: the file does not hang on shards, nor hold all names in each part.
            names = groups[at:end].cast(pa.string()).dictionary_encode()
            columns = [ids[at:end], names, pa.array(returns_N[at:end]), lists]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def read_weights(path: Path, data: Path) -> WeightTable:
    """The weights in ``path``: a directory that ``drift weigh`` wrote, or a Parquet file made by anything.

    Raises ``DatasetError`` where they can't be read, or weigh other data than ``data`` is now or its manifest tells of.
    """
    if path.is_file():
        return read_file(path)
    manifest, current = read_manifest(path, KIND), read_checked(data)["dataset_hash"]
    if manifest["dataset_hash"] != current:
        raise DatasetError(
            f"{path} weighs other data than {data} ({manifest['dataset_hash']}, now {current}). Run drift weigh again."
        )
    return read_file(path / FILE, manifest.get("file_sum", ""))


def read_file(path: Path, wanted: str | None = None) -> WeightTable:
    """A Parquet file with the columns ``id`` and ``weights`` (a list, one number for each reply of the conversation).

    Raises ``DatasetError`` where it can't be read, lacks a column, names a conversation twice, holds what is no finite
    number, or has another checksum than the one that is ``wanted``.
    """
    # A part at a time into what grows where it lies, so that no second copy of all of it is in memory.
    ids, ends, weights = [pa.array([], pa.large_string())], array("q", [0]), array("d")
    try:
        if wanted is not None and wanted != (found := sum_of(path)):
            raise OSError(f"its checksum is {found}, expected {wanted}")
        with pq.ParquetFile(path) as file:
            columns = [file.schema_arrow.field(name).name for name in ("id", "weights")]
            for batch in file.iter_batches(ROWS, columns=columns):
                names = batch.column("id").cast(pa.large_string())
                lists = batch.column("weights").cast(pa.large_list(pa.float64()))
                # Offsets that lead out of the data, and bytes that are no text.
                names.validate(full=True)
                lists.validate(full=True)
                if names.null_count or lists.null_count:
                    nulls = f"{names.null_count} ids and {lists.null_count} lists of weights are null"
                    raise DatasetError(f"{path}: of {len(batch):,} rows {nulls}. Give each conversation both.")
                ids.append(names)
                ends.frombytes((ends[-1] + np.cumsum(pc.list_value_length(lists).to_numpy())).tobytes())
                weights.frombytes(np.asarray(pc.list_flatten(lists), float).tobytes())
    except (*DAMAGED, KeyError) as error:
        raise DatasetError(
            f"{path} can't be read: {error}. Expected a Parquet file with the columns id (text) and weights (a list of "
            "numbers, one for each reply of the conversation). Run drift weigh again, or write it so."
        ) from error
    table = WeightTable(pa.chunked_array(ids), np.frombuffer(ends, np.int64), np.frombuffer(weights))
    bad = np.flatnonzero(~np.isfinite(table.weights_T))
    if len(bad):
        name = table.ids[int(np.searchsorted(table.start_N, bad[0], side="right")) - 1].as_py()
        where = f"a reply of conversation {name!r} has {table.weights_T[bad[0]]}, expected a number"
        raise DatasetError(f"{path}: {len(bad)} weights are not finite; {where}. Run drift weigh again.")
    if twice := repeated(table.__iter__):
        raise DatasetError(f"{path}: {len(twice)} ids are there twice, such as {twice[0]!r}. Give each once.")
    return table


def chain_of(path: Path) -> dict[str, Any]:
    """How the weights in ``path`` were made, for the record of what is trained on them."""
    return {"file": path.name} if path.is_file() else dict(read_manifest(path, KIND)["chain"])
