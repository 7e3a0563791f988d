"""OpenBookQA, allenai/openbookqa: elementary science, multiple choice of four."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet, lettered


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question_stem``, ``choices`` (``text``, ``label``) and ``answerKey``."""
    options, gold = lettered(row["choices"]["text"], row["choices"]["label"].index(row["answerKey"].strip()))
    return Problem(question=row["question_stem"].strip(), gold=gold, options=options)


def problem_set() -> ProblemSet:
    """4,957 and 500 problems."""
    splits = {"train": "train", "test": "test"}
    return ProblemSet(hub="allenai/openbookqa", config="main", splits=splits, read=read)
