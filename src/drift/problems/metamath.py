"""MetaMathQA, meta-math/MetaMathQA: rewritten problems; those of type ``MATH_*`` are DRIFT's training set (MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import LeftOut, Problem, ProblemSet

_ANSWER = "The answer is:"


def read(row: Mapping[str, Any]) -> Problem | LeftOut:
    """A problem from ``query`` and what ``response`` ends with; other types than ``MATH_*`` are left out."""
    if not row["type"].startswith("MATH_"):
        return LeftOut(reason="other_type")
    _, marker, gold = row["response"].rpartition(_ANSWER)
    if not marker or not gold.strip():
        raise ValueError(f"the response does not end with {_ANSWER!r} and an answer")
    return Problem(question=row["query"].strip(), gold=gold.strip())


def problem_set() -> ProblemSet:
    """155,000 of 395,000 problems, to train on."""
    return ProblemSet(hub="meta-math/MetaMathQA", splits={"train": "train"}, read=read)
