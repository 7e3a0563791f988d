"""Mathematical questions, checked for equality and not for spelling."""

from __future__ import annotations

from dataclasses import dataclass

from drift.environments.questions import Questions


@dataclass(frozen=True, kw_only=True)
class MathQuestions(Questions):
    """GSM8K, MATH-500, MetaMathQA or TheoremQA under the DRIFT protocol; see ``Questions`` for the settings."""
