"""Adaptive sampling: a few conversations of every prompt first, the rest only of prompts that these left undecided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drift.dataset.columns import COLUMNS, outcome_columns
from drift.dataset.store import stored_columns
from drift.types import Task


def undecided(directory: Path, tasks: Sequence[Task], first: int) -> list[Task]:
    """The tasks of prompts whose first conversations hold both successes and failures.

    A prompt is decided when all of its first conversations succeeded, or none did; those that failed in the
    environment tell nothing. It is a function of what is on disk, so that a run that was interrupted decides alike.

    Args:
        directory: the data set, with the first conversations of every task.
        tasks: all tasks.
        first: how many samples of each task come first.
    """
    seen: dict[str, set[bool]] = {}
    for batch in stored_columns(directory, COLUMNS):
        read = outcome_columns(batch)
        columns = (read[name].tolist() for name in ("group_id", "sample", "success"))
        for group, sample, success in zip(*columns, strict=True):
            if sample < first:
                seen.setdefault(group, set()).add(success)
    return [task for task in tasks if len(seen.get(task.group_id, ())) == 2]
