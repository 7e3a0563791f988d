"""GSM8K, openai/gsm8k: grade-school word problems; the number after ``####`` is the answer (MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question`` and ``answer``."""
    _, marker, gold = row["answer"].rpartition("####")
    if not marker:
        raise ValueError("no #### in the answer")
    return Problem(question=row["question"].strip(), gold=gold.strip())


def problem_set() -> ProblemSet:
    """7,473 and 1,319 problems."""
    return ProblemSet(hub="openai/gsm8k", config="main", splits={"train": "train", "test": "test"}, read=read)
