"""Multiple choice: the options are listed by letter, and a reply claims one."""

from __future__ import annotations

from dataclasses import dataclass

from drift.environments.questions import Questions


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestions(Questions):
    """MMLU, ARC, OpenBookQA, SciQ or GPQA under the DRIFT protocol; see ``Questions`` for the settings.

    Who never repeats a letter is right within as many turns as there are options, whatever it knows: read multi@k
    beside ``min(1, k / options)``.
    """

    train: str = "mmlu"
    test: str = "mmlu"
    prompt: str = "{question}\n\nThink step by step and end with <answer>letter</answer>."
    format_feedback: str = "No answer found. Please end with <answer>letter</answer>."

    usual_verifier = "choice"
