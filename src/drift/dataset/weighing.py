"""The weighing stage: a data set of trajectories in, a table of weights beside it out, whatever their number."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.checksums import sum_of
from drift.dataset.buckets import Buckets
from drift.dataset.outcomes import (
    COLUMNS,
    PATH_COLUMNS,
    PATH_ROWS,
    ROWS,
    Outcomes,
    outcome_rows,
    outcomes,
    sorted_outcomes,
)
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import count_trajectories, stream_columns
from drift.dataset.table import WeightTable
from drift.dataset.weigher import Weigher, compute_weights
from drift.errors import DatasetError
from drift.manifest import MANIFEST, read_manifest, replacing, write_manifest
from drift.weights.config import WeightConfig
from drift.weights.schemes import get_scheme

__all__ = ["Outcomes", "WeightTable", "compute_weights", "outcomes", "read_weights", "weigh_dataset", "weights_hash"]
KIND = "weights"
FILE = "weights.parquet"
# Trajectories weighed at once; some 300 bytes each.
BUCKET_ROWS = 131_072
_TABLE = pa.schema([("id", pa.string()), ("group_id", pa.string()), ("return", pa.float64()), ("weight", pa.float64())])
Floats = NDArray[np.float64]


def weigh_dataset(data: Path, config: WeightConfig, out: Path) -> dict[str, Any]:
    """Weigh the data set in ``data`` and write weights and manifest to ``out``.

    Only the columns that outcomes need are read. Their rows are put into buckets by prompt on disk, and weighed and
    written a bucket at a time, so that memory does not grow with the number of trajectories.

    Raises:
        DatasetError: ``data`` is missing, empty, damaged or incomplete, or every trajectory in it failed.
        ConfigError: the settings don't fit the data.
        StorageError: the disk refuses.
    """
    start = time.monotonic()
    manifest = read_manifest(data, TRAJECTORIES)
    get_scheme(config.scheme)
    count, kept, digest = count_trajectories(data), 0, 0
    paths, by_opening = config.luck == "average", config.group_by == "opening"
    columns = [*COLUMNS, *PATH_COLUMNS] if paths or by_opening else COLUMNS
    with Buckets(out, PATH_ROWS if paths else ROWS, "group_id", max(1, math.ceil(count / BUCKET_ROWS))) as buckets:
        # What was said takes far more room than how it went.
        for batch in stream_columns(data, columns, rows=4096 if len(columns) > len(COLUMNS) else 65_536):
            rows = outcome_rows(batch, group_by=config.group_by, paths=paths)
            kept += len(rows)
            buckets.add(rows)
        if not kept:
            raise DatasetError(f"{data}: all {count} trajectories failed; there is nothing to weigh.")

        def parts() -> Iterator[Outcomes]:
            return (sorted_outcomes(rows) for rows in map(buckets.read, range(buckets.count)) if len(rows))

        weigher = Weigher(config, parts, first=int(manifest["spec"].get("first", 0)))
        with replacing(out / FILE) as temporary:
            with pq.ParquetWriter(temporary, _TABLE, compression="zstd") as writer:
                for found in parts():
                    returns_N, weights_N = weigher.weigh(found)
                    digest += _sum_of_digests(found.ids.to_pylist(), weights_N)
                    writer.write_table(pa.table([found.ids, found.groups, returns_N, weights_N], schema=_TABLE))
            report = weigher.report(lambda: _column(temporary, "weight"), lambda: _column(temporary, "return"))
            # Until the manifest of the new weights is there, there is none: one never describes others' weights.
            (out / MANIFEST).unlink(missing_ok=True)
            file_sum = sum_of(temporary)
    content = {
        "config": config.to_dict(),
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": _hexadecimal(digest),
        "file_sum": file_sum,
        "excluded": {"failed": count - kept},
        "diagnostics": report,
        "cost": {"seconds": round(time.monotonic() - start, 3)},
    }
    write_manifest(out, KIND, content)
    return read_manifest(out, KIND)


def weights_hash(ids: Sequence[str] | pa.ChunkedArray, weights_N: Floats) -> str:
    """Hash of weights by trajectory id, in any order: the sum modulo 2²⁵⁶ of the SHA-256 of each row.

    A row is the weight as 8 bytes, the lowest first, and the id in UTF-8. Equal for equal weights; it is no proof
    against someone who looks for other weights of the same sum.
    """
    digest = 0
    for first in range(0, len(ids), BUCKET_ROWS):
        part = slice(first, first + BUCKET_ROWS)
        names = ids[part].to_pylist() if isinstance(ids, pa.ChunkedArray) else ids[part]
        digest += _sum_of_digests(names, weights_N[part])
    return _hexadecimal(digest)


def _sum_of_digests(ids: Sequence[str], weights_N: Floats) -> int:
    weights = np.asarray(weights_N, "<f8").view("V8").tolist()
    rows = zip(ids, weights, strict=True)
    digests = b"".join([hashlib.sha256(weight + name.encode()).digest() for name, weight in rows])
    # Eight words of 32 bits a row, summed in 64: carries come last.
    sums = np.frombuffer(digests, ">u4").reshape(-1, 8).sum(axis=0, dtype=np.uint64).tolist()
    return sum(word << 32 * place for place, word in enumerate(reversed(sums)))


def _hexadecimal(digest: int) -> str:
    return f"{digest % 2**256:064x}"


def _column(path: Path, name: str) -> Iterator[Floats]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BUCKET_ROWS, columns=[name]):
            yield batch.column(0).to_numpy(zero_copy_only=False)


def read_weights(directory: Path, data: Path) -> WeightTable:
    """The weights in ``directory``; raises ``DatasetError`` where they were not made from ``data`` as it is now."""
    manifest = read_manifest(directory, KIND)
    current = read_manifest(data, TRAJECTORIES)["dataset_hash"]
    if manifest["dataset_hash"] != current:
        raise DatasetError(
            f"the weights in {directory} were made from another data set than {data} "
            f"(hash {manifest['dataset_hash']}, now {current}). Run drift weigh again."
        )
    return read_table(directory, manifest)


def read_table(directory: Path, manifest: Mapping[str, Any]) -> WeightTable:
    """The file of weights as ``manifest`` describes it; raises ``DatasetError`` where it is not what was written."""
    path, wanted = directory / FILE, manifest.get("file_sum")
    try:
        found = sum_of(path)
        if wanted is not None and found != wanted:
            raise OSError(f"its checksum is {found}, expected {wanted}")
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} can't be read: {error}. Run drift weigh again.") from error
    weights = WeightTable(
        ids=table.column("id"),
        groups=table.column("group_id"),
        weights_N=table.column("weight").to_numpy(),
    )
    bad = np.flatnonzero(~np.isfinite(weights.weights_N))
    if len(bad):
        at = int(bad[0])
        raise DatasetError(
            f"{path}: {len(bad)} weights are not finite; that of trajectory {weights.ids[at].as_py()!r} is "
            f"{weights.weights_N[at]}, expected a number. Run drift weigh again."
        )
    return weights
