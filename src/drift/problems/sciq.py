"""SciQ, allenai/sciq: science exam questions with three distractors (CC BY-NC 3.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet, lettered


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question``, ``correct_answer`` and ``distractor1`` to ``3``, in an order made from them."""
    texts = [row[key] for key in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    options, gold = lettered(texts, 0, shuffle=True)
    return Problem(question=row["question"].strip(), gold=gold, options=options)


def problem_set() -> ProblemSet:
    """11,679 and 1,000 problems."""
    return ProblemSet(hub="allenai/sciq", splits={"train": "train", "test": "test"}, read=read)
