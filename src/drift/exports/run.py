"""The export: a data set of trajectories in, one file of rows for preference trainers out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from drift.dataset.schema import SCHEMA, from_row, to_row
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import count_trajectories, stream_trajectories
from drift.errors import DatasetError
from drift.exports.buckets import Buckets
from drift.exports.config import ExportConfig
from drift.exports.conversations import conversations
from drift.exports.pairs import final_pairs, step_pairs, whole_pairs
from drift.exports.rendering import Rendering
from drift.exports.unpaired import labelled
from drift.manifest import package_versions, read_manifest, replacing, write_json
from drift.types import Trajectory

KIND = "export"
# Trajectories in memory at once, of whole prompts.
BUCKET_ROWS = 8192
MAKERS = {"dpo": whole_pairs, "dpo-final": final_pairs, "dpo-step": step_pairs, "kto": labelled}


def export_rows(trajectories: list[Trajectory], config: ExportConfig, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of trajectories that are all there, prompt by prompt, sorted.

    Args:
        trajectories: every trajectory of the prompts among them.
        config: what to make.
        counts: what was found and left out is added up here.
    """
    kept = conversations(trajectories, config)
    counts["failed"] += len(trajectories) - len(kept)
    kept.sort(key=lambda c: (c.trajectory.group_id, c.trajectory.task_id, c.trajectory.sample))
    for _, group in groupby(kept, key=lambda c: c.trajectory.group_id):
        counts["prompts"] += 1
        before = counts["rows"]
        for row in MAKERS[config.format](list(group), config, counts):
            counts["rows"] += 1
            counts["rows_without_ids"] += "sampled_ids" not in row
            yield row
        counts["prompts_without_row"] += counts["rows"] == before


def export_dataset(data: Path, out: Path, config: ExportConfig, *, tokenizer: Any = None) -> dict[str, Any]:
    """Write the rows of ``data`` to ``out``, JSON Lines in TRL's schema, and what they are to ``<out>.manifest.json``.

    Args:
        data: directory of trajectories.
        out: the file; it appears whole or not at all.
        config: what to make.
        tokenizer: of the model to be trained: the rows are rendered as TRL renders them and compared with the sampled
            ids; ``None`` compares nothing.

    Returns:
        The manifest.

    Raises:
        DatasetError: ``data`` is missing, damaged or incomplete, or nothing can be made of it.
        StorageError: the disk refuses.
    """
    manifest = read_manifest(data, TRAJECTORIES)
    counts: Counter[str] = Counter(dict.fromkeys(("rows", "prompts", "prompts_without_row", "failed"), 0))
    counts["rows_without_ids"] = 0
    rendering = Rendering(tokenizer) if tokenizer is not None else None
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for part in _parts(data, out.parent):
            for row in export_rows(part, config, counts):
                if rendering is not None:
                    rendering.compare(row)
                # Replies can hold anything, half of a UTF-16 pair too: escapes are read back as what they were.
                file.write(json.dumps(row) + "\n")
        if not counts["rows"]:
            raise DatasetError(
                f"{data}: nothing to export as {config.format} ({dict(counts)}). Sample more conversations per task, "
                "lower the margin, or choose another format."
            )
    content = {
        "kind": KIND,
        "packages": package_versions(),
        "config": config.to_dict(),
        "dataset_hash": manifest["dataset_hash"],
        "policy": manifest["spec"].get("policy"),
        "counts": dict(counts),
        "rendered": None if rendering is None else dict(rendering.counts),
    }
    write_json(out.with_name(out.name + ".manifest.json"), content)
    return content


def _parts(data: Path, scratch: Path) -> Iterator[list[Trajectory]]:
    """All trajectories, whole prompts at a time, in an order that does not hang on that of the shards."""
    count = max(1, math.ceil(count_trajectories(data) / BUCKET_ROWS))
    if count == 1:
        yield list(stream_trajectories(data))
        return
    with Buckets(scratch, SCHEMA, "group_id", count, rows_per_write=BUCKET_ROWS) as buckets:
        for trajectory in stream_trajectories(data):
            buckets.add(pa.Table.from_pylist([to_row(trajectory)], schema=SCHEMA))
        for bucket in range(count):
            yield [from_row(row) for row in buckets.read(bucket).to_pylist()]
