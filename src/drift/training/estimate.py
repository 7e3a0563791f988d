"""What a training will want of a machine: memory and disk as lower bounds, and how many tokens a pass can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drift.policies.hf import empty_model
from drift.training.arguments import with_lora
from drift.training.config import DEFAULT_ARGUMENTS, TrainingConfig
from drift.training.forward import padded_batch, tree_batch
from drift.training.tree import build_tree
from drift.types import Example

# Bytes of a float32 weight; and of a trained one with its gradient, as much again, and AdamW's two moments.
WEIGHT, TRAINED, MOMENTS = 4, 16, 8
# Optimizers whose state is smaller than AdamW's: of these weight and gradient alone are counted.
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")
# Of a pass: tokens to measure it with, fewest and most tokens, and its share of the memory that is left.
_PROBED, FEWEST, MOST, _SHARE = 256, 256, 8192, 0.5
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


def tokens_that_fit(model: Any, longest: int, config: TrainingConfig, *, trees: bool, memory: int) -> int:
    """How many tokens one pass may have: the largest power of 2 of which half of the memory left holds what is kept.

    Kept until the backward pass are a pass's activations, which grow with its tokens; they are measured on a row.

    Args:
        model: after ``use_weighted_loss`` and ``use_trees``, where it is trained.
        longest: tokens of the longest row.
        config: how it is trained.
        trees: whether rows of a prompt share what they begin with.
        memory: bytes that the device has in all.
    """
    device = next(model.parameters()).device
    # A pass keeps little there; or has kernels that are not on the device yet.
    kernels = device.type == "cpu" and config.attention not in ("auto", "sdpa", "eager")
    if kernels or config.arguments.get("gradient_checkpointing"):
        return MOST
    weights = sum(each.nbytes for each in model.parameters())
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    held = weights + (TRAINED - WEIGHT) * trained
    sharing = config.num_processes if device.type == "cpu" else 1
    left = memory / sharing - held / (config.num_processes if config.engine != "ddp" else 1)
    # Two rows, as some of what is kept is there once, such as weights in bfloat16.
    long = max(4, min(_PROBED, longest))
    short = long // 2
    kept = {count: _bytes_kept(model, count, config, trees=trees) for count in (short, long)}
    each = max(1.0, (kept[long] - kept[short]) / (long - short))
    fits = (_SHARE * left - (kept[long] - each * long)) / each
    return int(min(max(2.0 ** math.floor(math.log2(max(fits, 1.0))), FEWEST), MOST))


def _bytes_kept(model: Any, count: int, config: TrainingConfig, *, trees: bool) -> int:
    """Bytes that a pass over ``count`` tokens keeps for its backward pass, weights left out."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = tuple(token % vocabulary for token in range(count))
    ones = (0.0,) + (1.0,) * (count - 1)
    row = Example(trajectory_id="", group_id="", token_ids=ids, sampled=tuple(map(bool, ones)), weight=ones)
    device = next(model.parameters()).device
    batch = (tree_batch(build_tree([row])) if trees else padded_batch([row])).to(device)
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixed = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    # What is drawn here, as by dropout, is not to change what training draws.
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type), mixed:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(batch=batch)
        del loss
    for each in model.parameters():
        sizes.pop(each.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


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
