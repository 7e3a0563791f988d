"""Engines that split a model's state among ranks: torch's FSDP2, DeepSpeed's ZeRO."""

from __future__ import annotations

import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from drift.errors import ConfigError, TrainingError
from drift.policies.hf import load_model
from drift.training.arguments import with_lora
from drift.training.config import TrainingConfig
from drift.training.distributed import Ranks


def uses_deepspeed(config: TrainingConfig) -> bool:
    """Whether the engine is one of DeepSpeed's."""
    return config.engine.startswith("zero")


def prepare_engine(config: TrainingConfig, device: str) -> None:
    """Look for the engine's library, and tell it where to train, before anything loads it.

    Raises:
        ConfigError: it is not installed.
    """
    if not uses_deepspeed(config):
        return
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"training.engine: {config.engine} needs DeepSpeed, which is not installed. "
            "Run: pip install 'drift-rl[deepspeed]', or use engine fsdp, which needs nothing more."
        )
    if device == "cpu" or not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # What these warn of is DeepSpeed's own doing, for each rank, some of it in each step.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def check_ranks(checkpoint: Path | None, config: TrainingConfig, ranks: Ranks) -> None:
    """Refuse a checkpoint that DeepSpeed wrote on another number of ranks: it can't split it anew.

    Raises:
        TrainingError: it is one.
    """
    if checkpoint is None or not uses_deepspeed(config):
        return
    written = len(list(checkpoint.glob("unlogged-*.json")))
    if written != ranks.count:
        raise TrainingError(
            f"{checkpoint} was written by {written} processes and DeepSpeed can't go on from it with {ranks.count}. "
            f"Set training.num_processes to {written}, or train into another directory."
        )


def gathered_model(trainer: Any, config: TrainingConfig, *, model: str, ranks: Ranks) -> Any:
    """The trained model put together in one that no engine has changed; ``None`` but on the first rank.

    Every rank must call it: each gives its part.

    Args:
        trainer: after training under an engine that shards.
        config: how it was trained.
        model: the folder or hub id that training began with.
        ranks: this process among others.
    """
    if trainer.is_fsdp_enabled:
        parameters, strict = trainer.accelerator.get_state_dict(trainer.model), True
    else:
        # What was not trained is as it was.
        parameters, strict = _trained(trainer.model_wrapped.module, ranks), False
        # Models that are loaded while it is set are split among all ranks.
        unset_hf_deepspeed_config()
    if not ranks.is_first:
        return None
    whole, _ = load_model(model, dtype="float32", device="cpu")
    if config.lora:
        whole = with_lora(whole, config.lora)
    unknown = whole.load_state_dict(parameters, strict=strict).unexpected_keys
    assert not unknown
    return whole


def _trained(model: torch.nn.Module, ranks: Ranks) -> dict[str, torch.Tensor]:
    """What DeepSpeed trained, in the float32 it keeps it in, one parameter gathered at a time."""
    from deepspeed.utils import safe_get_full_fp32_param

    parameters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
            if ranks.is_first:
                parameters[name] = whole.cpu()
    return parameters
