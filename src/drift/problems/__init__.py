"""Problem sets: questions with known answers, from the hub or from local files of the same schema."""

from __future__ import annotations

from drift.problems.base import LeftOut, Loaded, Problem, ProblemSet, load_problems, load_split
from drift.registry import Registry

PROBLEM_SETS = Registry(
    "problem set",
    "drift.problems",
    {
        "arc": "drift.problems.arc:problem_set",
        # Computed, by the environment whose problems they are.
        "arithmetic": "drift.environments.arithmetic:problem_set",
        "gpqa": "drift.problems.gpqa:problem_set",
        "gsm8k": "drift.problems.gsm8k:problem_set",
        "math": "drift.problems.math:problem_set",
        "math500": "drift.problems.math500:problem_set",
        "mathdial": "drift.problems.mathdial:problem_set",
        "metamath": "drift.problems.metamath:problem_set",
        "mmlu": "drift.problems.mmlu:problem_set",
        "mmlu_pro": "drift.problems.mmlu_pro:problem_set",
        "mmlu_redux": "drift.problems.mmlu_redux:problem_set",
        "openbookqa": "drift.problems.openbookqa:problem_set",
        "sciq": "drift.problems.sciq:problem_set",
        "theoremqa": "drift.problems.theoremqa:problem_set",
    },
)


def get_problem_set(name: str) -> ProblemSet:
    """The problem set registered under ``name``; raises ``ConfigError`` with the nearest known name."""
    found: ProblemSet = PROBLEM_SETS.make(name, {}, where="environment.settings")
    return found


__all__ = [
    "PROBLEM_SETS",
    "LeftOut",
    "Loaded",
    "Problem",
    "ProblemSet",
    "get_problem_set",
    "load_problems",
    "load_split",
]
