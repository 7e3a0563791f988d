"""Questions and answers of a file, without any code: ``qa`` asks them under the DRIFT protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.environments.questions import MathQuestions
from drift.errors import require
from drift.verifiers import VERIFIERS


def qa(
    file: str = "",
    *,
    test_file: str = "",
    test_share: float = 0.2,
    question: str = "question",
    answer: str = "answer",
    options: str = "options",
    verifier: str = "exact",
    verifier_settings: Mapping[str, Any] | None = None,
    max_turns: int = 5,
    prompt: str = MathQuestions.prompt,
    example: Sequence[str] = (),
    feedback: str | tuple[str, ...] = MathQuestions.feedback,
    format_feedback: str | tuple[str, ...] = MathQuestions.format_feedback,
    strict: bool = False,
    fallback: str = "",
) -> MathQuestions:
    """Questions of a file of your own, whose answers a verifier checks.

    Args:
        file: JSON Lines, JSON, CSV, TSV or Parquet with a question and its answer in each row.
        test_file: questions that are held out; unless it is given, some of ``file`` are.
        test_share: share of ``file`` that is held out then; which questions depends on their text alone.
        question: name of the column with the question.
        answer: name of the column with the answer; of a multiple choice the letter or the text of the right option.
        options: name of the column with the options of a multiple choice, a list or parted by ``|``, if there is one.
        verifier: what compares an open answer: exact (the same text), numeric, math, or one of your own.
        verifier_settings: its settings.
        max_turns: T, the most replies in an episode.
        prompt: the opening message, ``{question}`` standing for the question (and its options).
        example: a question and a reply as it should look, said as user and assistant before the question.
        feedback: what is said to a wrong answer; of a list, one text after each reply, the last ever after.
        format_feedback: what is said to a reply without a readable answer, likewise.
        strict: read answers from a tag or a box alone, and not from what a reply says in words.
        fallback: ``last_number`` takes the last number of a reply that gives no answer; nothing by default.

    Raises:
        ConfigError: no such file, column or verifier.
    """
    for name, given in (("file", file), ("test_file", test_file)):
        sound = Path(given).expanduser().is_file() if given else name != "file"
        require(sound, f"environment.{name}", given, "a file of questions and answers that is there")
    VERIFIERS.get(verifier)
    other = "a verifier that is no model: the environment reasoning has a judge"
    require(verifier != "judge", "environment.verifier", verifier, other)
    columns = {"name": "table", "question": question, "answer": answer, "options": options, "share": test_share}
    parts = {split: {**columns, "part": "" if test_file else split} for split in ("train", "test")}
    return _OwnQuestions(
        **parts,
        train_file=file,
        test_file=test_file or file,
        verifier=verifier,
        verifier_settings=dict(verifier_settings or {}),
        max_turns=max_turns,
        prompt=prompt,
        example=tuple(example),
        feedback=feedback,
        format_feedback=format_feedback,
        strict=strict,
        fallback=fallback,
    )


@dataclass(frozen=True, kw_only=True)
class _OwnQuestions(MathQuestions):
    verifier: str = "exact"

    @property
    def default_verifier(self) -> str:  # type: ignore[override]
        """The verifier that was asked for."""
        return self.verifier
