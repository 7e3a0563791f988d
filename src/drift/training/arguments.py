"""Training settings in the terms of the libraries that take them: transformers' and PEFT's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from drift.errors import ConfigError, require, unknown_name
from drift.policies.hf import check_device
from drift.training.checkpoints import FOLDER
from drift.training.config import DEFAULT_ARGUMENTS, SET_BY_TRAINING, TrainingConfig
from drift.training.quantized import check_quantization
from drift.training.trackers import names_of

# What PEFT writes into an adapter's configuration itself.
_OF_PEFT = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode")
_RECOMPUTE = ("gradient_checkpointing", "activation_checkpointing")


def check_settings(config: TrainingConfig, device: str) -> None:
    """Refuse, before a model is loaded, what transformers, PEFT or torch would refuse later.

    Raises:
        ConfigError: an unknown name in ``arguments`` or ``lora``; no such schedule; a tracker or bitsandbytes that is
            not installed; a device that is not here.
    """
    known = {field.name: field.default for field in fields(TrainingArguments) if field.name not in SET_BY_TRAINING}
    for name, value in config.arguments.items():
        if name not in known:
            raise unknown_name("setting of transformers.TrainingArguments", name, known, where="training.arguments")
        # YAML takes 1e-3 for text.
        sound = not isinstance(known[name], int | float) or not isinstance(value, str)
        require(sound, f"training.arguments.{name}", value, f"a value such as {known[name]}", "Write 1e-3 as 0.001.")
    schedules = [schedule.value for schedule in SchedulerType]
    schedule = config.to_dict()["arguments"]["lr_scheduler_type"]
    if schedule not in schedules:
        raise unknown_name("learning-rate schedule", schedule, schedules, where="training.arguments.lr_scheduler_type")
    if config.lora:
        lora_config(config.lora)
    check_device(device)
    _check_schedule(schedule, config)
    if config.bits:
        check_quantization()
    try:
        for tracker in get_reporting_integration_callbacks(config.to_dict()["arguments"]["report_to"]):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"training.arguments.report_to: {error} Install it, or leave report_to out.") from error


def _check_schedule(schedule: str, config: TrainingConfig) -> None:
    """Refuse a schedule that lacks settings of its own, by making one for a model of one parameter."""
    more = config.arguments.get("lr_scheduler_kwargs")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    steps = max(1, config.max_steps)
    try:
        get_scheduler(
            schedule,
            optimizer,
            num_warmup_steps=math.ceil(config.warmup * steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=more,
        )
    except Exception as error:
        raise ConfigError(
            f"training.arguments.lr_scheduler_type: {schedule!r} can't be made: {error}. Give its settings as "
            "lr_scheduler_kwargs, or another schedule."
        ) from error


def check_values(config: TrainingConfig) -> None:
    """Let transformers look at the values of ``config.arguments``, and at what its optimizer needs.

    Not in a process that trains with others: what transformers keeps of these is made anew.

    Raises:
        ConfigError: a value that it refuses, or an optimizer whose library is not installed.
    """
    given = {**DEFAULT_ARGUMENTS, **config.arguments, "report_to": "none"}
    try:
        arguments = TrainingArguments(use_cpu=True, save_strategy="no", disable_tqdm=True, **given)
        if "optim" in config.arguments:
            from transformers import Trainer

            Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"training.arguments: {' '.join(str(error).split())}") from error


def training_arguments(config: TrainingConfig, out: Path, steps: int, seed: int, device: str) -> TrainingArguments:
    """``config`` in transformers' terms; one item of its data loader is one optimizer step.

    Raises:
        ConfigError: a value that transformers refuses.
    """
    given = {**DEFAULT_ARGUMENTS, **names_of(config, out), **config.arguments}
    fsdp = config.engine == "fsdp"
    # FSDP does this itself, around whole layers.
    asked = [given.pop(name, False) for name in _RECOMPUTE] if fsdp else []
    try:
        arguments = TrainingArguments(
            output_dir=str(out / FOLDER),
            per_device_train_batch_size=1,
            max_steps=steps,
            learning_rate=config.learning_rate,
            # In steps: transformers takes a share of 1 for one step.
            warmup_steps=math.ceil(config.warmup * steps),
            bf16=config.dtype == "bfloat16",
            save_strategy="steps" if config.save_steps else "no",
            save_steps=config.save_steps or 1,
            logging_nan_inf_filter=False,
            seed=seed,
            data_seed=seed,
            use_cpu=device == "cpu" or not torch.cuda.is_available(),
            remove_unused_columns=False,
            disable_tqdm=True,
            **_engine(config.engine, recompute=any(asked)),
            **given,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training.arguments: {error}") from error
    if fsdp and config.dtype == "bfloat16":
        # Gradients are summed over ranks, and the loss is returned, in float32: the usual policy has both in 16 bits.
        from torch.distributed.fsdp import MixedPrecisionPolicy

        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    return arguments


def _engine(engine: str, *, recompute: bool) -> dict[str, Any]:
    """What the file of an engine says, in terms of ``TrainingArguments``; FSDP recomputes activations itself."""
    if engine == "ddp":
        return {}
    path = files("drift.training") / "engines" / f"{engine}.yaml"
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    if engine == "fsdp":
        return {"fsdp": True, "fsdp_config": {**settings, "activation_checkpointing": recompute}}
    return {"deepspeed": settings}


def lora_config(lora: Mapping[str, Any]) -> Any:
    """``lora`` as a ``peft.LoraConfig``; raises ``ConfigError`` for what PEFT does not know or refuses."""
    from peft import LoraConfig

    given = {name: value for name, value in lora.items() if name != "bits"}
    known = {field.name for field in fields(LoraConfig) if field.init} - set(_OF_PEFT)
    for name in given:
        if name not in known:
            raise unknown_name("setting of peft.LoraConfig", name, {*known, "bits"}, where="training.lora")
    try:
        return LoraConfig(**{"target_modules": "all-linear", **given, "task_type": "CAUSAL_LM"})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training.lora: {error}") from error


def with_lora(model: Any, lora: Mapping[str, Any]) -> Any:
    """``model`` with an adapter around it, which alone is trained; raises ``ConfigError`` where it does not fit."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, lora_config(lora))
    except ValueError as error:
        raise ConfigError(
            f"training.lora: {error} Set target_modules to modules of this model, or to all-linear."
        ) from error
