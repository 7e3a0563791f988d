"""The settings of training, checked before a model is loaded; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from drift.errors import require
from drift.registry import Link, check_settings, complete, settings_of
from drift.secrets import refuse_secrets
from drift.training.objectives import advantage_regression, find_loss

KIND = "model"
# Of a model folder: what was asked for, there from the start on.
SPEC = "training.json"
ATTENTIONS = ("auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")
ENGINES = ("ddp", "fsdp", "zero2", "zero3")
PLANS = ("uniform", "balanced", "drawn")


# Where training differs from transformers: decay and clipping are DRIFT's published ones; a checkpoint takes the memory
# of three models, so two are kept; nothing is sent to a tracker that was not asked for.
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "constant_with_warmup",
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "none",
}
# What takes the place of the TrainingArguments that training sets itself.
_INSTEAD = {
    "training.batch_size and training.tokens_per_batch": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "auto_find_batch_size",
    ),
    "training.max_steps": ("max_steps",),
    "training.epochs": ("num_train_epochs",),
    "training.learning_rate": ("learning_rate",),
    "training.warmup": ("warmup_steps", "warmup_ratio"),
    "training.dtype": ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"),
    "training.max_length": ("max_length", "max_seq_length"),
    "training.save_steps": ("save_steps", "save_strategy", "save_only_model", "save_on_each_node"),
    "training.engine": ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config"),
    "training.num_processes": ("local_rank",),
    "training.normalization": ("label_smoothing_factor", "average_tokens_across_devices"),
    "logging_steps": ("logging_strategy", "logging_first_step", "logging_nan_inf_filter"),
    "the argument out": ("output_dir",),
    "the argument seed": ("seed", "data_seed"),
    "the argument device": ("use_cpu",),
    "the same command again, which goes on by itself": ("resume_from_checkpoint", "ignore_data_skip"),
    "drift evaluate": ("do_eval", "do_predict", "eval_strategy", "eval_steps", "load_best_model_at_end"),
    "hf upload once the model is trained": ("push_to_hub", "hub_token", "hub_model_id"),
    "nothing: training does this itself": ("do_train", "disable_tqdm", "remove_unused_columns", "use_liger_kernel"),
}
SET_BY_TRAINING = {name: instead for instead, names in _INSTEAD.items() for name in names}


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Prompts that are not trained on but measured on, and what follows.

    Args:
        share: of the prompts, 256 at most.
        every: steps between measurements; the base and the last step are measured too.
        keep: the model that is saved: the last, or the best, of the lowest held-out loss.
        patience: training ends after so many measurements without a lower loss; 0 never ends it.
    """

    share: float
    every: int = 10
    keep: Literal["last", "best"] = "last"
    patience: int = 0

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "training.hold_out.share", self.share, "a share above 0 and below 1")
        require(self.every >= 1, "training.hold_out.every", self.every, "a whole number ≥ 1")
        require(self.keep in ("last", "best"), "training.hold_out.keep", self.keep, "last or best")
        require(self.patience >= 0, "training.hold_out.patience", self.patience, "a whole number ≥ 0")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model is fine-tuned. Batch, steps and schedule are the DRIFT paper's unless set otherwise.

    Args:
        loss: what is minimised (docs/method.md): nll, tapered, importance, token_probability, anchored, nll_kl,
            advantage_regression, one that another package declares, or module:function; {importance: 4} with a setting.
        normalization: token loss of a reply: sum (Eq. 15) or mean over its tokens (published code).
        batch_size: conversations in an optimizer step, on average where plan is balanced.
        plan: which rows a step holds: uniform, as many each (as published); balanced, as equal a sum of weights as
            whole rows allow; drawn, rows drawn in proportion to their weight, which then count alike.
        tokens_per_batch: the most tokens of one forward pass, shared prefixes counted once; memory, not results. 0 is
            what fits in half of the memory that weights and optimizer leave on the device, 8192 at most.
        attention: auto computes what conversations of a prompt have in common once, where the model allows; the
            gradients are the same. A kernel by transformers' name (sdpa, eager, and on GPUs flex_attention,
            flash_attention_2 of the library flash-attn, flash_attention_3) computes each conversation for itself.
        rows_together: conversations of one prompt that follow one another and so share what they have in common; 1
            mixes all rows, more is faster and makes steps of fewer prompts.
        kl_limit: training ends at the last step measured at which the model is no farther from its base than this, in
            nats of KL(base ‖ model) per conversation; 0 measures nothing.
        hold_out: share of the prompts that are not trained on, whose weighted loss is measured on the way; 0 holds none
            out. Or {share: 0.1, every: 10, keep: best, patience: 3}: steps between measurements, whether the last model
            is saved or the best, and how many measurements without a lower loss end training (0: none do).
        max_steps: optimizer steps; the data are passed over as often as that takes.
        epochs: passes over the data, which above 0 take the place of max_steps.
        learning_rate: peak learning rate.
        warmup: share of the steps over which the rate rises; the first step has a rate above 0.
        dtype: float32, or bfloat16 for mixed precision on float32 master weights.
        max_length: longest row in tokens; longer rows are skipped and counted. 0 takes the model's limit.
        save_steps: optimizer steps between checkpoints; 0 keeps none.
        num_processes: processes of this machine that share each step, a GPU each; the result is that of one.
        engine: ddp, a whole model on each process; fsdp, which shards it over them (FSDP2); or DeepSpeed's zero2, which
            shards gradients and optimizer state, and zero3, which shards the model too (extra deepspeed).
        arguments: further settings of transformers.TrainingArguments by their own names, such as weight_decay,
            gradient_checkpointing, lr_scheduler_type, optim, logging_steps or report_to. Those left out are
            transformers' own, but for weight_decay 0.1, max_grad_norm 1, lr_scheduler_type constant_with_warmup,
            save_total_limit 2, logging_steps 10 and report_to none.
        lora: settings of peft.LoraConfig by their own names, such as r, lora_alpha or target_modules (all-linear unless
            given): an adapter is trained instead of the whole model, and saved merged as well. Also bits: 4 or 8 keep
            the model's linear layers quantized in memory meanwhile (QLoRA; extra qlora).
    """

    loss: str | dict[str, Any] = "nll"
    normalization: Literal["sum", "mean"] = "sum"
    batch_size: int = 128
    plan: Literal["uniform", "balanced", "drawn"] = "drawn"
    tokens_per_batch: int = 0
    attention: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "auto"
    rows_together: int = 4
    kl_limit: float = 0.0
    hold_out: float | dict[str, Any] = 0.0
    max_steps: int = 200
    epochs: float = 0.0
    learning_rate: float = 5e-6
    warmup: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = 0
    save_steps: int = 50
    num_processes: int = 1
    engine: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    arguments: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """Bits of a weight while an adapter is trained on a quantized model; 0 where it is not quantized."""
        bits: int = self.lora.get("bits", 0)
        return bits

    @property
    def held_out(self) -> HoldOut | None:
        """What is held out, if anything is; raises ``ConfigError`` for settings that make no sense."""
        if not self.hold_out:
            return None
        given = self.hold_out if isinstance(self.hold_out, dict) else {"share": self.hold_out}
        check_settings(HoldOut, given, where="training.hold_out")
        return HoldOut(**complete({**settings_of(HoldOut), **given}, "training.hold_out"))

    @property
    def objective(self) -> Link:
        """The loss with its settings, none of them left to default."""
        return find_loss(self.loss)

    def __post_init__(self) -> None:
        refuse_secrets({"arguments": self.arguments, "lora": self.lora}, "training")
        choices = {
            "plan": PLANS,
            "normalization": ("sum", "mean"),
            "attention": ATTENTIONS,
            "dtype": ("float32", "bfloat16"),
            "engine": ENGINES,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, f"training.{name}", value, f"one of {', '.join(allowed)}")
        for name in ("batch_size", "rows_together", "num_processes"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "a whole number ≥ 1")
        for name in ("tokens_per_batch", "max_steps", "epochs", "max_length", "save_steps", "kl_limit"):
            require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "a number ≥ 0")
        require(self.max_steps > 0 or self.epochs > 0, "training.max_steps", self.max_steps, "≥ 1, or epochs > 0")
        require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "a number > 0")
        require(0 <= self.warmup <= 1, "training.warmup", self.warmup, "a share between 0 and 1")
        require(
            self.dtype == "bfloat16" or not self.attention.startswith("flash"),
            "training.dtype",
            self.dtype,
            f"bfloat16 with attention {self.attention}, which has no float32",
        )
        self._check_measurements()
        whole = self.objective.function is not advantage_regression or self.normalization == "sum"
        expected = "sum with the loss advantage_regression, which is of whole conversations"
        require(whole, "training.normalization", self.normalization, expected)
        self._check_mappings()

    def _check_measurements(self) -> None:
        held = self.held_out
        for name in ("kl_limit", "hold_out"):
            require(
                not getattr(self, name) or self.engine == "ddp",
                f"training.{name}",
                getattr(self, name),
                f"0 with engine {self.engine}, which leaves no process a whole model to measure and keep",
                "Use engine ddp.",
            )
        decides = held is not None and (held.keep == "best" or held.patience > 0)
        expected = "0 where hold_out keeps the best or ends training: one of the two can decide"
        require(not (decides and self.kl_limit), "training.kl_limit", self.kl_limit, expected)

    def _check_mappings(self) -> None:
        for name, value in self.arguments.items():
            require(
                name not in SET_BY_TRAINING,
                f"training.arguments.{name}",
                value,
                "no such setting, as training sets it itself",
                f"Use {SET_BY_TRAINING.get(name)}.",
            )
        for name in ("logging_steps", "save_total_limit"):
            value = {**DEFAULT_ARGUMENTS, **self.arguments}[name]
            require(isinstance(value, int) and value >= 1, f"training.arguments.{name}", value, "a whole number ≥ 1")
        rank = self.lora.get("r", 1)
        require(rank >= 1, "training.lora.r", rank, "a whole number ≥ 1", "Leave lora empty to train the whole model.")
        require(self.bits in (0, 4, 8), "training.lora.bits", self.bits, "0, 4 or 8")
        require(
            self.engine == "ddp" or not self.bits,
            "training.engine",
            self.engine,
            "ddp with lora.bits: a quantized model is not sharded",
        )
        start = self.lora.get("init_lora_weights", True)
        require(
            start in (True, False, "gaussian", "orthogonal"),
            "training.lora.init_lora_weights",
            start,
            "true, false, gaussian or orthogonal: others change the model that the adapter is saved for",
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, the default ones of ``arguments`` among them, for manifests."""
        loss = self.objective.record
        return {
            **vars(self),
            "loss": loss,
            "arguments": {**DEFAULT_ARGUMENTS, **self.arguments},
            "lora": dict(self.lora),
        }
