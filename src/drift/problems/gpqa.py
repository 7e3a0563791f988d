"""GPQA diamond, Idavidrein/gpqa: 198 graduate-level questions; the hub asks for consent first (CC BY 4.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet, lettered

_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``Question`` and the four answers; the order is shuffled by content."""
    options, gold = lettered([row[key] for key in _OPTIONS], 0, shuffle=True)
    return Problem(question=row["Question"].strip(), gold=gold, options=options)


def problem_set() -> ProblemSet:
    """198 problems to test on; the hub files them under ``train``."""
    return ProblemSet(hub="Idavidrein/gpqa", config="gpqa_diamond", splits={"test": "train"}, read=read)
