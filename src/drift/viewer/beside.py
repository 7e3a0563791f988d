"""Conversations beside one another: those of one prompt as a tree of what they share, and policies on one task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drift.errors import require, unknown_name
from drift.types import Message
from drift.viewer.index import UNKNOWN, Columns
from drift.viewer.library import Library
from drift.viewer.stages import Stage

# Conversations of a prompt that are shown side by side.
MOST_COLUMNS = 64


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A message that some neighbouring conversations share, or the end of those that have no more."""

    message: Message | None
    span: int


def shared_tree(conversations: Sequence[Sequence[Message]]) -> tuple[list[int], list[list[Cell]]]:
    """Conversations in an order in which those that begin alike are neighbours, and a row of cells for each message.

    Cells of a row span all columns together; each lies below the cell of the message before it.
    """
    together, rows = [list(range(len(conversations)))], []
    for depth in range(max(map(len, conversations), default=0)):
        row: list[Cell] = []
        parted: list[list[int]] = []
        for members in together:
            branches: dict[str, list[int]] = {}
            for at in members:
                said = conversations[at][depth : depth + 1]
                branches.setdefault(json.dumps(said, sort_keys=True), []).append(at)
            for inside in branches.values():
                message = conversations[inside[0]][depth] if depth < len(conversations[inside[0]]) else None
                row.append(Cell(message=message, span=len(inside)))
            parted += branches.values()
        together = parted
        rows.append(row)
    return [at for members in together for at in members], rows


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """How policies did on a task: of each the share of its conversations that succeeded; ``None``: nobody judged it."""

    task: str
    shares: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The policies of an evaluation on the same tasks.

    Attributes:
        evaluation: the stage.
        mode: greedy or sampled.
        policies: their data sets by name, the baseline first.
        rows: the tasks that all of them have, and that ``change`` asks for, by name.
        counts: how many tasks changed in which way.
    """

    evaluation: Stage
    mode: str
    policies: Mapping[str, Stage]
    rows: tuple[TaskRow, ...]
    counts: Mapping[str, int]


CHANGES = ("gained", "lost", "same")


def compare_policies(library: Library, query: Mapping[str, str]) -> Comparison:
    """The tasks of ``query["evaluation"]``, in ``query["mode"]``, of which the outcome changed as ``change`` says.

    The change is that from the first policy to the last. Raises ``ConfigError`` for a name that there is none of.
    """
    stages = library.stages()
    known = {stage.name: stage for stage in stages if stage.kind == "evaluation"}
    require(bool(known), "evaluation", query.get("evaluation", ""), "a run that was evaluated; nothing was here")
    name, change = query.get("evaluation") or next(iter(known)), query.get("change", "")
    if name not in known:
        raise unknown_name("evaluation", name, known)
    require(change in ("", *CHANGES), "change", change, f"one of {', '.join(CHANGES)}")
    evaluation, by_path = known[name], {stage.path: stage for stage in stages}
    mode = query.get("mode") or evaluation.manifest["modes"][0]
    if mode not in evaluation.manifest["modes"]:
        raise unknown_name("mode", mode, evaluation.manifest["modes"])
    paths = {policy: evaluation.path / mode / policy for policy in evaluation.manifest["policies"]}
    policies = {policy: by_path[path] for policy, path in paths.items() if path in by_path}
    shares = [_shares(library.find({"data": stage.name}, patience=float("inf")).columns) for stage in policies.values()]
    tasks = sorted(set.intersection(*map(set, shares))) if shares else []
    rows = [TaskRow(task=task, shares=tuple(each[task] for each in shares)) for task in tasks]
    changes = [_change(row) for row in rows]
    chosen = tuple(row for row, is_ in zip(rows, changes, strict=True) if change in ("", is_))
    counts = {each: changes.count(each) for each in CHANGES}
    return Comparison(evaluation=evaluation, mode=mode, policies=policies, rows=chosen, counts=counts)


def _shares(columns: Columns) -> dict[str, float | None]:
    tasks, task_N = np.unique(np.array(columns.tasks.to_pylist(), object), return_inverse=True)
    judged_N = columns.numbers["success"] != UNKNOWN
    count = np.bincount(task_N, judged_N, minlength=len(tasks))
    right = np.bincount(task_N, columns.numbers["success"] == 1, minlength=len(tasks))
    return {task: r / c if c else None for task, r, c in zip(tasks.tolist(), right, count, strict=True)}


def _change(row: TaskRow) -> str:
    before, after = row.shares[0], row.shares[-1]
    if before is None or after is None or before == after:
        return "same"
    return "gained" if after > before else "lost"
