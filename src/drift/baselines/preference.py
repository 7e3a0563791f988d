"""DPO and KTO through TRL, from a directory of rollouts to an ordinary model folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from drift.baselines.collators import SampledLabels, SampledPairs
from drift.baselines.config import PreferenceConfig
from drift.baselines.shared import METRICS, Log, optimizer_arguments, quiet, stoppable, trl_version
from drift.chat import TemplateChat
from drift.dataset.store import KIND as TRAJECTORIES
from drift.errors import ConfigError, DatasetError, TrainingError
from drift.exports.run import export_dataset
from drift.manifest import read_manifest, write_json, write_manifest
from drift.policies import model_path
from drift.policies.hf import fingerprint, load_model
from drift.training.checkpoints import saving
from drift.training.config import KIND
from drift.training.distributed import locked
from drift.training.run import SPEC, check_policy, is_finished

ROWS = "rows.jsonl"


def train_dpo(
    data: Path,
    out: Path,
    *,
    base: str,
    config: PreferenceConfig,
    seed: int,
    device: str = "auto",
    any_policy: bool = False,
) -> dict[str, Any]:
    """Train ``base`` with DPO on pairs of the conversations in ``data``; the reference is ``base`` itself.

    The loss of a pair is ``−log σ(β (log π(y⁺)/π_0(y⁺) − log π(y⁻)/π_0(y⁻)))`` (2305.18290, Eq. 7), each
    log-probability a sum over the tokens that the policy sampled.

    Args:
        data: directory of trajectories.
        out: the model folder; one that holds this very training is left as it is.
        base: the model that sampled them: ``default``, a folder or a hub id.
        config: how; ``rows.format`` is one of the ``dpo`` ones.
        seed: decides the order of the rows.
        device: where to train.
        any_policy: accept trajectories that another policy than ``base`` sampled.

    Returns:
        The manifest.

    Raises:
        ConfigError: TRL is not installed, or the format is not one of pairs.
        DatasetError: the data are missing, damaged or incomplete, give no rows, or belong to another policy.
        TrainingError: no row fits the model, or the loss stopped being finite.
        Interrupted: Ctrl-C.
    """
    if config.rows.format == "kto":
        raise ConfigError(
            "rows.format: got 'kto', expected dpo, dpo-final or dpo-step. Use train_kto for labelled rows."
        )
    return _train(data, out, base=base, config=config, seed=seed, device=device, any_policy=any_policy)


def train_kto(
    data: Path,
    out: Path,
    *,
    base: str,
    config: PreferenceConfig,
    seed: int,
    device: str = "auto",
    any_policy: bool = False,
) -> dict[str, Any]:
    """Train ``base`` with KTO on labelled conversations in ``data``; arguments and errors are those of ``train_dpo``.

    The loss of a conversation is ``λ (1 − σ(±(β log π(y)/π_0(y) − z)))``, z the divergence from the reference
    (2402.01306, Eq. 7 and 8), plus for good ones and minus for bad ones.
    """
    if config.rows.format != "kto":
        raise ConfigError(f"rows.format: got {config.rows.format!r}, expected kto. Use train_dpo for pairs.")
    return _train(data, out, base=base, config=config, seed=seed, device=device, any_policy=any_policy)


def _train(
    data: Path, out: Path, *, base: str, config: PreferenceConfig, seed: int, device: str, any_policy: bool
) -> dict[str, Any]:
    library = trl_version()
    config = config.resolved()
    source = read_manifest(data, TRAJECTORIES)
    with locked(out):
        model, tokenizer = load_model(model_path(base), dtype="float32", device=device)
        TemplateChat(tokenizer, source=base)
        own = fingerprint(model, tokenizer)
        if not any_policy:
            check_policy(own, source["spec"].get("policy", ""), data, base)
        spec = {"model": own, "config": config.to_dict(), "seed": seed, "dataset_hash": source["dataset_hash"]}
        if is_finished(out, spec):
            return read_manifest(out, KIND)
        made = export_dataset(data, out / ROWS, config.rows, tokenizer=tokenizer)
        if config.ids == "sampled" and made["counts"]["rows_without_ids"]:
            raise DatasetError(
                f"{data}: {made['counts']['rows_without_ids']} of {made['counts']['rows']} rows have no sampled ids: "
                "the policy told none, or its chat template rewrites history, so no one row holds several replies. "
                "Use the format dpo-step or dpo-final, tokenize the data with drift import, or set ids to rendered."
            )
        write_json(out / SPEC, spec)
        start = time.monotonic()
        with quiet():
            trainer, counts = _trainer(out, model, tokenizer, base, config, made["counts"], seed=seed, device=device)
            with stoppable(trainer):
                trainer.train()
        with saving(out):
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out)
            tokenizer.save_pretrained(out)
        for scratch in ("cache", "trl"):
            shutil.rmtree(out / scratch, ignore_errors=True)
        tokens = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
        content = {
            "spec": spec,
            "model": base,
            "objective": "kto" if config.rows.format == "kto" else "dpo",
            "trl": library,
            "counts": {**made["counts"], **counts},
            "rendered": made["rendered"],
            "steps": trainer.state.global_step,
            "cost": {
                "seconds": round(time.monotonic() - start, 3),
                "tokens_trained": int(tokens[-1]) if tokens else None,
            },
        }
        write_manifest(out, KIND, content)
        return read_manifest(out, KIND)


def _trainer(
    out: Path,
    model: Any,
    tokenizer: Any,
    base: str,
    config: PreferenceConfig,
    made: dict[str, int],
    *,
    seed: int,
    device: str,
) -> tuple[Any, dict[str, int]]:
    """TRL's trainer of the rows in ``out``, and what was counted on the way."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    rows = load_dataset("json", data_files=str(out / ROWS), split="train", cache_dir=str(out / "cache"))
    limit = getattr(model.config, "max_position_embeddings", None)
    sampled = config.ids == "sampled"
    before = len(rows)
    if sampled and limit:
        rows = rows.filter(lambda row: _longest(row["sampled_ids"]) <= limit)
        if not len(rows):
            raise TrainingError(f"{out / ROWS}: none of {before} rows fits the model's context of {limit} tokens.")
    micro = min(config.micro_batch_size, config.batch_size, len(rows))
    arguments = {
        **optimizer_arguments(config.optimizer, out, seed=seed, device=device),
        "beta": config.beta,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": max(1, config.batch_size // micro),
        "max_steps": config.max_steps or -1,
        "num_train_epochs": config.epochs,
        # Of rendered ids; those that were sampled are not cut.
        "max_length": None if sampled else limit,
        "remove_unused_columns": not sampled,
    }
    reference, _ = load_model(model_path(base), dtype="float32", device=device)
    shared: dict[str, Any] = {
        "model": model,
        "ref_model": reference,
        "train_dataset": rows,
        "processing_class": tokenizer,
        "callbacks": [Log(out / METRICS, config.rows.format)],
    }
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if config.rows.format == "kto":
        weights = balance(made["good"], made["bad"], config)
        settings = KTOConfig(**arguments, desirable_weight=weights[0], undesirable_weight=weights[1])
        trainer = KTOTrainer(args=settings, data_collator=SampledLabels(pad) if sampled else None, **shared)
    else:
        settings = DPOConfig(**arguments)
        trainer = DPOTrainer(args=settings, data_collator=SampledPairs(pad) if sampled else None, **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer, {"too_long": before - len(rows)}


def balance(good: int, bad: int, config: PreferenceConfig) -> tuple[float, float]:
    """Weights of good and bad conversations; what is 0 in ``config`` makes both kinds weigh the same in all.

    The rarer kind is raised, as KTO's authors advise (2402.01306, Eq. 8), and the other kept at 1.
    """
    desirable = max(1.0, round(bad / max(1, good), 2))
    undesirable = max(1.0, round(good / max(1, bad), 2))
    return config.desirable or desirable, config.undesirable or undesirable


def _longest(ids: dict[str, list[int]]) -> int:
    return len(ids["prompt"]) + max(len(ids[name]) for name in ("chosen", "rejected", "completion") if name in ids)
