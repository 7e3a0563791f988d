"""MathDial, eth-nlped/mathdial: the word problems that its tutoring conversations are about, most of them GSM8K's
(Macina et al. 2023; CC BY 4.0 on the hub, CC BY-SA 4.0 in the authors' repository).

The conversations themselves are read by ``drift import --format mathdial``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question`` and the last line of ``ground_truth``, a number."""
    gold = row["ground_truth"].strip().rpartition("\n")[2].strip()
    if not any(character.isdigit() for character in gold):
        raise ValueError(f"the ground truth ends with {gold[:80]!r}, expected a number on a line of its own")
    return Problem(question=row["question"].strip(), gold=gold)


def problem_set() -> ProblemSet:
    """2,262 and 599 conversations; several are about one problem, and 394 problems are left of the latter."""
    return ProblemSet(hub="eth-nlped/mathdial", splits={"train": "train", "test": "test"}, read=read)
