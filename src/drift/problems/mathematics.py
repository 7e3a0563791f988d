"""Problem sets whose answers are numbers, expressions or other short texts."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from drift.problems.base import LeftOut, Problem, ProblemSet, Row
from drift.problems.boxed import boxed

_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
# Two solutions of MATH box a number without braces, and some use the older \fbox.
_BARE_BOX = re.compile(r"\\f?box(?:ed)?\s+([^\s$\\{}]+)")
_METAMATH_ANSWER = "The answer is:"
_THEOREMQA_VERIFIERS = {
    "bool": "exact",
    "option": "choice",
    "integer": "numeric",
    "float": "numeric",
    "list of integer": "numeric",
    "list of float": "numeric",
}


def gsm8k() -> ProblemSet:
    """GSM8K, openai/gsm8k: grade-school word problems (MIT); 7,473 to train on and 1,319 to test on.

    The number after ``####`` in ``answer`` is the right one.
    """

    def read(row: Row) -> Problem:
        _, marker, gold = row["answer"].rpartition("####")
        if not marker:
            raise ValueError("no #### in the answer")
        return Problem(question=row["question"].strip(), gold=gold.strip())

    return ProblemSet(hub="openai/gsm8k", configs=("main",), read=read)


def math() -> ProblemSet:
    r"""MATH, EleutherAI/hendrycks_math: competition problems in seven subjects (Hendrycks et al. 2021, MIT).

    7,500 problems to train on and 5,000 to test on; MATH-500 is a part of the latter. The answer is what the last
    ``\boxed`` of ``solution`` holds. The authors' own hendrycks/competition_math is no longer served by the hub; this
    copy has its rows, one configuration per subject.
    """

    def read(row: Row) -> Problem | LeftOut:
        solution = row["solution"].replace(r"\fbox{", r"\boxed{")
        gold = boxed(solution)
        if gold is None:
            bare = _BARE_BOX.findall(solution)
            gold = bare[-1].rstrip(".,;") if bare else None
        return Problem(question=row["problem"].strip(), gold=gold) if gold else LeftOut(reason="no_boxed_answer")

    return ProblemSet(hub="EleutherAI/hendrycks_math", configs=_MATH_SUBJECTS, read=read)


def math500() -> ProblemSet:
    """MATH-500, HuggingFaceH4/MATH-500: 500 competition problems of the MATH test split, to test on."""

    def read(row: Row) -> Problem:
        return Problem(question=row["problem"].strip(), gold=row["answer"].strip())

    return ProblemSet(hub="HuggingFaceH4/MATH-500", splits={"test": "test"}, read=read)


def mathdial() -> ProblemSet:
    """MathDial, eth-nlped/mathdial: the word problems that its tutoring conversations are about, most of them GSM8K's
    (Macina et al. 2023; CC BY 4.0 on the hub, CC BY-SA 4.0 in the authors' repository).

    2,262 conversations to train on and 599 to test on; several are about one problem, and the latter have 394 distinct
    ones. The last line of ``ground_truth`` is the answer. The conversations themselves are read by
    ``drift import --format mathdial``.
    """

    def read(row: Row) -> Problem:
        gold = row["ground_truth"].strip().rpartition("\n")[2].strip()
        if not any(character.isdigit() for character in gold):
            raise ValueError(f"the ground truth ends with {gold[:80]!r}, expected a number on a line of its own")
        return Problem(question=row["question"].strip(), gold=gold)

    return ProblemSet(hub="eth-nlped/mathdial", read=read)


def metamath(type: str = "MATH_*") -> ProblemSet:
    """MetaMathQA, meta-math/MetaMathQA: rewritten problems (MIT); 395,000 to train on.

    ``response`` ends with the answer.

    Args:
        type: which of them, as a pattern: those of DRIFT, 155,000, unless given; ``GSM_*`` and ``*`` for others.
    """

    def read(row: Row) -> Problem | LeftOut:
        if not fnmatchcase(row["type"], type):
            return LeftOut(reason="other_type")
        _, marker, gold = row["response"].rpartition(_METAMATH_ANSWER)
        if not marker or not gold.strip():
            raise ValueError(f"the response does not end with {_METAMATH_ANSWER!r} and an answer")
        return Problem(question=row["query"].strip(), gold=gold.strip())

    return ProblemSet(hub="meta-math/MetaMathQA", splits={"train": "train"}, read=read)


def theoremqa() -> ProblemSet:
    """TheoremQA, TIGER-Lab/TheoremQA: university questions that need a theorem, with typed answers (MIT).

    800 problems to test on. Questions about a picture are left out; 747 distinct ones remain.
    """

    def read(row: Row) -> Problem | LeftOut:
        if row.get("Picture") is not None:
            return LeftOut(reason="picture")
        kind, gold = row["Answer_type"], str(row["Answer"]).strip()
        if kind not in _THEOREMQA_VERIFIERS:
            raise ValueError(f"Answer_type {kind!r}, expected one of {', '.join(_THEOREMQA_VERIFIERS)}")
        if kind == "option":
            gold = gold.strip("()").upper()
        return Problem(question=row["Question"].strip(), gold=gold, verifier=_THEOREMQA_VERIFIERS[kind])

    return ProblemSet(hub="TIGER-Lab/TheoremQA", splits={"test": "test"}, read=read)
