"""The optimizer steps themselves: ``transformers.Trainer`` set up, driven and saved, by one rank or several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PrinterCallback, set_seed

from drift.checksums import read_by_loaders, write_sums
from drift.errors import Interrupted
from drift.files import own_folder
from drift.manifest import package_versions, write_json
from drift.policies.stored import NO_CODE
from drift.terminal import tell
from drift.training.arguments import training_arguments, with_lora
from drift.training.checkpoints import last_checkpoint, saving, whole_checkpoint
from drift.training.config import TrainingConfig
from drift.training.distributed import Ranks
from drift.training.estimate import memory_of, tokens_that_fit
from drift.training.forward import (
    acting_window,
    rope_border,
    use_trees,
    use_weighted_loss,
    why_not_padded,
    why_not_trees,
)
from drift.training.held_out import HeldOutLoss
from drift.training.kl_limit import KLLimit
from drift.training.log import MetricsLog
from drift.training.plan import OptimizerStep
from drift.training.quantized import merged, merged_into
from drift.training.rows import RowFile
from drift.training.sharding import check_ranks, gathered_model
from drift.training.trainer import StepDataset, WeightedTrainer
from drift.types import Example

METRICS = "metrics.jsonl"
PREFIXES = "shared-prefixes.json"


def optimize(
    model: Any,
    rows: RowFile,
    steps: Sequence[OptimizerStep],
    config: TrainingConfig,
    out: Path,
    *,
    seed: int,
    device: str,
    ranks: Ranks,
    kl_rows: Sequence[Example] = (),
    held_out: Sequence[Example] = (),
) -> tuple[WeightedTrainer, dict[str, Any]]:
    """Train ``model`` through ``steps``, from the last checkpoint in ``out`` if there is one.

    Args:
        model: a causal LM.
        rows: the training rows.
        steps: the plan.
        config: how to train.
        out: where checkpoints and metrics go.
        seed: of what is random in the model.
        device: where to train.
        ranks: this process among others.
        kl_rows: rows to measure ``kl_limit`` on.
        held_out: rows to measure the loss on.

    Returns:
        The trainer, and what was measured on the way, for the manifest.

    Raises:
        ConfigError: a setting that transformers or PEFT refuses for this model.
        Interrupted: Ctrl-C.
        TrainingError: a loss, gradient or parameter is not finite; or the limit was passed at the first measurement.
    """
    set_seed(seed)
    if config.lora:
        model = with_lora(model, config.lora)
    use_weighted_loss(model, config.objective)
    trees, tokens = _ways(model, int(rows.facts.length_N.max()), config, out, ranks=ranks, device=device)
    watches = _watches(model, config, out, kl_rows, held_out, ranks=ranks, trees=trees)
    if getattr(model.config, "output_router_logits", False) and ranks.is_first:
        tell("training: the router loss that the model's config asks for is left out", error=True)
    use_cache = getattr(model.config, "use_cache", None)  # Trainer sets it, and it would be saved so.
    callbacks = [*([MetricsLog(out / METRICS)] if ranks.is_first else []), *watches.values()]
    with saving(out):
        trainer = WeightedTrainer(
            model=model,
            args=training_arguments(config, out, len(steps), seed, device),
            train_dataset=StepDataset(
                steps,
                rows,
                rank=ranks.index,
                tokens_per_batch=tokens,
                trees=trees,
                rope_border=rope_border(model.config),
            ),
            callbacks=callbacks,
        )
        # It writes dictionaries to stdout; they are in metrics.jsonl.
        trainer.remove_callback(PrinterCallback)
        checkpoint = whole_checkpoint(out)
        check_ranks(checkpoint, config, ranks)
        _run(trainer, checkpoint, out)
    model.config.use_cache = use_cache
    trainer.check_parameters()
    for watch in watches.values():
        watch.settle()
    return trainer, {"tokens_per_batch": tokens} | {name: watch.report() for name, watch in watches.items()}


def _watches(
    model: Any, config: TrainingConfig, out: Path, kl_rows: Sequence[Example], held_out: Sequence[Example], **more: Any
) -> dict[str, Any]:
    """What is measured while the model is trained, by the setting that asks for it."""
    watches: dict[str, Any] = {}
    if config.kl_limit:
        watches["kl_limit"] = KLLimit(model, kl_rows, config, out, **more)
    if config.held_out:
        watches["held_out"] = HeldOutLoss(model, held_out, config.held_out, config.dtype, out, **more)
    return watches


def _ways(
    model: Any, longest: int, config: TrainingConfig, out: Path, *, ranks: Ranks, device: str
) -> tuple[bool, int]:
    """Whether rows of a prompt share what they begin with, and the most tokens of a pass; with 1 each row has its own.

    The model is left that way.
    """
    auto = config.attention == "auto"
    trees = auto and _can_share(model, longest, out, ranks)
    alone = auto and not trees and _must_be_alone(model, longest, ranks)
    use_trees(model, trees)
    if alone or config.tokens_per_batch:
        return trees, 1 if alone else config.tokens_per_batch
    memory, _ = memory_of(device)
    return trees, ranks.on_first_rank(lambda: tokens_that_fit(model, longest, config, trees=trees, memory=memory))


def _run(trainer: WeightedTrainer, checkpoint: Path | None, out: Path) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt as stop:
        kept = last_checkpoint(out)
        after = f"{kept.name} is kept. Run the same command again to go on from it." if kept else "no checkpoint yet."
        raise Interrupted(f"stopped at step {trainer.state.global_step}; {after}") from stop


def _can_share(model: Any, longest: int, out: Path, ranks: Ranks) -> bool:
    reason = ranks.on_first_rank(lambda: _why_not_trees(model, longest, out / PREFIXES))
    if reason and ranks.is_first:
        tell(f"training: what conversations share is computed for each, as with this model {reason}", error=True)
    return not reason


def _must_be_alone(model: Any, longest: int, ranks: Ranks) -> bool:
    reason = ranks.on_first_rank(lambda: why_not_padded(model, longest))
    # NaN is a fault of these weights, which the first step names.
    alone = bool(reason) and "nan" not in reason
    if alone and ranks.is_first:
        tell(f"training: one row at a time, as with padded rows of this model {reason}", error=True)
    return alone


def _why_not_trees(model: Any, longest: int, path: Path) -> str:
    """``why_not_trees``, or its answer for such a model and rows that ``path`` holds; a new one is kept there."""
    facts = {
        "packages": package_versions(),
        "config": {**model.config.to_dict(), "_name_or_path": ""},
        "attention": model.config._attn_implementation,
        "modules": repr(model),
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "dtype": str(model.dtype),
        "device": model.device.type,
        "window": acting_window(model.config, longest),
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["model"] == fingerprint:
            return str(kept["refused"])
    reason = why_not_trees(model, longest)
    # NaN is a fault of these weights, not of the model.
    if "nan" not in reason:
        write_json(path, {"model": fingerprint, "refused": reason})
    return reason


def save_model(
    trainer: WeightedTrainer, tokenizer: Any, out: Path, config: TrainingConfig, *, model: str, ranks: Ranks
) -> None:
    """Save what ``model`` has become as an ordinary model folder, an adapter beside it. Every rank must call it."""
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.engine != "ddp":
        trained = gathered_model(trainer, config, model=model, ranks=ranks)
    if not ranks.is_first:
        return
    use_trees(trained, False)
    with saving(out):
        if config.lora:
            with saving(own_folder(out / "adapter")):
                trained.save_pretrained(out / "adapter")
            # Weights of 4 or 8 bits would take the adapter's changes only roughly.
            trained = merged_into(model, out / "adapter") if config.bits else merged(trained)
        trained.save_pretrained(out)
        # As it is stored: the one at hand pads on the left.
        AutoTokenizer.from_pretrained(tokenizer.name_or_path, **NO_CODE).save_pretrained(out)
        write_sums(out, read_by_loaders(out))
