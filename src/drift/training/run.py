"""The training stage: trajectories and weights in, an ordinary model folder out."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from drift.chat import TemplateChat
from drift.checksums import damaged_files
from drift.dataset.store import count_trajectories, read_checked, stream_columns, stream_trajectories
from drift.errors import DatasetError, TrainingError
from drift.files import writing
from drift.manifest import MANIFEST, differing_keys, read_manifest, write_json, write_manifest
from drift.policies import model_path
from drift.policies.base import model_part, old_note
from drift.policies.hf import check_attention, load_model
from drift.policies.stored import context_limit, fingerprint_of
from drift.terminal import tell
from drift.training.arguments import check_settings
from drift.training.checkpoints import discard_unfinished
from drift.training.config import KIND, SPEC, TrainingConfig
from drift.training.distributed import Ranks, locked, process_group
from drift.training.examples import build_examples
from drift.training.held_out import BEST
from drift.training.kl_limit import PROMPTS, HeldOut, set_aside
from drift.training.optimize import optimize, save_model
from drift.training.plan import PlanOptions, plan_steps, steps_per_pass
from drift.training.quantized import load_quantized
from drift.training.rows import NAME as ROWS
from drift.training.rows import RowFile, write_rows
from drift.training.sharding import prepare_engine
from drift.weights.table import WeightTable, chain_of, read_weights

KL_ROWS, HELD_OUT = "kl.arrow", "held-out.arrow"
# Prompts whose loss is measured at most; all of their conversations are.
MOST = 256
# Settings that change how much memory training takes and what it keeps, but for rounding no result.
MEMORY = ("config.tokens_per_batch:", "config.save_steps:", "config.arguments.gradient_checkpointing:")


def train_model(
    data: Path,
    weights: Path,
    config: TrainingConfig,
    out: Path,
    *,
    model: str,
    seed: int,
    device: str = "auto",
    any_policy: bool = False,
) -> dict[str, Any]:
    """Fine-tune ``model`` on the weighted data set and save it, with its tokenizer and a manifest, to ``out``.

    A run that was interrupted goes on from its last checkpoint; one that is finished is not run again.

    Args:
        data: directory of trajectories.
        weights: directory of weights made from them.
        config: how to train.
        out: the model folder.
        model: the model to start from: ``default``, a folder or a hub id.
        seed: decides the order of the rows, and the LoRA initialisation.
        device: where to train.
        any_policy: accept trajectories that another policy than ``model`` sampled.

    Raises:
        ConfigError: a setting that transformers, PEFT or torch does not know or can't follow here.
        DatasetError: data or weights are missing, damaged, incomplete, or don't belong together or to ``model``.
        TrainingError: no rows are left to train on, or the loss stopped being finite.
        Interrupted: Ctrl-C.
    """
    with process_group(device) as ranks:
        request = _Request(data, weights, config, out, model, seed, device, any_policy)
        with locked(out) if ranks.is_first else nullcontext():
            _train(request, ranks)
        ranks.wait()
        return read_manifest(out, KIND)


@dataclass(frozen=True)
class _Request:
    """The arguments of ``train_model``."""

    data: Path
    weights: Path
    config: TrainingConfig
    out: Path
    model: str
    seed: int
    device: str
    any_policy: bool


def _train(request: _Request, ranks: Ranks) -> None:
    config, out = request.config, request.out
    check_settings(config, request.device)
    prepare_engine(config, request.device)
    # Before a model is loaded, and kept on the first rank.
    sources: list[tuple[dict[str, Any], WeightTable]] = []
    ranks.on_first_rank(lambda: sources.append(_read(request)))
    model, tokenizer = _load(request)
    prepared = ranks.on_first_rank(lambda: _prepare(request, *sources.pop(), model, tokenizer))
    # What the rows were made from is not needed again.
    pa.default_memory_pool().release_unused()
    if prepared is None:
        return
    spec, counts = prepared
    start = time.monotonic()
    rows = RowFile(out / ROWS)
    options = PlanOptions(
        plan=config.plan,
        batch_size=config.batch_size,
        conversations=counts["conversations"],
        together=config.rows_together,
        ranks=ranks.count,
        seed=request.seed,
    )
    count = math.ceil(config.epochs * steps_per_pass(rows.facts, options)) or config.max_steps
    steps = plan_steps(rows.facts, count, options)
    aside = {
        "kl_rows": list(RowFile(out / KL_ROWS)) if config.kl_limit else [],
        "held_out": list(RowFile(out / HELD_OUT)) if config.held_out else [],
    }
    trainer, measured = optimize(
        model, rows, steps, config, out, seed=request.seed, device=request.device, ranks=ranks, **aside
    )
    save_model(trainer, tokenizer, out, config, model=model_path(request.model), ranks=ranks)
    if not ranks.is_first:
        return
    taken = steps[: trainer.state.global_step]
    tokens = sum(int(rows.facts.length_N[share].sum()) for step in taken for share in step.ranks)
    content = {
        "spec": spec,
        "model": request.model,
        "weights": chain_of(request.weights),
        "normalization": config.normalization,
        "loss": {"plan": config.plan, "divisor": steps[0].divisor},
        "counts": counts,
        **measured,
        "steps": _kept_step(config, measured) or trainer.state.global_step,
        "ranks": ranks.count,
        "cost": {"seconds": round(time.monotonic() - start, 3), "tokens_trained": tokens},
    }
    write_manifest(out, KIND, content, sources={"data": request.data, "weights": request.weights})
    with writing(out):
        for name in (ROWS, KL_ROWS, HELD_OUT):
            (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / BEST, ignore_errors=True)


def _kept_step(config: TrainingConfig, measured: dict[str, Any]) -> int | None:
    """The step of the model that is saved, where that need not be the last one."""
    if config.kl_limit:
        return int(measured["kl_limit"]["step"])
    best = config.held_out is not None and config.held_out.keep == "best"
    return int(measured["held_out"]["step"]) if best else None


def _load(request: _Request) -> tuple[Any, Any]:
    """The model to be trained, and its tokenizer."""
    config, model = request.config, model_path(request.model)
    attention = None if config.attention == "auto" else config.attention
    if attention:
        check_attention(model, attention, device=request.device)
    # Whole on the CPU first, where each rank keeps a part of it on its GPU.
    device = "cpu" if config.engine != "ddp" else request.device
    if config.bits:
        return load_quantized(model, bits=config.bits, dtype=config.dtype, device=device, attention=attention)
    return load_model(model, dtype="float32", device=device, attention=attention)


def _read(request: _Request) -> tuple[dict[str, Any], WeightTable]:
    """The manifest of the data, and its weights."""
    manifest = read_checked(request.data)
    if manifest["spec"].get("ids") == "none":
        raise DatasetError(
            f"{request.data} holds text alone: the policy returned no token ids, and training needs them. Tokenize it "
            f"for the model to be trained: drift import {request.data} --format trajectories --model {request.model} "
            "--out DIR. Then weigh DIR."
        )
    return manifest, read_weights(request.weights, request.data)


def _prepare(
    request: _Request, manifest: dict[str, Any], table: WeightTable, model: Any, tokenizer: Any
) -> tuple[dict[str, Any], dict[str, int]] | None:
    """Check that all belongs together and write the rows: everything that decides the result, and how many rows.

    Returns ``None`` where nothing is left to do.
    """
    config, out = request.config, request.out
    TemplateChat(tokenizer, source=request.model)
    own = fingerprint_of(model_path(request.model))
    if not request.any_policy:
        check_policy(own, manifest["spec"]["policy"], request.data, request.model)
    # How many processes share a step changes neither its rows nor, but for rounding, its result.
    settings = {name: value for name, value in config.to_dict().items() if name != "num_processes"}
    spec = {
        "model": own,
        "config": settings,
        "seed": request.seed,
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": table.hash,
    }
    if is_finished(out, spec):
        return None
    limit = config.max_length or context_limit(model.config)
    counts = _write_rows(out, request.data, table, config, limit)
    if not counts["rows"]:
        raise TrainingError(
            f"no rows to train on, which would leave the model as it is: {dict(counts)}. Look at the weights, or raise "
            "training.max_length."
        )
    write_json(out / SPEC, spec)
    discard_unfinished(out)
    return spec, dict(counts)


def check_policy(own: str, made_by: str, data: Path, model: str) -> None:
    """Refuse data that another policy sampled than the model to be trained."""
    note = old_note(made_by)
    if own != model_part(made_by):
        raise DatasetError(
            f"{data} was sampled by another policy ({made_by}) than {model!r} ({own}).{note} The weights assume that "
            "the trajectories come from the model that is trained. "
            + ("If they do, say --any_policy." if note else "Train that one, or say --any_policy.")
        )


def is_finished(out: Path, spec: dict[str, Any]) -> bool:
    """Whether ``out`` already holds the result of this very run, its files whole.

    Raises:
        DatasetError: it holds another run's, or the files of the model are gone or changed.
    """
    path = out / SPEC
    if not path.is_file():
        return False
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}). Train into another directory.") from error
    changed = [row for row in differing_keys(old, spec) if not row.startswith(MEMORY)]
    if changed:
        raise DatasetError(
            f"{out} holds the training of another run: {'; '.join(changed)}. "
            "Give another directory, or the settings it was begun with."
        )
    if not (out / MANIFEST).is_file():
        return False
    damage = damaged_files(out)
    if not list(out.glob("*.safetensors")):
        damage = damage or ["no *.safetensors in it"]
    if damage:
        raise DatasetError(
            f"{out} holds a finished training whose model is damaged: {'; '.join(damage)}. Restore the files, or "
            f"delete {out / MANIFEST} and run the same command again: it goes on from the last checkpoint."
        )
    return True


def _write_rows(out: Path, data: Path, table: WeightTable, config: TrainingConfig, limit: int | None) -> Counter[str]:
    """Write the training rows, and those to measure on; returns what was counted."""
    counts: Counter[str] = Counter()
    held = config.held_out
    batches = stream_columns(data, ["group_id"]) if config.kl_limit or held else iter(())
    groups = {name for batch in batches for name in batch.column(0).unique().to_pylist()}
    for_kl = set_aside(groups, PROMPTS) if config.kl_limit else set()
    for_loss = set_aside(groups - for_kl, MOST, held.share) if held else set()
    aside = {KL_ROWS: HeldOut(for_kl, limit), HELD_OUT: HeldOut(for_loss, limit, table)}
    trained = aside[HELD_OUT].set_aside_from(aside[KL_ROWS].set_aside_from(stream_trajectories(data)))
    examples = build_examples(
        trained, table, counts, normalization=config.normalization, max_length=limit, loss=config.objective
    )
    write_rows(out / ROWS, examples)
    unknown = len(table) - count_trajectories(data) + counts["skipped_unweighted"]
    if unknown > 0 and not groups:
        tell(f"training: {unknown} of {len(table)} weights are of conversations that {data} lacks.", error=True)
    for name, setting in ((KL_ROWS, "kl_limit"), (HELD_OUT, "hold_out")):
        if getattr(config, setting):
            rows = aside[name].rows()
            if not rows:
                raise TrainingError(
                    f"training.{setting}: no conversation of the prompts set aside can be measured on: too long, or "
                    "without weight. Set more aside, or 0."
                )
            write_rows(out / name, rows)
    return counts
