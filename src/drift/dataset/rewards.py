"""rewards.parquet: rewards that somebody gave whole conversations of a data set afterwards, beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drift.checksums import sum_of
from drift.dataset.outcomes import Outcomes
from drift.dataset.schema import DAMAGED
from drift.errors import DatasetError
from drift.files import replacing
from drift.manifest import read_manifest

KIND, FILE = "rewards", "rewards.parquet"


def write_rewards(path: Path, rewards: Mapping[str, float]) -> None:
    """Write a reward for each conversation that has one, by id."""
    with replacing(path) as temporary:
        pq.write_table(pa.table({"id": list(rewards), "reward": pa.array(rewards.values(), pa.float64())}), temporary)


def with_rewards(outcomes: Outcomes, path: Path, dataset_hash: str) -> tuple[Outcomes, dict[str, Any]]:
    """The conversations to which ``path`` gives a reward, with that instead of their own; and where it came from.

    Args:
        outcomes: of the data set.
        path: a directory that ``drift rank`` wrote, or a Parquet file with the columns ``id`` and ``reward``.
        dataset_hash: of the data set.

    Raises:
        DatasetError: it can't be read, is of another data set, names a conversation twice, or none of these.
    """
    file = path / FILE if path.is_dir() else path
    if path.is_dir():
        made = read_manifest(path, KIND)
        if made["dataset_hash"] != dataset_hash:
            raise DatasetError(f"{path} rates other data ({made['dataset_hash']}, this is {dataset_hash}). Rank this.")
        if not file.is_file() or made["file_sum"] != sum_of(file):
            raise DatasetError(f"{file} is gone, or not what its manifest tells of. Run the same drift rank again.")
    try:
        table = pq.read_table(file, columns=["id", "reward"])
        ids, values = table.column("id").cast(pa.large_string()), table.column("reward").cast(pa.float64())
    except (*DAMAGED, KeyError) as error:
        raise DatasetError(
            f"{file} can't be read: {error}. Expected a Parquet file with the columns id (text) and reward (a number)."
        ) from error
    if ids.null_count or len(pc.unique(ids)) != len(ids):
        raise DatasetError(f"{file}: {len(ids) - len(pc.unique(ids))} ids are null or there twice. Give each once.")
    wanted = outcomes.ids if not isinstance(outcomes.ids, list) else pa.array(outcomes.ids, pa.large_string())
    reward_N = values.take(pc.index_in(wanted, ids)).to_numpy()
    known_N = np.isfinite(reward_N)
    if not known_N.any():
        raise DatasetError(f"{file} gives no conversation of the data set a number. Expected ids as drift writes them.")
    kept = replace(outcomes, reward_N=reward_N)
    return kept if known_N.all() else kept.kept(known_N), {"file": file.name, "sum": sum_of(file)}
