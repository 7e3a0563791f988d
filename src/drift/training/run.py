"""The training stage: trajectories and weights in, an ordinary model folder out."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments, set_seed

from drift.chat import TemplateChat
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import stream_trajectories
from drift.dataset.weighing import KIND as WEIGHTS
from drift.dataset.weighing import WeightTable, read_weights
from drift.errors import ConfigError, DatasetError, Interrupted, TrainingError
from drift.manifest import MANIFEST, differing_keys, read_manifest, write_json, write_manifest, writing
from drift.policies import model_path
from drift.policies.hf import fingerprint, load_model
from drift.progress import Progress
from drift.training.config import KIND, LoraSettings, TrainingConfig
from drift.training.examples import Choice, build_examples
from drift.training.forward import teach, use_trees, why_not_trees
from drift.training.plan import Step, plan_steps
from drift.training.rows import NAME as ROWS
from drift.training.rows import RowFile, write_rows
from drift.training.trainer import MetricsLog, StepDataset, WeightedTrainer
from drift.types import Example
from drift.weights.groups import index_groups
from drift.weights.skipping import negligible

SPEC = "training.json"
METRICS = "metrics.jsonl"


def train_model(
    data: Path,
    weights: Path,
    config: TrainingConfig,
    out: Path,
    *,
    base: str,
    seed: int,
    device: str = "auto",
    any_policy: bool = False,
) -> dict[str, Any]:
    """Fine-tune ``base`` on the weighted data set and save it, with its tokenizer and a manifest, to ``out``.

    A run that was interrupted goes on from its last checkpoint; one that is finished is not run again.

    Args:
        data: directory of trajectories.
        weights: directory of weights made from them.
        config: how to train.
        out: the model folder.
        base: the model to start from: ``default``, a folder or a hub id.
        seed: decides the order of the rows, and the LoRA initialisation.
        device: where to train.
        any_policy: accept trajectories that another policy than ``base`` sampled.

    Raises:
        DatasetError: data or weights are missing, damaged, incomplete, or don't belong together or to ``base``.
        TrainingError: no rows are left to train on, or the loss stopped being finite.
        Interrupted: Ctrl-C.
    """
    manifest = read_manifest(data, TRAJECTORIES)
    _check_ids(manifest["spec"], data, base)
    table = read_weights(weights, data)
    model, tokenizer = load_model(model_path(base), dtype="float32", device=device)
    TemplateChat(tokenizer, source=base)
    own = fingerprint(model, tokenizer)
    if not any_policy:
        _check_policy(own, manifest["spec"]["policy"], data, base)
    spec = {
        "base": own,
        "config": config.to_dict(),
        "seed": seed,
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": read_manifest(weights, WEIGHTS)["weights_hash"],
    }
    if _finished(out, spec):
        return read_manifest(out, KIND)
    limit = config.max_length or getattr(model.config, "max_position_embeddings", None)
    counts, dropped = _write_rows(out / ROWS, data, table, config, limit)
    if counts["rows"] == counts["skipped_negligible"]:
        raise TrainingError(f"no rows to train on: {dict(counts)}. Look at the weights, or raise training.max_length.")
    write_json(out / SPEC, spec)
    start = time.monotonic()
    rows = RowFile(out / ROWS)
    steps = plan_steps(
        rows.facts,
        batch_size=config.batch_size,
        steps=config.max_steps or math.ceil(config.epochs * len(rows) / config.batch_size),
        seed=seed,
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
        together=config.rows_together,
    )
    trainer = _fit(model, rows, steps, config, out, seed, device)
    _save(trainer, tokenizer, out, config.lora)
    tokens = sum(int(rows.facts.length_N[list(share)].sum()) for step in steps for share in step.ranks)
    content = {
        "spec": spec,
        "base": base,
        "scheme": read_manifest(weights, WEIGHTS)["config"],
        "turns": config.turns,
        "normalization": config.normalization,
        "counts": dict(counts),
        "dropped_mass": dropped,
        "steps": trainer.state.global_step,
        "cost": {"seconds": round(time.monotonic() - start, 3), "tokens_trained": tokens},
    }
    write_manifest(out, KIND, content)
    (out / ROWS).unlink()
    return read_manifest(out, KIND)


def _check_ids(spec: dict[str, Any], data: Path, base: str) -> None:
    if spec.get("ids") == "none":
        raise DatasetError(
            f"{data} holds text alone: the policy told no token ids, and training needs them. Tokenize it for the "
            f"model to be trained: drift import {data} --format trajectories --model {base} --out DIR. Then weigh DIR."
        )


def _check_policy(own: str, made_by: str, data: Path, base: str) -> None:
    if own != made_by:
        raise DatasetError(
            f"{data} was sampled by another policy ({made_by}) than {base!r} ({own}). The weights assume that the "
            "trajectories come from the model that is trained. Give that model as base, or say --any-policy true."
        )


def _finished(out: Path, spec: dict[str, Any]) -> bool:
    """Whether ``out`` already holds the result of this very run; raises where it holds another's."""
    import json

    path = out / SPEC
    if not path.is_file():
        return False
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}). Train into another directory.") from error
    changed = differing_keys(old, spec)
    if changed:
        raise DatasetError(
            f"{out} holds the training of another run: {'; '.join(changed)}. "
            "Give another directory, or the settings it was begun with."
        )
    return (out / MANIFEST).is_file()


