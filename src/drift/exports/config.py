"""The settings of an export, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from drift.errors import require

Format = Literal["dpo", "dpo-final", "dpo-step", "kto", "sft", "sft-sharegpt"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """What a conversation's return is, by which trainers prefer one to another: ``trajectory_return`` of ``weights``.

    Args:
        outcome: what counts: success (1 or 0), or reward (the sum of the rewards); null is success, or reward where no
            success is known.
        gamma: discount γ per turn.
        repetition: λ, what repeating oneself costs.
        repetition_over: what distinct answers are a share of: turns, or readable answers alone (answers).
        format_failure: cost of each reply without a readable answer.
    """

    outcome: Literal["success", "reward"] | None = None
    gamma: float = 0.9
    repetition: float = 0.5
    repetition_over: Literal["turns", "answers"] = "turns"
    format_failure: float = 0.0

    # How messages name these settings; not annotated, so no setting itself.
    where = "return"

    def __post_init__(self) -> None:
        self.require_one_of("repetition_over", "turns", "answers")
        require(self.outcome in (None, "success", "reward"), f"{self.where}.outcome", self.outcome, "success or reward")
        require(0 < self.gamma <= 1, f"{self.where}.gamma", self.gamma, "a number in (0, 1]")
        self.require_at_least(0, "repetition", "format_failure")

    def require_one_of(self, name: str, *allowed: str) -> None:
        """Raise ``ConfigError`` unless the setting ``name`` is one of ``allowed``."""
        value = getattr(self, name)
        require(value in allowed, f"{self.where}.{name}", value, f"one of {', '.join(allowed)}")

    def require_at_least(self, least: int, *names: str) -> None:
        """Raise ``ConfigError`` unless each of the settings ``names`` is ``least`` (0 or 1) or more."""
        for name in names:
            value = getattr(self, name)
            expected = f"a whole number ≥ {least}" if least else "a number ≥ 0"
            require(value >= least, f"{self.where}.{name}", value, expected)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ReturnConfig):
    """What other trainers are given of a data set.

    Args:
        format: dpo (two conversations of one prompt), dpo-final (two last replies), dpo-step (two replies to one
            history, at any turn), kto (single conversations, good or bad), or conversations with a weight for each
            reply, sft as TRL has messages, sft-sharegpt as LLaMA-Factory has them.
        pairs: the most pairs of one prompt; of one history under dpo-step.
        history: dpo-final alone: chosen puts the worse reply after the history of the better one, where it was not
            sampled; shared pairs only replies that were sampled after one and the same history, which is rare.
        margin: a pair's returns differ by more than this.
        threshold: kto alone: a conversation is good if its return is above this; null takes success, and
            leaves out what nobody judged.
    """

    format: Format = "dpo"
    pairs: int = 4
    history: Literal["chosen", "shared"] = "chosen"
    margin: float = 0.0
    threshold: float | None = None

    where = "export"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("format", *FORMATS)
        self.require_one_of("history", "chosen", "shared")
        self.require_at_least(1, "pairs")
        self.require_at_least(0, "margin")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return dict(vars(self))
