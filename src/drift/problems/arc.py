"""ARC-Challenge, allenai/ai2_arc: grade-school science, multiple choice (CC BY-SA 4.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet, lettered


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question``, ``choices`` (``text``, ``label``: letters or digits) and ``answerKey``."""
    right = row["choices"]["label"].index(row["answerKey"])
    options, gold = lettered(row["choices"]["text"], right)
    return Problem(question=row["question"].strip(), gold=gold, options=options)


def problem_set() -> ProblemSet:
    """1,119 and 1,172 problems."""
    splits = {"train": "train", "test": "test"}
    return ProblemSet(hub="allenai/ai2_arc", config="ARC-Challenge", splits=splits, read=read)
