"""The settings of a weighting, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from drift.errors import require

Treatment = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """How conversations are weighed.

    Args:
        scheme: drift, sft, rft, refit, swift, rwr, awr, or one that another package declares.
        beta: temperature β of drift, rwr and awr; it divides the return.
        base: what counts as the outcome: success (1 or 0), or reward (the sum of the environment's rewards).
        gamma: discount γ per turn.
        repetition: λ, what repeating oneself costs; null takes 0.5 for drift and 0 for the others.
        format_failure: cost of each reply without a readable answer; 0 in the paper, 0.1 in its published code.
        no_success: prompts without any success: keep (as published: they still weigh K in all) or drop.
        equal_returns: prompts whose returns are all the same: keep (every weight 1 under drift) or drop.
        w_max: largest weight of awr.
        parameters: further arguments of a weighting from another package.
    """

    scheme: str = "drift"
    beta: float = 0.1
    base: Literal["success", "reward"] = "success"
    gamma: float = 0.9
    repetition: float | None = None
    format_failure: float = 0.0
    no_success: Treatment = "keep"
    equal_returns: Treatment = "keep"
    w_max: float = 20.0
    parameters: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.beta > 0, "weights.beta", self.beta, "a number > 0", "β divides the return; 0.1 is published.")
        require(0 < self.gamma <= 1, "weights.gamma", self.gamma, "a number in (0, 1]")
        require(self.repetition is None or self.repetition >= 0, "weights.repetition", self.repetition, "a number ≥ 0")
        require(self.format_failure >= 0, "weights.format_failure", self.format_failure, "a number ≥ 0")
        require(self.w_max > 0, "weights.w_max", self.w_max, "a number > 0")
        for name, value in (("no_success", self.no_success), ("equal_returns", self.equal_returns)):
            require(value in ("keep", "drop"), f"weights.{name}", value, "keep or drop")
        require(self.base in ("success", "reward"), "weights.base", self.base, "success or reward")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return dict(vars(self))
