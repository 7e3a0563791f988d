"""The settings of an export, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from drift.errors import require

Format = Literal["dpo", "dpo-final", "dpo-step", "kto"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What preference trainers are given of a data set.

    Args:
        format: dpo (two conversations of one prompt), dpo-final (two last replies), dpo-step (two replies to one
            history, at any turn), or kto (single conversations, good or bad).
        pairs: the most pairs of one prompt; of one history under dpo-step.
        history: dpo-final alone: chosen puts the worse reply after the history of the better one, where it was not
            sampled; shared pairs only replies that were sampled after one and the same history, which is rare.
        margin: a pair's returns differ by more than this.
        threshold: kto alone: a conversation is good if its return is above this; null takes success.
        outcome: what counts: success (1 or 0), or reward (the sum of the environment's rewards).
        gamma: discount γ per turn.
        repetition: λ, what repeating oneself costs.
        format_failure: cost of each reply without a readable answer.
    """

    format: Format = "dpo"
    pairs: int = 4
    history: Literal["chosen", "shared"] = "chosen"
    margin: float = 0.0
    threshold: float | None = None
    outcome: Literal["success", "reward"] = "success"
    gamma: float = 0.9
    repetition: float = 0.5
    format_failure: float = 0.0

    def __post_init__(self) -> None:
        require(self.format in FORMATS, "export.format", self.format, f"one of {', '.join(FORMATS)}")
        require(self.pairs >= 1, "export.pairs", self.pairs, "a whole number ≥ 1")
        require(self.history in ("chosen", "shared"), "export.history", self.history, "chosen or shared")
        require(self.margin >= 0, "export.margin", self.margin, "a number ≥ 0")
        require(self.outcome in ("success", "reward"), "export.outcome", self.outcome, "success or reward")
        require(0 < self.gamma <= 1, "export.gamma", self.gamma, "a number in (0, 1]")
        for name in ("repetition", "format_failure"):
            require(getattr(self, name) >= 0, f"export.{name}", getattr(self, name), "a number ≥ 0")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return dict(vars(self))