def training_arguments(config: TrainingConfig, out: Path, steps: int, seed: int, device: str) -> TrainingArguments:
    """``config`` in transformers' terms; one item of its data loader is one optimizer step."""
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bfloat16",
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=config.keep_checkpoints,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        report_to=config.trackers or "none",
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        # Renamed in recent versions of transformers, which take the old name with a warning.
        **({"gradient_checkpointing": True} if config.gradient_checkpointing else {}),
    )


@contextmanager
def _saving(out: Path) -> Iterator[None]:
    """``writing``, for libraries that report a write which the disk refuses in words of their own."""
    with writing(out):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            if not any(sign in str(error) for sign in ("inline_container", "PytorchStreamWriter", "No space left")):
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


def _fit(
    model: Any,
    rows: Sequence[Example],
    steps: Sequence[Step],
    config: TrainingConfig,
    out: Path,
    seed: int,
    device: str,
) -> WeightedTrainer:
    set_seed(seed)
    if config.lora.rank:
        model = _with_lora(model, config.lora)
    teach(model)
    trees = config.share_prefixes and _can_share(model)
    use_trees(model, trees)
    with _saving(out):
        trainer = WeightedTrainer(
            model=model,
            args=training_arguments(config, out, len(steps), seed, device),
            train_dataset=StepDataset(
                steps,
                rows,
                rank=int(os.environ.get("RANK", "0")),
                tokens_per_batch=config.tokens_per_batch,
                trees=trees,
            ),
            callbacks=[MetricsLog(out / METRICS), _Bar()],
        )
        checkpoint = last_checkpoint(out)
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
    return trainer


def _write_rows(
    path: Path, data: Path, table: WeightTable, config: TrainingConfig, limit: int | None
) -> tuple[Counter[str], float]:
    """Write the training rows; returns what was counted, and the largest share of a prompt's weight left out."""
    index_N, _ = index_groups(table.groups)
    skipped_N, dropped_G = negligible(table.weights_N, index_N, config.skip_mass)
    choice = Choice(
        weights=table.by_id(),
        negligible={table.ids[at] for at in np.flatnonzero(skipped_N)},
        turns=config.turns,
        normalization=config.normalization,
        max_length=limit,
    )
    counts: Counter[str] = Counter()
    write_rows(path, build_examples(stream_trajectories(data), choice, counts))
    return counts, float(dropped_G.max(initial=0.0))


def _can_share(model: Any) -> bool:
    reason = why_not_trees(model)
    if reason:
        print(f"training: what conversations share is computed for each, as with this model {reason}", file=sys.stderr)
    return not reason


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [
        path
        for path in (out / "checkpoints").glob("checkpoint-*")
        # Trainer writes its state after weights and optimizer.
        if (path / "trainer_state.json").is_file() and (path / "optimizer.pt").is_file()
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _with_lora(model: Any, lora: LoraSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"training.lora.targets: {error}. Name modules of this model, or all-linear.") from error


def _save(trainer: WeightedTrainer, tokenizer: Any, out: Path, lora: LoraSettings) -> None:
    """Save an ordinary model folder; an adapter is kept beside the merged model."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    use_trees(model, False)
    with _saving(out):
        if lora.rank:
            model.save_pretrained(out / "adapter")
            model = model.merge_and_unload()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
