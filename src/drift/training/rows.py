"""Training rows in a file: written once as they are made, read one at a time from a memory map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drift.files import replacing
from drift.training.plan import Rows
from drift.types import Example

NAME = "rows.arrow"
_SCHEMA = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("group_id", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("weight", pa.list_(pa.float64())),
        ("mass", pa.float64()),
        ("logprobs", pa.list_(pa.float64())),
        ("starts", pa.list_(pa.int32())),
    ]
)
_BATCH = 1024


def write_rows(path: Path, examples: Iterable[Example]) -> None:
    """Write rows to an Arrow file, a batch at a time in memory."""
    with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
        values = ({name: getattr(example, name) for name in _SCHEMA.names} for example in examples)
        while batch := list(islice(values, _BATCH)):
            file.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))


class RowFile(Sequence[Example]):
    """The rows of a file, in the order of their trajectories' ids, whatever order they were written in.

    Args:
        path: made by ``write_rows``. It is mapped, not read: what is not asked for takes no memory.
    """

    def __init__(self, path: Path) -> None:
        self._map = pa.memory_map(str(path))
        file = pa.ipc.open_file(self._map)
        self._batches = [file.get_batch(at) for at in range(file.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        table = pa.Table.from_batches(self._batches, schema=_SCHEMA)
        # Sorted are places alone, and not the rows: those stay on the disk.
        names = table.select(["trajectory_id"]).append_column("place", pa.array(np.arange(table.num_rows)))
        order = pa.compute.sort_indices(names, [("trajectory_id", "ascending"), ("place", "ascending")])
        self._place_N = order.to_numpy().astype(np.int64)
        lengths = pa.compute.list_value_length(table.column("token_ids")).to_numpy()
        groups = table.column("group_id").dictionary_encode().combine_chunks()
        self.facts = Rows(
            group_N=groups.indices.to_numpy().astype(np.int64)[self._place_N],
            length_N=lengths.astype(np.int64)[self._place_N],
            mass_N=table.column("mass").to_numpy()[self._place_N],
        )

    def __len__(self) -> int:
        return len(self._place_N)

    def __getitem__(self, index: Any) -> Any:
        place = int(self._place_N[index])
        at = int(np.searchsorted(self._ends, place, side="right"))
        row = self._batches[at].slice(place - (int(self._ends[at - 1]) if at else 0), 1).to_pylist()[0]
        weight = tuple(row["weight"])
        return Example(
            trajectory_id=row["trajectory_id"],
            group_id=row["group_id"],
            token_ids=tuple(row["token_ids"]),
            sampled=tuple(value != 0 for value in weight),
            weight=weight,
            mass=row["mass"],
            logprobs=tuple(row["logprobs"]),
            starts=tuple(row["starts"]),
        )
