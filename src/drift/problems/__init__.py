"""Problem sets: questions with known answers, from the hub or from local files of the same schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from drift.errors import require
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
        "table": "drift.problems.table:table",
        "theoremqa": "drift.problems.mathematics:theoremqa",
    },
)


def get_problem_set(given: str | Mapping[str, Any], split: str = "") -> ProblemSet:
    """A problem set by its name, or as {name: metamath, type: GSM_*} with its settings.

    Args:
        given: which. ``split`` among its settings is a split of the hub, or a part of one such as ``train[:90%]``.
        split: ``train`` or ``test``, whose place that takes.

    Raises:
        ConfigError: no such name or setting; names the nearest known one.
    """
    settings = {"name": given} if isinstance(given, str) else dict(given)
    name, part = settings.pop("name", None), settings.pop("split", "")
    where = f"environment.{split or 'train'}"
    require(isinstance(name, str), where, given, "a problem set, or {name: …} with settings")
    problem_set: ProblemSet = PROBLEM_SETS.make(name, settings, where="environment")
    if not part:
        return problem_set
    require(problem_set.make_rows is None, f"{where}.split", part, f"none: {name} is computed")
    return replace(problem_set, splits={**problem_set.splits, split: part})


__all__ = ["PROBLEM_SETS", "LeftOut", "Loaded", "Problem", "ProblemSet", "get_problem_set", "load_split"]
