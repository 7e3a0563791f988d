"""The optimizer steps themselves: ``transformers.Trainer`` set up, driven and saved, by one rank or several."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, set_seed

from drift.checksums import write_sums
from drift.errors import Interrupted
from drift.manifest import writing
from drift.policies import model_path
from drift.progress import Progress
from drift.training.arguments import training_arguments, with_lora
from drift.training.checkpoints import last_checkpoint, whole_checkpoint
from drift.training.config import TrainingConfig
from drift.training.forward import teach, use_trees, why_not_trees
from drift.training.limit import KLLimit
from drift.training.plan import Step
from drift.training.quantized import merged_into
from drift.training.ranks import Ranks
from drift.training.sharding import check_ranks, whole_model
from drift.training.trainer import MetricsLog, StepDataset, WeightedTrainer
from drift.types import Example

METRICS = "metrics.jsonl"


@contextmanager
def saving(out: Path) -> Iterator[None]:
    """``writing``, for libraries that report a write which the disk refuses in words of their own."""
    with writing(out):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            signs = ("inline_container", "PytorchStreamWriter", "No space left", "(os error ")
            if not any(sign in str(error) for sign in signs):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


class _Bar(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = Progress("training", state.max_steps, done=state.global_step, unit="steps").__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def fit(
    model: Any,
    rows: Sequence[Example],
    steps: Sequence[Step],
    config: TrainingConfig,
    out: Path,
    *,
    seed: int,
    device: str,
    ranks: Ranks,
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
        held_out: rows to measure ``kl_limit`` on.

    Returns:
        The trainer, and what the limit found, for the manifest.

    Raises:
        Interrupted: Ctrl-C.
        TrainingError: a loss, gradient or parameter is not finite; or the limit was passed at the first measurement.
    """
    set_seed(seed)
    if config.lora:
        model = with_lora(model, config.lora)
    teach(model)
    trees = config.attention == "auto" and _can_share(model, ranks)
    use_trees(model, trees)
    callbacks: list[TrainerCallback] = [MetricsLog(out / METRICS)]
    limit = KLLimit(model, held_out, config, out, ranks=ranks, trees=trees) if config.kl_limit else None
    if limit is not None:
        callbacks.append(limit)
    with saving(out):
        trainer = WeightedTrainer(
            model=model,
            args=training_arguments(config, out, len(steps), seed, device),
            train_dataset=StepDataset(
                steps, rows, rank=ranks.index, tokens_per_batch=config.tokens_per_batch, trees=trees
            ),
            callbacks=[*callbacks, _Bar()] if ranks.leads else callbacks,
        )
        # It writes dictionaries to stdout; they are in metrics.jsonl.
        trainer.remove_callback(PrinterCallback)
        checkpoint = whole_checkpoint(out)
        check_ranks(checkpoint, config, ranks)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt as stop:
            kept = last_checkpoint(out)
            raise Interrupted(
                f"stopped at step {trainer.state.global_step}; "
                + (
                    f"{kept.name} is kept. Run the same command again to go on from it."
                    if kept
                    else "no checkpoint yet."
                )
            ) from stop
    trainer.check_parameters()
    if limit is None:
        return trainer, {}
    limit.settle()
    return trainer, {"kl_limit": limit.report()}


def _can_share(model: Any, ranks: Ranks) -> bool:
    reason = why_not_trees(model)
    if reason and ranks.leads:
        print(f"training: what conversations share is computed for each, as with this model {reason}", file=sys.stderr)
    return not reason


def save(
    trainer: WeightedTrainer, tokenizer: Any, out: Path, config: TrainingConfig, *, base: str, ranks: Ranks
) -> None:
    """Save an ordinary model folder; an adapter is kept beside the merged model. Every rank must call it."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.engine != "ddp":
        prepare = partial(with_lora, lora=config.lora) if config.lora else lambda loaded: loaded
        model = whole_model(trainer, prepare, base=base, ranks=ranks)
    if not ranks.leads:
        return
    use_trees(model, False)
    with saving(out):
        if config.lora:
            model.save_pretrained(out / "adapter")
            # Weights of 4 or 8 bits would take the adapter's changes only roughly.
            model = merged_into(model_path(base), out / "adapter") if config.bits else model.merge_and_unload()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        write_sums(out, _model_files(out))


def _model_files(folder: Path) -> list[Path]:
    """What a loader of the model folder reads."""
    names = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.jinja", "adapter/*")
    return [path for name in names for path in folder.glob(name) if path.is_file()]
