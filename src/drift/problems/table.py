"""Questions and answers of a file of one's own, whatever its columns are called."""

from __future__ import annotations

from collections.abc import Sequence

from drift.errors import require
from drift.problems.base import LETTERS, LeftOut, Problem, ProblemSet, Row


def table(
    *, question: str = "question", answer: str = "answer", options: str = "options", part: str = "", share: float = 0.2
) -> ProblemSet:
    """Rows of a local file with a question and its right answer.

    Args:
        question: name of the column with the question.
        answer: with the right answer; of a multiple choice the letter or the text of the right option.
        options: with the options, a list or a text parted by ``|``; where it is empty or not there, the question is
            open.
        part: ``train`` or ``test`` takes that part of the file alone; empty takes all of it.
        share: of the questions that are in the part ``test``. Which ones depends on each question alone.
    """
    require(0 < share < 1, "environment.test_share", share, "a share between 0 and 1")

    def read(row: Row) -> Problem | LeftOut:
        asked, gold = _text(row, question), _text(row, answer)
        if not asked or not gold:
            return LeftOut(reason="no_question" if not asked else "no_answer")
        texts = _options(row.get(options))
        problem = Problem(
            question=asked, gold=_letter(gold, texts) if texts else gold, options=texts, verifier="choice" * bool(texts)
        )
        if part and part != ("test" if int(problem.id[2:], 16) < share * 16**16 else "train"):
            return LeftOut(reason="of_the_other_part")
        return problem

    return ProblemSet(hub="table", splits={}, read=read)


def _text(row: Row, column: str) -> str:
    if column not in row:
        raise ValueError(f"there is no column {column!r}, but {', '.join(map(str, row))}")
    return "" if row[column] is None else str(row[column]).strip()


def _options(given: object) -> tuple[str, ...]:
    parts: Sequence[object] = given.split("|") if isinstance(given, str) else list(given) if given else []  # type: ignore[call-overload]
    return tuple(text for part in parts if (text := str(part).strip()))


def _letter(gold: str, options: Sequence[str]) -> str:
    """The letter of the right option, which may be given by its text."""
    letters = LETTERS[: len(options)]
    if gold in options:
        return letters[list(options).index(gold)]
    if gold.upper() in letters:
        return gold.upper()
    raise ValueError(f"the answer {gold!r} is neither an option nor the letter of one of {len(options)}")
