"""MMLU-Pro, TIGER-Lab/MMLU-Pro: harder MMLU with up to ten options (Wang et al. 2024, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.problems.base import Problem, ProblemSet, lettered


def read(row: Mapping[str, Any]) -> Problem:
    """A problem from ``question``, ``options`` and ``answer``, a letter, which ``answer_index`` must agree with."""
    options, gold = lettered(row["options"], int(row["answer_index"]))
    if row["answer"] != gold:
        raise ValueError(f"answer {row['answer']!r}, but answer_index {row['answer_index']} is {gold}")
    return Problem(question=row["question"].strip(), gold=gold, options=options)


def problem_set() -> ProblemSet:
    """12,032 problems to test on; the 70 of its validation split, meant as examples, are all there is to train on."""
    return ProblemSet(hub="TIGER-Lab/MMLU-Pro", splits={"train": "validation", "test": "test"}, read=read)
