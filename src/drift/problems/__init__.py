"""Problem sets: questions with known answers, from the hub or from local files of the same schema."""

from __future__ import annotations

from drift.problems.base import LeftOut, Loaded, Problem, ProblemSet, load_split
from drift.registry import Registry

PROBLEM_SETS = Registry(
    "problem set",
    "drift.problems",
    {
        "arc": "drift.problems.multiple_choice:arc",
        # Computed, by the environment whose problems they are.
        "arithmetic": "drift.environments.arithmetic:problem_set",
        "gpqa": "drift.problems.multiple_choice:gpqa",
        "gsm8k": "drift.problems.mathematics:gsm8k",
        "math": "drift.problems.mathematics:math",
        "math500": "drift.problems.mathematics:math500",
        "mathdial": "drift.problems.mathematics:mathdial",
        "metamath": "drift.problems.mathematics:metamath",
        "mmlu": "drift.problems.multiple_choice:mmlu",
        "mmlu_pro": "drift.problems.multiple_choice:mmlu_pro",
        "mmlu_redux": "drift.problems.multiple_choice:mmlu_redux",
        "openbookqa": "drift.problems.multiple_choice:openbookqa",
        "sciq": "drift.problems.multiple_choice:sciq",
        "theoremqa": "drift.problems.mathematics:theoremqa",
    },
)


def get_problem_set(name: str) -> ProblemSet:
    """The problem set registered under ``name``; raises ``ConfigError`` with the nearest known name."""
    problem_set: ProblemSet = PROBLEM_SETS.make(name, {}, where="environment")
    return problem_set


__all__ = ["PROBLEM_SETS", "LeftOut", "Loaded", "Problem", "ProblemSet", "get_problem_set", "load_split"]
