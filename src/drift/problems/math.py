"""MATH, EleutherAI/hendrycks_math: competition problems in seven subjects (Hendrycks et al. 2021, MIT).

The authors' own hendrycks/competition_math is no longer served by the hub; this copy has its rows, one configuration
per subject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from drift.problems.base import LeftOut, Problem, ProblemSet
from drift.problems.boxed import boxed

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
# Two solutions box a number without braces, and some use the older \fbox.
_BARE = re.compile(r"\\f?box(?:ed)?\s+([^\s$\\{}]+)")


def read(row: Mapping[str, Any]) -> Problem | LeftOut:
    r"""A problem from ``problem`` and the last ``\boxed`` of ``solution``; ``level`` and ``type`` are not used."""
    solution = row["solution"].replace(r"\fbox{", r"\boxed{")
    gold = boxed(solution)
    if gold is None:
        bare = _BARE.findall(solution)
        gold = bare[-1].rstrip(".,;") if bare else None
    if not gold:
        return LeftOut(reason="no_boxed_answer")
    return Problem(question=row["problem"].strip(), gold=gold)


def problem_set() -> ProblemSet:
    """7,500 and 5,000 problems; MATH-500 is a part of the latter."""
    splits = {"train": "train", "test": "test"}
    return ProblemSet(hub="EleutherAI/hendrycks_math", configs=SUBJECTS, splits=splits, read=read)
