"""What a training will want of a machine, known before it starts: memory and disk, as lower bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drift.policies.hf import empty_model
from drift.training.arguments import with_lora
from drift.training.config import DEFAULT_ARGUMENTS, TrainingConfig

# Bytes of a float32 weight; and of a trained one with its gradient, as much again, and AdamW's two moments.
WEIGHT, TRAINED, MOMENTS = 4, 16, 8
# Optimizers whose state is smaller than AdamW's: of these weight and gradient alone are counted.
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training wants at least.

    Attributes:
        parameters, trained: of the model, and those that change.
        memory: bytes on each device (all of the machine's memory, on a CPU), without activations.
        disk: bytes of the saved model and of the checkpoints that are kept meanwhile.
    """

    parameters: int
    trained: int
    memory: int
    disk: int


def estimate(settings: Any, config: TrainingConfig, *, on_cpu: bool) -> Estimate:
    """What training a model with these transformers ``settings`` wants, by its modules alone, without its weights.

    memory = 4·frozen + 16·trained bytes (weights, gradients, AdamW's two moments in float32), bits/8 instead of 4 where
    the model is quantized, over the processes where they shard it; disk = 4·all (the model) + (4 or 0)·all + 8·trained
    for each checkpoint (weights, moments; of an adapter its own alone).

    Args:
        settings: the model's configuration.
        config: how it is trained.
        on_cpu: whether all processes share one memory.

    Raises:
        ConfigError: the adapter does not fit the model.
    """
    model = empty_model(settings)
    parameters = sum(each.numel() for each in model.parameters())
    trained = parameters
    if config.lora:
        # What starts otherwise has to compute something, which a model without weights can't.
        adapted = with_lora(model, {**config.lora, "init_lora_weights": True})
        trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    arguments: Mapping[str, Any] = {**DEFAULT_ARGUMENTS, **config.arguments}
    moments = MOMENTS if str(arguments.get("optim", "adamw_torch")) in _ADAMW else 0
    frozen = (parameters - (0 if config.lora else trained)) * (config.bits / 8 if config.bits else WEIGHT)
    memory = frozen + trained * (TRAINED - MOMENTS + moments)
    shards, copies = (config.num_processes, 1) if config.engine != "ddp" else (1, config.num_processes)
    memory *= copies if on_cpu else 1 / shards
    kept = 0
    if config.save_steps and not config.epochs:
        # A new checkpoint is written before the oldest is removed.
        kept = min(config.max_steps // config.save_steps, int(arguments["save_total_limit"]) + 1)
    disk = WEIGHT * parameters + kept * trained * (WEIGHT + moments)
    return Estimate(parameters=parameters, trained=trained, memory=int(memory), disk=disk)


def memory_of(device: str) -> tuple[int, str]:
    """Bytes of memory that a device has in all, and its name; of a CPU what this machine or container allows."""
    if device != "cpu" and torch.cuda.is_available():
        place = torch.device("cuda" if device == "auto" else device)
        facts = torch.cuda.get_device_properties(place)
        return int(facts.total_memory), str(facts.name)
    limits = [int(text) for path in _CGROUP_LIMITS if (text := _text_of(path)).isdigit()]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([memory, *limits]), "this machine"


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
