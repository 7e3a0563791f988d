"""DPO and KTO through TRL, from a directory of rollouts to an ordinary model folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from drift.baselines.collators import SampledLabels, SampledPairs
from drift.baselines.config import PreferenceConfig
from drift.baselines.shared import METRICS, Log, check_arguments, quiet, train_and_save, trl_arguments, trl_version
from drift.chat import TemplateChat
from drift.dataset.store import read_checked
from drift.errors import DatasetError, TrainingError
from drift.exports.run import export_dataset
from drift.manifest import read_manifest, write_json, write_manifest
from drift.policies import model_path
from drift.policies.hf import load_model
from drift.policies.stored import context_limit, fingerprint_of
from drift.training.config import KIND, SPEC
from drift.training.distributed import locked
from drift.training.run import check_policy, is_finished

ROWS = "rows.jsonl"


def train_preference(
    data: Path,
    out: Path,
    *,
    model: str,
    config: PreferenceConfig,
    seed: int,
    device: str = "auto",
    any_policy: bool = False,
) -> dict[str, Any]:
    """Train ``model`` with DPO or KTO on the conversations in ``data``; the reference is ``model`` itself.

    DPO's loss of a pair is ``−log σ(β (log π(y⁺)/π_0(y⁺) − log π(y⁻)/π_0(y⁻)))`` (2305.18290, Eq. 7), each
    log-probability a sum over the tokens that the policy sampled. KTO's loss of a conversation is
    ``λ (1 − σ(±(β log π(y)/π_0(y) − z)))``, plus for good ones and minus for bad ones, z the divergence from the
    reference (2402.01306, Eq. 7 and 8).

    Args:
        data: directory of trajectories.
        out: the model folder; one that holds this very training is left as it is.
        model: the model that sampled them: ``default``, a folder or a hub id.
        config: how; KTO if its format is ``kto``, else DPO.
        seed: decides the order of the rows.
        device: where to train.
        any_policy: accept trajectories that another policy than ``model`` sampled.

    Returns:
        The manifest.

    Raises:
        ConfigError: TRL is not installed, or transformers has no such setting.
        DatasetError: the data are missing, damaged or incomplete, give no rows, or belong to another policy.
        TrainingError: no row fits the model, or the loss stopped being finite.
        Interrupted: Ctrl-C.
    """
    library = trl_version()
    check_arguments(config)
    config = config.resolved(model)
    source = read_checked(data)
    with locked(out):
        loaded, tokenizer = load_model(model_path(model), dtype="float32", device=device)
        TemplateChat(tokenizer, source=model)
        own = fingerprint_of(model_path(model))
        if not any_policy:
            check_policy(own, source["spec"].get("policy", ""), data, model)
        spec = {"model": own, "config": config.to_dict(), "seed": seed, "dataset_hash": source["dataset_hash"]}
        if is_finished(out, spec):
            return read_manifest(out, KIND)
        made = export_dataset(data, out / ROWS, config.rows, tokenizer=tokenizer)
        _require_ids(data, made["counts"], config)
        write_json(out / SPEC, spec)
        head = {"spec": spec, "model": model, "objective": "kto" if config.format == "kto" else "dpo", "trl": library}
        reference, _ = load_model(model_path(model), dtype="float32", device=device)
        arguments = trl_arguments(config, out, seed=seed, device=device)
        result = _train(out, loaded, reference, tokenizer, config, arguments, made["counts"])
        write_manifest(out, KIND, {**head, "rendered": made["rendered"], **result}, sources={"data": data})
        return read_manifest(out, KIND)


def _require_ids(data: Path, counts: dict[str, int], config: PreferenceConfig) -> None:
    if config.ids == "sampled" and counts["rows_without_ids"]:
        raise DatasetError(
            f"{data}: {counts['rows_without_ids']} of {counts['rows']} rows have no sampled ids: the policy returned "
            "no token ids, or its chat template rewrites history, so no one row can have several replies. Use the "
            "format dpo-step or dpo-final, tokenize the data with drift import, or set ids to rendered."
        )


def _train(
    out: Path,
    model: Any,
    reference: Any,
    tokenizer: Any,
    config: PreferenceConfig,
    arguments: dict[str, Any],
    counts: dict[str, int],
) -> dict[str, Any]:
    """Train ``model`` on the rows in ``out``; returns what the manifest says of it."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    start = time.monotonic()
    limit = context_limit(model.config)
    sampled = config.ids == "sampled"
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with quiet():
        rows = load_dataset("json", data_files=str(out / ROWS), split="train", cache_dir=str(out / "cache"))
        before = len(rows)
        if sampled and limit:
            rows = rows.filter(lambda row: _longest(row["sampled_ids"]) <= limit)
            if not len(rows):
                raise TrainingError(f"{out / ROWS}: none of {before} rows fits the model's context of {limit} tokens.")
        micro = min(config.micro_batch_size, config.batch_size, len(rows))
        arguments = {
            **arguments,
            "beta": config.beta,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": max(1, config.batch_size // micro),
            "max_steps": config.max_steps or -1,
            "num_train_epochs": config.epochs,
            # Of rendered ids; those that were sampled are not cut.
            "max_length": None if sampled else limit,
            "remove_unused_columns": not sampled,
        }
        shared: dict[str, Any] = {
            "model": model,
            "ref_model": reference,
            "train_dataset": rows,
            "processing_class": tokenizer,
            "callbacks": [Log(out / METRICS, config.format)],
        }
        if config.format == "kto":
            good, bad = balance(counts["good"], counts["bad"], config)
            settings = KTOConfig(**arguments, desirable_weight=good, undesirable_weight=bad)
            trainer = KTOTrainer(args=settings, data_collator=SampledLabels(pad) if sampled else None, **shared)
        else:
            settings = DPOConfig(**arguments)
            trainer = DPOTrainer(args=settings, data_collator=SampledPairs(pad) if sampled else None, **shared)
        train_and_save(trainer, out, tokenizer)
    shutil.rmtree(out / "cache", ignore_errors=True)
    tokens = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
    cost = {"seconds": round(time.monotonic() - start, 3), "tokens_trained": int(tokens[-1]) if tokens else None}
    return {"counts": {**counts, "too_long": before - len(rows)}, "steps": trainer.state.global_step, "cost": cost}


def balance(good: int, bad: int, config: PreferenceConfig) -> tuple[float, float]:
    """Weights of good and bad conversations; what is 0 in ``config`` makes both kinds weigh the same in all.

    The rarer kind is raised, as KTO's authors advise (2402.01306, Eq. 8), and the other kept at 1.
    """
    desirable = max(1.0, round(bad / max(1, good), 2))
    undesirable = max(1.0, round(good / max(1, bad), 2))
    return config.desirable or desirable, config.undesirable or undesirable


def _longest(ids: dict[str, list[int]]) -> int:
    return len(ids["prompt"]) + max(len(ids[name]) for name in ("chosen", "rejected", "completion") if name in ids)
