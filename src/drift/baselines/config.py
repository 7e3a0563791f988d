"""The settings of what TRL trains, checked before a model is loaded; no torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from drift.errors import require
from drift.exports.config import ExportConfig, ReturnConfig
from drift.policies.base import Sampling

# TRL's for DPO, and what the sweep of docs/LOG.md found for GRPO on the policy that comes with drift.
USUAL_RATE, BUILT_IN_RATE = 1e-6, 3e-4
BUILT_IN = "default"
# Settings of transformers that training sets, and what to use instead.
_INSTEAD = {
    "learning_rate": ("learning_rate",),
    "schedule": ("lr_scheduler_type",),
    "warmup": ("warmup_steps", "warmup_ratio"),
    "dtype": ("bf16", "fp16"),
    "batch_size, prompts or micro_batch_size": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ),
    "max_steps, epochs or rounds": ("max_steps", "num_train_epochs"),
    "the arguments out, seed and device": ("output_dir", "seed", "data_seed", "use_cpu"),
    "nothing: training does this itself": (
        "remove_unused_columns",
        "save_strategy",
        "disable_tqdm",
        "logging_nan_inf_filter",
    ),
}
SET_BY_TRAINING = {name: instead for instead, names in _INSTEAD.items() for name in names}
# Where the training differs from transformers, unless ``arguments`` says otherwise.
DEFAULT_ARGUMENTS = {"weight_decay": 0.1, "max_grad_norm": 1.0, "logging_steps": 10, "report_to": "none"}


@dataclass(frozen=True, kw_only=True)
class TrlConfig(ReturnConfig):
    """How the weights are moved, the same for every objective.

    Args:
        learning_rate: peak learning rate; null takes 1e-6, and for online training of the built-in policy 3e-4.
        schedule: name of a learning-rate schedule of transformers.
        warmup: share of the steps over which the rate rises from 0.
        dtype: float32, or bfloat16 for mixed precision on float32 master weights.
        arguments: further settings of transformers.TrainingArguments by their own names, such as weight_decay,
            max_grad_norm, gradient_checkpointing or logging_steps. Those left out are transformers' own, but for
            weight_decay 0.1, max_grad_norm 1, logging_steps 10 and report_to none.
    """

    learning_rate: float | None = None
    schedule: str = "constant_with_warmup"
    warmup: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    arguments: dict[str, Any] = field(default_factory=dict)

    # Where no learning rate is given, that of the built-in policy; not annotated, so no setting.
    built_in_rate = USUAL_RATE

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.learning_rate
        require(rate is None or rate > 0, f"{self.where}.learning_rate", rate, "a number > 0, or null")
        require(0 <= self.warmup <= 1, f"{self.where}.warmup", self.warmup, "a share between 0 and 1")
        self.require_one_of("dtype", "float32", "bfloat16")
        for name, value in self.arguments.items():
            place, instead = f"{self.where}.arguments.{name}", f"Use {SET_BY_TRAINING.get(name)}."
            require(name not in SET_BY_TRAINING, place, value, "no such setting, which training sets itself", instead)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, the default ones of ``arguments`` among them, for manifests."""
        return {**asdict(self), "arguments": {**DEFAULT_ARGUMENTS, **self.arguments}}

    def resolved(self, model: str) -> Self:
        """The settings with which ``model`` is trained: the learning rate is not left open."""
        usual = self.built_in_rate if model == BUILT_IN else USUAL_RATE
        return self if self.learning_rate is not None else replace(self, learning_rate=usual)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(TrlConfig, ExportConfig):
    """DPO (2305.18290) or KTO (2402.01306) on conversations that are there; ``format`` decides which.

    Args:
        beta: how near the policy is kept to the reference; larger is nearer.
        ids: sampled trains the ids that were sampled and none of the environment's words; rendered is TRL as it comes,
            which renders the messages again and also trains what the environment said between two replies.
        desirable: kto alone: weight of good conversations; 0 balances the two kinds by their number.
        undesirable: kto alone: weight of bad ones; 0 balances.
        batch_size: rows (pairs, or conversations) per optimizer step.
        micro_batch_size: the most rows of one forward pass.
        max_steps: optimizer steps; the rows are passed over as often as that takes. 0 takes epochs instead.
        epochs: passes over the rows, where max_steps is 0.
    """

    beta: float = 0.1
    ids: Literal["sampled", "rendered"] = "sampled"
    desirable: float = 0.0
    undesirable: float = 0.0
    batch_size: int = 32
    micro_batch_size: int = 32
    max_steps: int = 0
    epochs: float = 1.0

    where = "preference"

    @property
    def rows(self) -> ExportConfig:
        """Which pairs, or labelled conversations, are made of the rollouts."""
        return ExportConfig(**{each.name: getattr(self, each.name) for each in fields(ExportConfig)})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "preference.beta", self.beta, "a number > 0")
        self.require_one_of("format", "dpo", "dpo-final", "dpo-step", "kto")
        self.require_one_of("ids", "sampled", "rendered")
        self.require_at_least(0, "desirable", "undesirable", "max_steps")
        self.require_at_least(1, "batch_size")
        check_division(self.where, self.batch_size, self.micro_batch_size)
        require(self.max_steps > 0 or self.epochs > 0, "preference.epochs", self.epochs, "a number > 0")


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(TrlConfig):
    """Online multi-turn RL: GRPO on live conversations, rewarded with the shaped return that DRIFT is given.

    Each round, ``prompts`` tasks are drawn, ``samples`` conversations of each are sampled with the policy as it is, and
    the weights are moved by ``minibatches · passes`` optimizer steps on them. P, K and one step a round are the best of
    the sweep in docs/LOG.md, on the built-in policy.

    Args:
        tasks: number of tasks of the train split that prompts are drawn from, each once before any comes again.
        rounds: how often conversations are sampled.
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
        sampling: how replies are drawn.
        generation_batch: the most requests in one batch of generation.
        save_rounds: rounds between saved models, under ``rounds/<n>``; 0 saves the last alone.
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
    sampling: Sampling = field(default_factory=Sampling)
    generation_batch: int = 256
    save_rounds: int = 0

    where = "online"
    built_in_rate = BUILT_IN_RATE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "tasks", "rounds", "prompts", "minibatches", "passes", "generation_batch")
        self.require_at_least(0, "kl", "save_rounds")
        self.require_one_of("loss", "dapo", "grpo", "dr_grpo")
        self.require_one_of("scale", "group", "batch", "none")
        require(self.clip > 0, "online.clip", self.clip, "a number > 0")
        few = "Returns are compared within a prompt."
        require(self.samples >= 2, "online.samples", self.samples, "at least 2", few)
        enough = f"at least the {self.prompts} prompts of a round"
        require(self.tasks >= self.prompts, "online.tasks", self.tasks, enough)
        count = self.prompts * self.samples
        divisor = f"a divisor of the {count} conversations of a round"
        require(count % self.minibatches == 0, "online.minibatches", self.minibatches, divisor)
        check_division(self.where, count // self.minibatches, self.micro_batch_size)
        temperature, alike = self.sampling.temperature, "Greedy replies of one prompt are all the same."
        require(temperature > 0, "online.sampling.temperature", temperature, "a number > 0", alike)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        values = super().to_dict()
        values["sampling"]["stop"] = list(self.sampling.stop)
        return values


def check_division(where: str, batch: int, micro: int) -> None:
    """Refuse rows of a step that don't fall into equal forward passes, which would count unequally."""
    require(micro >= 1, f"{where}.micro_batch_size", micro, "a whole number ≥ 1")
    divisor = f"a divisor of the {batch} rows of an optimizer step"
    require(batch % min(micro, batch) == 0, f"{where}.micro_batch_size", micro, divisor)
