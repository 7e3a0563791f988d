"""weights.parquet: a row for each conversation with a weight for each reply. What is there is what is trained."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.checksums import sum_of
from drift.dataset.store import read_checked
from drift.errors import DatasetError
from drift.manifest import read_manifest
from drift.weights.groups import Floats

KIND = "weights"
FILE = "weights.parquet"
ROWS = 65_536
_NAMES, _LISTS = pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float64())
SCHEMA = pa.schema({"id": pa.large_string(), "group_id": _NAMES, "return": pa.float64(), "weights": _LISTS})


@dataclass(frozen=True, kw_only=True)
class WeightTable:
    """Weights as they were written.

    Attributes:
        ids: Arrow strings, one for each of N conversations.
        start_N: ``(N + 1,)`` where each conversation's replies begin in ``weights_T``.
        weights_T: ``(T,)`` of each reply, conversation after conversation.
        hash: SHA-256 of ids and weights, in the order of the file.
    """

    ids: pa.ChunkedArray
    start_N: NDArray[np.int64]
    weights_T: Floats
    hash: str

    def by_id(self) -> ById:
        """The weights of a conversation's replies by its id."""
        return ById(self)


class ById(Mapping[str, Sequence[float]]):
    """The weights of each conversation's replies by its id, without an object for each conversation."""

    def __init__(self, table: WeightTable) -> None:
        order = pc.sort_indices(table.ids)
        self._ids, self._place_N, self._table = table.ids.take(order).combine_chunks(), order.to_numpy(), table

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return (each.as_py() for each in self._ids)

    def __getitem__(self, name: str) -> Sequence[float]:
        # Arrow sorts by UTF-8 bytes, which is Python's order of strings too.
        at = bisect_left(range(len(self._ids)), name, key=lambda place: self._ids[place].as_py())
        if at == len(self._ids) or self._ids[at].as_py() != name:
            raise KeyError(name)
        start, end = self._table.start_N[self._place_N[at] :][:2]
        weights: list[float] = self._table.weights_T[start:end].tolist()
        return weights


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

    Raises:
        DatasetError: they can't be read, or were made from another data set than ``data`` is now; or ``data`` has other
            shards than its manifest lists.
    """
    if path.is_file():
        return read_file(path)
    manifest, current = read_manifest(path, KIND), read_checked(data)["dataset_hash"]
    if manifest["dataset_hash"] != current:
        raise DatasetError(
            f"{path} weighs other data than {data} ({manifest['dataset_hash']}, now {current}). Run drift weigh again."
        )
    return read_table(path, manifest)


def read_table(directory: Path, manifest: Mapping[str, Any]) -> WeightTable:
    """The file of weights as ``manifest`` describes it; raises ``DatasetError`` where it is not what was written."""
    path = directory / FILE
    try:
        found, wanted = sum_of(path), manifest["file_sum"]
        if found != wanted:
            raise OSError(f"its checksum is {found}, expected {wanted}")
    except (OSError, KeyError) as error:
        raise DatasetError(f"{path} can't be read: {error}. Run drift weigh again.") from error
    return read_file(path)


def read_file(path: Path) -> WeightTable:
    """A Parquet file with the columns ``id`` and ``weights`` (a list, one number for each reply of the conversation).

    Raises:
        DatasetError: it can't be read, lacks a column, names a conversation twice, or holds what is no finite number.
    """
    try:
        table = pq.read_table(path, columns=["id", "weights"])
        ids = table.column("id").cast(pa.large_string())
        lists = table.column("weights").cast(pa.large_list(pa.float64()))
        # Offsets that lead out of the data, and bytes that are no text.
        ids.validate(full=True)
        lists.validate(full=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(
            f"{path} can't be read: {error}. Expected a Parquet file with the columns id (text) and weights (a list of "
            "numbers, one for each reply of the conversation). Run drift weigh again, or write it so."
        ) from error
    if ids.null_count or lists.null_count:
        raise DatasetError(f"{path}: {ids.null_count} ids and {lists.null_count} lists of weights are null.")
    weights_T = np.asarray(pc.list_flatten(lists).to_numpy(), float)
    start_N = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int64)
    bad = np.flatnonzero(~np.isfinite(weights_T))
    if len(bad):
        name = ids[int(np.searchsorted(start_N, bad[0], side="right")) - 1].as_py()
        where = f"a reply of conversation {name!r} has {weights_T[bad[0]]}, expected a number"
        raise DatasetError(f"{path}: {len(bad)} weights are not finite; {where}. Run drift weigh again.")
    if twice := len(ids) - len(pc.unique(ids)):
        raise DatasetError(f"{path}: {twice} ids are there twice. Give each once.")
    return WeightTable(ids=ids, start_N=start_N, weights_T=weights_T, hash=weights_hash(ids, start_N, weights_T))


def chain_of(path: Path) -> dict[str, Any]:
    """How the weights in ``path`` were made, for the record of what is trained on them."""
    return {"file": path.name} if path.is_file() else dict(read_manifest(path, KIND)["chain"])
