"""The settings of what TRL trains, checked before a model is loaded; no torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from drift.errors import require
from drift.exports.config import ExportConfig
from drift.policies.base import Sampling

# TRL's for DPO, and what the sweep of docs/LOG.md found for GRPO on the policy that comes with drift.
USUAL_RATE, BUILT_IN_RATE = 1e-6, 3e-4
BUILT_IN = "default"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How the weights move, the same for every objective. Defaults are TRL's for DPO but for the schedule.

    Args:
        learning_rate: peak learning rate; null takes 1e-6, and for online training of the built-in policy 3e-4.
        schedule: name of a learning-rate schedule of transformers.
        warmup: share of the steps over which the rate rises from 0.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        dtype: float32, or bfloat16 for mixed precision on float32 master weights.
        gradient_checkpointing: recompute activations instead of keeping them.
        log_steps: optimizer steps between log lines.
    """

    learning_rate: float | None = None
    schedule: str = "constant_with_warmup"
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    log_steps: int = 10

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(rate is None or rate > 0, "optimizer.learning_rate", rate, "a number > 0, or null")
        require(0 <= self.warmup <= 1, "optimizer.warmup", self.warmup, "a share between 0 and 1")
        require(self.dtype in ("float32", "bfloat16"), "optimizer.dtype", self.dtype, "float32 or bfloat16")
        for name in ("weight_decay", "max_grad_norm"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "a number ≥ 0")
        require(self.log_steps >= 1, "optimizer.log_steps", self.log_steps, "a whole number ≥ 1")

    def resolved(self, usual: float) -> Optimizer:
        """With the learning rate ``usual`` where none is given."""
        return self if self.learning_rate is not None else replace(self, learning_rate=usual)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """DPO (2305.18290) or KTO (2402.01306) on conversations that are there.

    Args:
        rows: which pairs, or labelled conversations, are made of the rollouts; its format decides the objective.
        beta: how much the policy is held to the reference; larger is nearer.
        ids: sampled trains the ids that were sampled and none of the environment's words; rendered is TRL as it comes,
            which renders the messages again and also trains what the environment said between two replies.
        desirable: kto alone: weight of good conversations; 0 balances the two kinds by their number.
        undesirable: kto alone: weight of bad ones; 0 balances.
        batch_size: rows (pairs, or conversations) per optimizer step.
        micro_batch_size: the most rows of one forward pass.
        max_steps: optimizer steps; the rows are passed over as often as that takes. 0 takes epochs instead.
        epochs: passes over the rows, where max_steps is 0.
        optimizer: how the weights move.
    """

    rows: ExportConfig = field(default_factory=ExportConfig)
    beta: float = 0.1
    ids: Literal["sampled", "rendered"] = "sampled"
    desirable: float = 0.0
    undesirable: float = 0.0
    batch_size: int = 32
    micro_batch_size: int = 32
    max_steps: int = 0
    epochs: float = 1.0
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        require(self.beta > 0, "preference.beta", self.beta, "a number > 0")
        require(self.ids in ("sampled", "rendered"), "preference.ids", self.ids, "sampled or rendered")
        for name in ("desirable", "undesirable", "max_steps"):
            require(getattr(self, name) >= 0, f"preference.{name}", getattr(self, name), "a number ≥ 0")
        require(self.batch_size >= 1, "preference.batch_size", self.batch_size, "a whole number ≥ 1")
        check_division("preference", self.batch_size, self.micro_batch_size)
        require(self.max_steps > 0 or self.epochs > 0, "preference.epochs", self.epochs, "a number > 0")

    def resolved(self) -> PreferenceConfig:
        """The settings as they are trained with: nothing is left open."""
        return replace(self, optimizer=self.optimizer.resolved(USUAL_RATE))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Online multi-turn RL: GRPO on live conversations, rewarded with the shaped return that DRIFT is given.

    Each round, ``prompts`` tasks are drawn, ``samples`` conversations of each are held with the policy as it is, and
    the weights are moved by ``minibatches · passes`` optimizer steps on them. P, K and one step a round are the best of
    the sweep in docs/LOG.md, on the built-in policy.

    Args:
        tasks: number of tasks of the train split that prompts are drawn from, each once before any comes again.
        rounds: how often conversations are held.
        prompts: P, tasks of a round.
        samples: K, conversations of each.
        minibatches: optimizer steps of one pass over a round's conversations; 1 is on-policy throughout.
        passes: μ, passes over a round's conversations; above 1 they are reused under the clipped ratio.
        micro_batch_size: the most conversations of one forward pass.
        kl: coefficient of the KL divergence from the base; 0 loads no reference.
        clip: ε, how far the ratio to the sampling policy may move before it is clipped.
        loss: how token losses are added up: dapo (over all tokens of the step), grpo (each conversation by its own
            length) or dr_grpo (by a constant).
        scale: rewards are divided by the standard deviation of their group, of the whole batch, or by none.
        gamma: discount γ per turn.
        repetition: λ, what repeating oneself costs.
        format_failure: cost of each reply without a readable answer.
        outcome: what counts: success (1 or 0), or reward (the sum of the environment's rewards).
        sampling: how replies are drawn.
        generation_batch: the most requests in one batch of generation.
        save_rounds: rounds between saved models, under ``rounds/<n>``; 0 saves the last alone.
        optimizer: how the weights move.
    """

    tasks: int = 1800
    rounds: int = 200
    prompts: int = 16
    samples: int = 4
    minibatches: int = 1
    passes: int = 1
    micro_batch_size: int = 256
    kl: float = 0.0
    clip: float = 0.2
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    scale: Literal["group", "batch", "none"] = "group"
    gamma: float = 0.9
    repetition: float = 0.5
    format_failure: float = 0.0
    outcome: Literal["success", "reward"] = "success"
    sampling: Sampling = field(default_factory=Sampling)
    generation_batch: int = 256
    save_rounds: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        for name in ("tasks", "rounds", "prompts", "minibatches", "passes", "generation_batch"):
            require(getattr(self, name) >= 1, f"online.{name}", getattr(self, name), "a whole number ≥ 1")
        require(
            self.samples >= 2, "online.samples", self.samples, "at least 2", "Returns are compared within a prompt."
        )
        require(
            self.tasks >= self.prompts, "online.tasks", self.tasks, f"at least the {self.prompts} prompts of a round"
        )
        held = self.prompts * self.samples
        require(
            held % self.minibatches == 0,
            "online.minibatches",
            self.minibatches,
            f"a divisor of the {held} conversations of a round",
        )
        check_division("online", held // self.minibatches, self.micro_batch_size)
        for name in ("kl", "repetition", "format_failure", "save_rounds"):
            require(getattr(self, name) >= 0, f"online.{name}", getattr(self, name), "a number ≥ 0")
        require(self.clip > 0, "online.clip", self.clip, "a number > 0")
        require(0 < self.gamma <= 1, "online.gamma", self.gamma, "a number in (0, 1]")
        require(self.loss in ("dapo", "grpo", "dr_grpo"), "online.loss", self.loss, "dapo, grpo or dr_grpo")
        require(self.scale in ("group", "batch", "none"), "online.scale", self.scale, "group, batch or none")
        require(self.outcome in ("success", "reward"), "online.outcome", self.outcome, "success or reward")
        require(
            self.sampling.temperature > 0,
            "online.sampling.temperature",
            self.sampling.temperature,
            "a number > 0",
            "Greedy replies of one prompt are all the same.",
        )

    def resolved(self, model: str) -> OnlineConfig:
        """The settings with which ``model`` is trained: nothing is left open."""
        usual = BUILT_IN_RATE if model == BUILT_IN else USUAL_RATE
        return replace(self, optimizer=self.optimizer.resolved(usual))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        values = asdict(self)
        values["sampling"]["stop"] = list(self.sampling.stop)
        return values


def check_division(where: str, batch: int, micro: int) -> None:
    """Refuse rows of a step that don't fall into equal forward passes, which would count unequally."""
    require(micro >= 1, f"{where}.micro_batch_size", micro, "a whole number ≥ 1")
    require(
        batch % min(micro, batch) == 0,
        f"{where}.micro_batch_size",
        micro,
        f"a divisor of the {batch} rows of an optimizer step",
    )
