"""The settings of the default policy: what its flaws are, how large it is, how it is trained. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Flaws:
    """What the assistant does, as probabilities.

    Args:
        right: chance that a fresh arithmetic answer is right, by sign and whether the last digits carry or borrow.
        slips: amount by which a wrong answer is off, and how likely each is.
        insist: chance of saying the same thing again after being told it is wrong.
        no_tag: chance of forgetting the answer tag.
        near: when guessing numbers, chance that a new guess is next to the last one, on the side that was hinted.
        heed: chance that any other new guess respects all hints; else it is anywhere in the range.
        guess_share: share of number-guessing conversations.
    """

    right: dict[str, float] = field(
        default_factory=lambda: {"add/plain": 0.45, "add/carry": 0.2, "sub/plain": 0.3, "sub/carry": 0.08}
    )
    slips: dict[int, float] = field(default_factory=lambda: {10: 0.75, -10: 0.15, 1: 0.1})
    insist: float = 0.7
    no_tag: float = 0.03
    near: float = 0.3
    heed: float = 0.5
    guess_share: float = 0.25


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Size and training of the default policy.

    Args:
        seed: of the corpus and of the initial weights.
        steps: optimizer steps in all.
        knowing_steps: how many of them, at the start, on right answers alone.
        first_turn_share: share of flawed conversations cut after the first reply.
        rows: conversations in one step.
        learning_rate: peak of a cosine schedule to a tenth, after 5 % of warm-up.
        hidden, layers, heads, feed_forward: of the ``Qwen2ForCausalLM``.
        vocabulary: most tokens, 256 bytes and three control tokens included.
        device: where to train.
        flaws: what the corpus' assistant does.
    """

    seed: int = 1
    steps: int = 3000
    knowing_steps: int = 900
    first_turn_share: float = 0.6
    rows: int = 128
    learning_rate: float = 2e-3
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    vocabulary: int = 384
    device: str = "cpu"
    flaws: Flaws = field(default_factory=Flaws)
