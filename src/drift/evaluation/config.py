"""What policies are measured on; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drift.errors import require
from drift.rollouts.config import MOST_SAMPLES
from drift.secrets import refuse_secrets

# Tasks that are drawn unless said otherwise, or all there are where those are fewer.
TASKS = 500
# Held-out tasks are of this split.
SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What policies are measured on. Greedy replies are always measured; ``kl`` and ``judge`` cost time and are off.

    Args:
        tasks: number of held-out tasks; null is 500, or all there are where those are fewer.
        samples: sampled conversations per task beside the greedy one; 0 has that alone.
        kl: sampled conversations per policy on which its divergence from the first policy is measured; 0 measures none.
        judge: settings of the verifier judge, {policy: openai:NAME, …}, which grades greedy conversations by six
            criteria from 0 to 10; tasks is the most it grades of each policy, 100 unless given. Empty asks none.
    """

    tasks: int | None = None
    samples: int = 4
    kl: int = 0
    judge: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_secrets(self.judge, "evaluation.judge")
        require(self.tasks is None or self.tasks >= 1, "evaluation.tasks", self.tasks, "a whole number ≥ 1")
        sound = 0 <= self.samples <= MOST_SAMPLES
        require(sound, "evaluation.samples", self.samples, f"a whole number from 0 to {MOST_SAMPLES:,}")
        require(self.kl >= 0, "evaluation.kl", self.kl, "a whole number ≥ 0")
        require(self.judge_tasks >= 1, "evaluation.judge.tasks", self.judge_tasks, "a whole number ≥ 1")

    @property
    def judge_tasks(self) -> int:
        """The most conversations per policy that the judge grades."""
        return int(self.judge.get("tasks", 100))
