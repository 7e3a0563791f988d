"""The settings of training, checked before a model is loaded; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from drift.errors import require

KIND = "model"
ATTENTIONS = ("auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")
ENGINES = ("ddp", "fsdp", "zero2", "zero3")
PLANS = ("uniform", "balanced", "drawn")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """A LoRA adapter instead of full fine-tuning.

    Args:
        rank: rank r; 0 trains the whole model.
        alpha: scale α; the adapter's output is multiplied by α/r.
        dropout: dropout on the adapter's input.
        targets: modules to adapt, or the string all-linear.
        bits: 4 or 8 keep the base model's linear layers quantized in memory while the adapter is trained (QLoRA; extra
            qlora). 0 keeps them as they are.
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    bits: int = 0

    def __post_init__(self) -> None:
        require(self.rank >= 0, "training.lora.rank", self.rank, "a whole number ≥ 0 (0 is no LoRA)")
        require(self.bits in (0, 4, 8), "training.lora.bits", self.bits, "0, 4 or 8")
        require(
            not self.bits or self.rank > 0, "training.lora.bits", self.bits, "0 without LoRA", "Give lora.rank too."
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model is fine-tuned. Batch, steps and schedule are the DRIFT paper's unless set otherwise.

    Args:
        normalization: token loss of a reply: sum (Eq. 15) or mean over its tokens (published code).
        batch_size: conversations computed in an optimizer step; on average where plan is balanced.
        plan: which rows a step holds: uniform, as many each (as published); balanced, as equal a sum of weights as
            whole rows allow; drawn, rows drawn in proportion to their weight, which then count alike.
        tokens_per_batch: the most tokens of one forward pass, shared prefixes counted once; memory, not results.
        share_prefixes: compute what conversations of a prompt have in common once; the gradients are the same.
        attention: attention kernel, as transformers names it. auto and sdpa share prefixes; eager, flex_attention,
            flash_attention_2 (library flash-attn) and flash_attention_3 compute each conversation for itself, the last
            three on GPUs alone.
        rows_together: conversations of one prompt that follow one another and so share what they have in common; 1
            mixes all rows, more is faster and makes steps of fewer prompts.
        kl_limit: training ends at the last step measured at which the model is no farther from its base than this, in
            nats of KL(base ‖ model) per conversation; 0 measures nothing.
        kl_steps: optimizer steps between measurements; each checkpoint and the last step are measured as well.
        kl_prompts: prompts set aside to measure on, at most a tenth of them.
        max_steps: optimizer steps; the data are passed over as often as that takes.
        epochs: passes over the data, which above 0 take the place of max_steps.
        learning_rate: peak learning rate.
        schedule: name of a learning-rate schedule of transformers.
        warmup: share of the steps over which the rate rises; the first step has a rate above 0.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        dtype: float32, or bfloat16 for mixed precision on float32 master weights.
        gradient_checkpointing: recompute activations instead of keeping them.
        max_length: longest row in tokens; longer rows are skipped and counted. 0 takes the model's limit.
        save_steps: optimizer steps between checkpoints; 0 keeps none.
        keep_checkpoints: the most checkpoints kept.
        num_processes: processes of this machine that share each step, a GPU each; the result is that of one.
        engine: ddp, a whole model on each process; fsdp, which shards it over them (FSDP2); or DeepSpeed's zero2, which
            shards gradients and optimizer state, and zero3, which shards the model too (extra deepspeed).
        log_steps: optimizer steps between log lines.
        trackers: where else to log, as transformers names them: tensorboard, wandb, trackio, …
        lora: LoRA settings.
    """

    normalization: Literal["sum", "mean"] = "sum"
    batch_size: int = 128
    plan: Literal["uniform", "balanced", "drawn"] = "drawn"
    tokens_per_batch: int = 8192
    share_prefixes: bool = True
    attention: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "auto"
    rows_together: int = 4
    kl_limit: float = 0.0
    kl_steps: int = 10
    kl_prompts: int = 8
    max_steps: int = 200
    epochs: float = 0.0
    learning_rate: float = 5e-6
    schedule: str = "constant_with_warmup"
    warmup: float = 0.1
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    max_length: int = 0
    save_steps: int = 50
    keep_checkpoints: int = 2
    num_processes: int = 1
    engine: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    log_steps: int = 10
    trackers: list[str] = field(default_factory=list)
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        require(self.plan in PLANS, "training.plan", self.plan, f"one of {', '.join(PLANS)}")
        require(self.normalization in ("sum", "mean"), "training.normalization", self.normalization, "sum or mean")
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "a whole number ≥ 1")
        require(self.tokens_per_batch >= 1, "training.tokens_per_batch", self.tokens_per_batch, "a whole number ≥ 1")
        require(self.attention in ATTENTIONS, "training.attention", self.attention, f"one of {', '.join(ATTENTIONS)}")
        require(
            self.dtype == "bfloat16" or not self.attention.startswith("flash"),
            "training.dtype",
            self.dtype,
            f"bfloat16 with attention {self.attention}, which knows no float32",
        )
        require(self.rows_together >= 1, "training.rows_together", self.rows_together, "a whole number ≥ 1")
        for name in ("kl_steps", "kl_prompts"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "a whole number ≥ 1")
        require(
            not self.kl_limit or self.engine == "ddp",
            "training.kl_limit",
            self.kl_limit,
            f"0 with engine {self.engine}, whose ranks have no whole model to measure and keep",
            "Use engine ddp.",
        )
        require(self.max_steps >= 0, "training.max_steps", self.max_steps, "a whole number ≥ 0")
        require(self.epochs >= 0, "training.epochs", self.epochs, "a number ≥ 0")
        require(self.max_steps > 0 or self.epochs > 0, "training.max_steps", self.max_steps, "≥ 1, or epochs > 0")
        require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "a number > 0")
        require(0 <= self.warmup <= 1, "training.warmup", self.warmup, "a share between 0 and 1")
        require(self.dtype in ("float32", "bfloat16"), "training.dtype", self.dtype, "float32 or bfloat16")
        for name in ("weight_decay", "max_grad_norm", "max_length", "save_steps", "kl_limit"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "a number ≥ 0")
        require(self.engine in ENGINES, "training.engine", self.engine, f"one of {', '.join(ENGINES)}")
        require(
            self.engine == "ddp" or not self.lora.bits,
            "training.engine",
            self.engine,
            "ddp with lora.bits: a quantized model is not sharded",
        )
        for name in ("keep_checkpoints", "log_steps", "num_processes"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "a whole number ≥ 1")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return {**vars(self), "lora": dict(vars(self.lora))}
