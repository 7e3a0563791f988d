"""MMLU-Redux 2.0, edinburgh-dawg/mmlu-redux-2.0: 100 MMLU questions of each of 57 subjects, checked by hand
(Gema et al. 2024, "Are We Done with MMLU?", CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drift.problems.base import LETTERS, LeftOut, Problem, ProblemSet, lettered

SUBJECTS = tuple(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology public_relations
    security_studies sociology us_foreign_policy virology world_religions
    """.split()  # noqa: SIM905 - 57 lines of quotes would say no more
)
# What is wrong with a question that nobody can be asked; "expert": the annotators could not tell.
_UNUSABLE = frozenset(
    {"bad_question_clarity", "bad_options_clarity", "no_correct_answer", "multiple_correct_answers", "expert"}
)


def read(row: Mapping[str, Any]) -> Problem | LeftOut:
    """A problem from ``question``, ``choices``, ``answer`` (an index) and, where ``error_type`` says that MMLU's label
    is wrong, ``correct_answer`` (a letter, an index, or the option's text) instead.
    """
    # The annotators wrote "OK", "Wrong Groundtruth" and so on; the hub's copy has them in one spelling.
    error = "_".join(row["error_type"].casefold().replace("_", " ").split())
    if error in _UNUSABLE:
        return LeftOut(reason=error)
    if error not in ("ok", "wrong_groundtruth"):
        raise ValueError(f"error_type {row['error_type']!r}, expected ok, wrong_groundtruth, {', '.join(_UNUSABLE)}")
    right: int | None = int(row["answer"])
    if error == "wrong_groundtruth":
        named = _named(row["choices"], str(row["correct_answer"] or ""))
        right = named if named != right else None
    if right is None:
        return LeftOut(reason="wrong_groundtruth_not_corrected")
    options, gold = lettered(row["choices"], right)
    return Problem(question=row["question"].strip(), gold=gold, options=options)


def _named(choices: Sequence[str], correct: str) -> int | None:
    """Index of the one option that ``correct`` names; ``None`` if it names none, or could be read in two ways."""
    correct = correct.strip()
    found = {at for at, text in enumerate(choices) if correct and text.strip().casefold() == correct.casefold()}
    if len(correct) == 1 and correct.upper() in LETTERS[: len(choices)]:
        found.add(LETTERS.index(correct.upper()))
    elif len(correct) == 1 and correct.isascii() and correct.isdigit() and int(correct) < len(choices):
        found.add(int(correct))
    return found.pop() if len(found) == 1 else None


def problem_set() -> ProblemSet:
    """5,700 questions to test on; 5,431 of them have one right answer, 101 another one than in MMLU."""
    return ProblemSet(hub="edinburgh-dawg/mmlu-redux-2.0", configs=SUBJECTS, splits={"test": "test"}, read=read)
