"""What of the language of replies is measured, beyond what is counted anyway; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drift.errors import require
from drift.secrets import refuse_secrets


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What of the language of replies is measured; both cost time and are off unless asked for.

    Args:
        kl: sampled conversations per policy on which its divergence from the first policy is measured; 0 measures none.
        judge: settings of the verifier judge, {policy: openai:NAME, …}, which grades greedy conversations by six
            criteria from 0 to 10; empty asks none.
        judge_tasks: the most conversations per policy that the judge grades.
    """

    kl: int = 0
    judge: dict[str, Any] = field(default_factory=dict)
    judge_tasks: int = 100

    def __post_init__(self) -> None:
        where = "evaluation.quality"
        refuse_secrets(self.judge, f"{where}.judge")
        require(self.kl >= 0, f"{where}.kl", self.kl, "a whole number ≥ 0")
        require(self.judge_tasks >= 1, f"{where}.judge_tasks", self.judge_tasks, "a whole number ≥ 1")
