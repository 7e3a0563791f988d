"""The export: a data set of trajectories in, one file of rows for preference trainers out."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from drift.dataset.outcomes import stream_outcomes
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import count_trajectories, stream_trajectories
from drift.errors import DatasetError, require
from drift.exports.config import ExportConfig
from drift.exports.conversations import conversations
from drift.exports.rows import final_pairs, labelled, step_pairs, weighted, whole_pairs
from drift.files import replacing
from drift.manifest import package_versions, read_manifest, write_json
from drift.types import Trajectory
from drift.weights.table import read_weights

KIND = "export"
# Trajectories in memory at once, of whole prompts.
BUCKET_ROWS = 8192
RENDERED = ("same_ids", "same_but_for_the_end", "other_ids", "refused", "no_ids")
WEIGHTED = ("sft", "sft-sharegpt")
MAKERS = {"dpo": whole_pairs, "dpo-final": final_pairs, "dpo-step": step_pairs, "kto": labelled}
MAKERS |= dict.fromkeys(WEIGHTED, weighted)


def export_rows(
    trajectories: list[Trajectory],
    config: ExportConfig,
    counts: Counter[str],
    weights: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of trajectories that are all there, prompt by prompt, sorted.

    Args:
        trajectories: every trajectory of the prompts among them.
        config: what to make.
        counts: what was found and left out is added up here.
        weights: of the replies of each conversation, which the sft formats need.
    """
    kept = conversations(trajectories, config, weights)
    counts["failed"] += len(trajectories) - len(kept)
    if config.format not in WEIGHTED and not (config.format == "kto" and config.threshold is None):
        judged = [each for each in kept if not math.isnan(each.value)]
        counts.update(["unlabelled"] * (len(kept) - len(judged)))
        kept = judged
    kept.sort(key=lambda c: (c.trajectory.group_id, c.trajectory.task_id, c.trajectory.sample))
    for _, group in groupby(kept, key=lambda c: c.trajectory.group_id):
        counts["prompts"] += 1
        before = counts["rows"]
        for row in MAKERS[config.format](list(group), config, counts):
            counts["rows"] += 1
            counts["rows_without_ids"] += "sampled_ids" not in row and config.format not in WEIGHTED
            yield row
        counts["prompts_without_row"] += counts["rows"] == before


def export_dataset(
    data: Path, out: Path, config: ExportConfig, *, weights: Path | None = None, tokenizer: Any = None
) -> dict[str, Any]:
    """Write the rows of ``data`` to ``out``, JSON Lines in TRL's schema, and what they are to ``<out>.manifest.json``.

    Args:
        data: directory of trajectories.
        out: the file; it appears whole or not at all.
        config: what to make.
        weights: of the conversations, which the sft formats need.
        tokenizer: of the model to be trained: the rows are rendered as TRL renders them and compared with the sampled
            ids; ``None`` compares nothing.

    Returns:
        The manifest.

    Raises:
        DatasetError: ``data`` is missing, damaged or incomplete, or nothing can be made of it.
        StorageError: the disk refuses.
    """
    manifest = read_manifest(data, TRAJECTORIES)
    expected = "none" if weights else "a directory of them"
    sound = (weights is not None) == (config.format in WEIGHTED)
    require(sound, "weights", weights, f"{expected} with the format {config.format}")
    table = None if weights is None else read_weights(weights, data)
    if config.outcome is None:
        judged = any(part["known"].any() for part in stream_outcomes(data))
        config = replace(config, outcome="success" if judged else "reward")
    counts: Counter[str] = Counter(dict.fromkeys(("rows", "prompts", "prompts_without_row", "failed"), 0))
    counts["rows_without_ids"] = 0
    rendered: Counter[str] = Counter(dict.fromkeys(RENDERED, 0))
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for part in _whole_prompts(data, out.parent):
            for row in export_rows(part, config, counts, table):
                if tokenizer is not None:
                    compare_rendered(row, tokenizer, rendered)
                # Replies can hold anything, half of a UTF-16 pair too: escapes are read back as what they were.
                file.write(json.dumps(row) + "\n")
        if not counts["rows"]:
            raise DatasetError(
                f"{data}: nothing to export as {config.format} ({dict(counts)}). Sample more conversations per task, "
                "lower the margin, say with threshold what a good one is where nobody judged, or choose another format."
            )
    content = {
        "kind": KIND,
        "packages": package_versions(),
        "config": config.to_dict(),
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": table and table.hash,
        "policy": manifest["spec"].get("policy"),
        "counts": dict(counts),
        "rendered": None if tokenizer is None else dict(rendered),
    }
    write_json(out.with_name(out.name + ".manifest.json"), content)
    return content


def compare_rendered(row: Mapping[str, Any], tokenizer: Any, counts: Counter[str]) -> None:
    """Count whether each completion of ``row``, rendered as TRL renders it, has the ids that were sampled.

    TRL takes what the chat template gives for the prompt with a generation prompt, and for prompt and completion
    together; the completion is what follows their common beginning. ``same_but_for_the_end`` are those to which the
    template adds something after the last reply, such as a line break after the end of the turn, which TRL trains too.

    Args:
        row: with ``chosen`` and ``rejected``, or ``completion``.
        tokenizer: of the model to be trained, with a chat template.
        counts: one of ``RENDERED`` is added to for each completion.
    """
    from jinja2 import TemplateError

    ids = row.get("sampled_ids")
    for name in ("chosen", "rejected", "completion"):
        if name not in row:
            continue
        if ids is None:
            counts["no_ids"] += 1
            continue
        sampled = [*ids["prompt"], *ids[name]]
        try:
            rendered = tokenizer.apply_chat_template([*row["prompt"], *row[name]], tokenize=True, return_dict=True)
        except TemplateError:
            counts["refused"] += 1
            continue
        found = list(rendered["input_ids"])
        if found == sampled:
            counts["same_ids"] += 1
        else:
            counts["same_but_for_the_end" if found[: len(sampled)] == sampled else "other_ids"] += 1


def _whole_prompts(data: Path, scratch: Path) -> Iterator[list[Trajectory]]:
    """All trajectories, whole prompts at a time, in an order that does not depend on that of the shards.

    Those that are too many for memory go through a file without a name in ``scratch``, which the system removes however
    the process ends.
    """
    count = math.ceil(count_trajectories(data) / BUCKET_ROWS)
    if count <= 1:
        yield list(stream_trajectories(data))
        return
    # Where in the file the trajectories of each bucket begin.
    starts: list[array[int]] = [array("q") for _ in range(count)]
    with tempfile.TemporaryFile(dir=scratch) as file:
        for trajectory in stream_trajectories(data):
            starts[zlib.crc32(trajectory.group_id.encode()) % count].append(file.tell())
            pickle.dump(trajectory, file)
        for bucket in starts:
            yield [_unpickled(file, start) for start in bucket]


def _unpickled(file: IO[bytes], start: int) -> Trajectory:
    file.seek(start)
    trajectory: Trajectory = pickle.load(file)
    return trajectory
