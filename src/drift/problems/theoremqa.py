"""TheoremQA, TIGER-Lab/TheoremQA: university questions that need a theorem, with typed answers (MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import LeftOut, Problem, ProblemSet

_VERIFIERS = {
    "bool": "exact",
    "option": "choice",
    "integer": "numeric",
    "float": "numeric",
    "list of integer": "numeric",
    "list of float": "numeric",
}


def read(row: Mapping[str, Any]) -> Problem | LeftOut:
    """A problem from ``Question``, ``Answer`` and ``Answer_type``; questions about a picture are left out."""
    if row.get("Picture") is not None:
        return LeftOut(reason="picture")
    kind, gold = row["Answer_type"], str(row["Answer"]).strip()
    if kind not in _VERIFIERS:
        raise ValueError(f"Answer_type {kind!r}, expected one of {', '.join(_VERIFIERS)}")
    if kind == "option":
        gold = gold.strip("()").upper()
    return Problem(question=row["Question"].strip(), gold=gold, verifier=_VERIFIERS[kind])


def problem_set() -> ProblemSet:
    """800 problems to test on, 747 of them distinct and without a picture."""
    return ProblemSet(hub="TIGER-Lab/TheoremQA", splits={"test": "test"}, read=read)
