"""Problem sets of multiple choice."""

from __future__ import annotations

from collections.abc import Sequence

from drift.problems.base import LETTERS, LeftOut, Problem, ProblemSet, Row, multiple_choice

_REDUX_SUBJECTS = tuple(
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
# What makes a question of MMLU-Redux unusable; "expert": the annotators could not tell.
_REDUX_UNUSABLE = frozenset(
    {"bad_question_clarity", "bad_options_clarity", "no_correct_answer", "multiple_correct_answers", "expert"}
)


def arc() -> ProblemSet:
    """ARC-Challenge, allenai/ai2_arc: grade-school science (CC BY-SA 4.0); 1,119 to train on and 1,172 to test on."""

    def read(row: Row) -> Problem:
        # The labels are letters or digits.
        right = row["choices"]["label"].index(row["answerKey"])
        return multiple_choice(row["question"], row["choices"]["text"], right)

    return ProblemSet(hub="allenai/ai2_arc", configs=("ARC-Challenge",), read=read)


def gpqa() -> ProblemSet:
    """GPQA diamond, Idavidrein/gpqa: 198 graduate-level questions to test on; the hub asks for consent first (CC BY
    4.0).
    """

    def read(row: Row) -> Problem:
        keys = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
        return multiple_choice(row["Question"], [row[key] for key in keys], 0, shuffle=True)

    # The hub files them under "train".
    return ProblemSet(hub="Idavidrein/gpqa", configs=("gpqa_diamond",), splits={"test": "train"}, read=read)


def mmlu() -> ProblemSet:
    """MMLU, cais/mmlu: four options, 57 subjects (MIT); 99,842 questions to train on and 14,042 to test on."""

    def read(row: Row) -> Problem:
        return multiple_choice(row["question"], row["choices"], int(row["answer"]))

    splits = {"train": "auxiliary_train", "test": "test"}
    return ProblemSet(hub="cais/mmlu", configs=("all",), splits=splits, read=read)


def mmlu_pro() -> ProblemSet:
    """MMLU-Pro, TIGER-Lab/MMLU-Pro: harder MMLU with up to ten options (Wang et al. 2024, MIT).

    12,032 questions to test on; the 70 of its validation split, meant as examples, are all there is to train on.
    """

    def read(row: Row) -> Problem:
        problem = multiple_choice(row["question"], row["options"], int(row["answer_index"]))
        if row["answer"] != problem.gold:
            raise ValueError(f"answer {row['answer']!r}, but answer_index {row['answer_index']} is {problem.gold}")
        return problem

    return ProblemSet(hub="TIGER-Lab/MMLU-Pro", splits={"train": "validation", "test": "test"}, read=read)


def mmlu_redux() -> ProblemSet:
    """MMLU-Redux 2.0, edinburgh-dawg/mmlu-redux-2.0: 100 MMLU questions of each of 57 subjects, checked by hand
    (Gema et al. 2024, "Are We Done with MMLU?", CC BY 4.0).

    5,700 questions to test on; 5,431 of them have one right answer, 101 another one than in MMLU: where ``error_type``
    says that MMLU's label is wrong, ``correct_answer`` (a letter, an index, or the option's text) counts instead.
    """

    def read(row: Row) -> Problem | LeftOut:
        # The annotators wrote "OK", "Wrong Groundtruth" and so on; the hub's copy has them in one spelling.
        error = "_".join(row["error_type"].casefold().replace("_", " ").split())
        if error in _REDUX_UNUSABLE:
            return LeftOut(reason=error)
        if error not in ("ok", "wrong_groundtruth"):
            known = ", ".join(sorted(_REDUX_UNUSABLE))
            raise ValueError(f"error_type {row['error_type']!r}, expected ok, wrong_groundtruth, {known}")
        right: int | None = int(row["answer"])
        if error == "wrong_groundtruth":
            corrected = _corrected(row["choices"], str(row["correct_answer"] or ""))
            right = corrected if corrected != right else None
        if right is None:
            return LeftOut(reason="wrong_groundtruth_not_corrected")
        return multiple_choice(row["question"], row["choices"], right)

    return ProblemSet(hub="edinburgh-dawg/mmlu-redux-2.0", configs=_REDUX_SUBJECTS, splits={"test": "test"}, read=read)


def _corrected(choices: Sequence[str], correct: str) -> int | None:
    """Index of the one option that ``correct`` names; ``None`` if it names none, or could be read in two ways."""
    correct = correct.strip()
    named = {at for at, text in enumerate(choices) if correct and text.strip().casefold() == correct.casefold()}
    if len(correct) == 1 and correct.upper() in LETTERS[: len(choices)]:
        named.add(LETTERS.index(correct.upper()))
    elif len(correct) == 1 and correct.isascii() and correct.isdigit() and int(correct) < len(choices):
        named.add(int(correct))
    return named.pop() if len(named) == 1 else None


def openbookqa() -> ProblemSet:
    """OpenBookQA, allenai/openbookqa: elementary science, four options; 4,957 to train on and 500 to test on."""

    def read(row: Row) -> Problem:
        right = row["choices"]["label"].index(row["answerKey"].strip())
        return multiple_choice(row["question_stem"], row["choices"]["text"], right)

    return ProblemSet(hub="allenai/openbookqa", configs=("main",), read=read)


def sciq() -> ProblemSet:
    """SciQ, allenai/sciq: science exam questions (CC BY-NC 3.0); 11,679 to train on and 1,000 to test on."""

    def read(row: Row) -> Problem:
        keys = ("correct_answer", "distractor1", "distractor2", "distractor3")
        return multiple_choice(row["question"], [row[key] for key in keys], 0, shuffle=True)

    return ProblemSet(hub="allenai/sciq", read=read)
