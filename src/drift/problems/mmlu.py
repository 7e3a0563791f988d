"""MMLU, cais/mmlu: multiple choice of four in 57 subjects (MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet, lettered


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question``, ``choices`` and ``answer``, the index of the right one."""
    options, gold = lettered(row["choices"], int(row["answer"]))
    return Problem(question=row["question"].strip(), gold=gold, options=options)


def problem_set() -> ProblemSet:
    """99,842 problems to train on and 14,042 to test on."""
    splits = {"train": "auxiliary_train", "test": "test"}
    return ProblemSet(hub="cais/mmlu", config="all", splits=splits, read=read)
