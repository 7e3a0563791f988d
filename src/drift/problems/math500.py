"""MATH-500, HuggingFaceH4/MATH-500: 500 competition problems of the MATH test split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``problem`` and ``answer``, a LaTeX expression."""
    return Problem(question=row["problem"].strip(), gold=row["answer"].strip())


def problem_set() -> ProblemSet:
    """500 problems to test on."""
    return ProblemSet(hub="HuggingFaceH4/MATH-500", splits={"test": "test"}, read=read)
