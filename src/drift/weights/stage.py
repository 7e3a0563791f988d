"""The weighing stage: outcomes in, ``weights.parquet`` out: outcome → return → scheme → turns → steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drift.checksums import sum_of
from drift.dataset.outcomes import Outcomes, read_outcomes
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import count_trajectories
from drift.errors import ConfigError
from drift.manifest import MANIFEST, read_manifest, replacing, write_manifest
from drift.registry import link
from drift.weights.config import Chain, WeightConfig
from drift.weights.diagnostics import diagnose, mixed_shares
from drift.weights.groups import Floats
from drift.weights.returns import trajectory_return
from drift.weights.steps import REGISTRY as STEPS
from drift.weights.table import FILE, KIND, weights_hash, write_table
from drift.weights.temperature import temperature_of
from drift.weights.turns import Conversations

# Squares of what is larger could not be added up.
LARGEST = 1e100


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a chain gave.

    Attributes:
        returns_N, weights_T: R of each conversation, and what each reply weighs, conversation after conversation.
        chain, report: every link as it ran, and the diagnostics of the final weights, for the manifest.
    """

    returns_N: Floats
    weights_T: Floats
    chain: dict[str, Any]
    report: dict[str, Any]


def weigh_dataset(data: Path, config: WeightConfig, out: Path) -> dict[str, Any]:
    """Weigh the data set in ``data`` and write weights and manifest to ``out``; returns the manifest.

    Raises:
        DatasetError: ``data`` is missing, empty, damaged or incomplete, or every trajectory in it failed.
        ConfigError: the settings don't fit the data.
        StorageError: the disk refuses.
    """
    start = time.monotonic()
    manifest, chain = read_manifest(data, TRAJECTORIES), config.chain
    outcomes = read_outcomes(data, group_by=config.group_by, spoken=chain.asks_what_was_said())
    ids, groups, turns_N = outcomes.ids, outcomes.groups, outcomes.turns_N
    conversations = _conversations(outcomes, config, first=int(manifest["spec"].get("first", 0)))
    # What the returns were made of is not needed again, and there may be very much of it.
    del outcomes
    pa.default_memory_pool().release_unused()
    weights = _run(conversations, config)
    start_N = np.concatenate([[0], np.cumsum(turns_N, dtype=np.int64)])
    with replacing(out / FILE) as temporary:
        write_table(temporary, ids, groups, weights.returns_N, start_N, weights.weights_T)
        file_sum = sum_of(temporary)
        # Until the manifest of the new weights is there, there is none: one never describes others' weights.
        (out / MANIFEST).unlink(missing_ok=True)
    content = {
        "config": config.to_dict(),
        "chain": weights.chain,
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": weights_hash(ids, start_N, weights.weights_T),
        "file_sum": file_sum,
        "excluded": {"failed": count_trajectories(data) - len(ids)},
        "diagnostics": weights.report,
        "cost": {"seconds": round(time.monotonic() - start, 3)},
    }
    write_manifest(out, KIND, content)
    return read_manifest(out, KIND)


def compute_weights(outcomes: Outcomes, config: WeightConfig, *, first: int = 0) -> Weights:
    """The weights of conversations in memory, in order; with adaptive sampling ``first`` samples of a task came first.

    Raises:
        ConfigError: a grouped scheme and no prompt with two conversations, or all weights 0; or a scheme or step that
            gives what are no weights.
    """
    return _run(_conversations(outcomes, config, first=first), config)


def _conversations(outcomes: Outcomes, config: WeightConfig, *, first: int) -> Conversations:
    """What a chain can look at, returns among it."""
    config.check_adaptive(first)
    chain, index_N = config.chain, outcomes.group_index()
    scheme, asked = chain.scheme, chain.asked
    no_mistakes = chain.turns.name in ("terminal", "first", "all") and "rejected_T" not in asked
    seen = outcomes.first_turn() if scheme.first_turn else outcomes
    shaping = {"gamma": chain.gamma, "repetition": chain.repetition, "format_failure": config.format_failure}
    returns_N = trajectory_return(seen, outcome=config.outcome, repetition_over=config.repetition_over, **shaping)
    if scheme.grouped and np.bincount(index_N).max() < 2:
        raise ConfigError(
            f"scheme {scheme.name!r} compares conversations of one prompt, and no prompt has more than one. "
            "Sample at least two per task (--samples 16 is published), or use sft, rft, refit or rwr."
        )
    at = int(np.abs(returns_N).argmax())
    if not abs(returns_N[at]) <= LARGEST:
        raise ConfigError(
            f"the return of trajectory {str(outcomes.ids[at])!r} is {returns_N[at]:g}, expected at most {LARGEST:g} in "
            "size. Look at its rewards, or scale them."
        )
    return Conversations(
        group_N=index_N,
        returns_N=returns_N,
        success_N=seen.success_N,
        turns_N=outcomes.turns_N,
        first_wrong_N=outcomes.first_graded_N & ~outcomes.first_success_N,
        stopped_N=outcomes.success_N,
        rejected_T=None if no_mistakes else outcomes.rejected_T,
        reward_N=seen.reward_N if "reward_N" in asked else None,
        sample_N=outcomes.sample_N if first or "sample_N" in asked else None,
        reply_T=outcomes.reply_T,
        feedback_T=outcomes.feedback_T,
        partitioned=scheme.partitioned,
        first=first,
    )


def _run(data: Conversations, config: WeightConfig) -> Weights:
    """Scheme, turns and steps."""
    chain = config.chain
    settings, found = dict(chain.settings), {}
    if settings.get("beta") == "auto":
        value, share = temperature_of(data.returns_N, data.group_N, data.success_N, config.ess_target or "success")
        found = {"beta": {"value": value if np.isfinite(value) else None, "effective_share": share}}
        # An array may hold the limits 0 and ∞, which a setting may not.
        settings["beta"] = np.full(len(data.returns_N), value)
    data = replace(data, beta=settings.get("beta"))
    weights_T, taken = _weights(data, chain, settings)
    report = {"outcome": config.outcome, **_diagnose(weights_T, data), "steps": taken, **found}
    if not np.any(weights_T):
        raise ConfigError(
            f"scheme {chain.scheme.name!r} leaves every weight 0: {report['groups_without_success']} of "
            f"{report['groups']} prompts have no success, {report['groups_with_equal_returns']} have equal returns. "
            "Sample more, or leave out what drops prompts."
        )
    record = {
        "outcome": config.outcome,
        "gamma": chain.gamma,
        "repetition": chain.repetition,
        "repetition_over": config.repetition_over,
        "format_failure": config.format_failure,
        "scheme": chain.scheme.name,
        "settings": {**settings, **{name: value["value"] for name, value in found.items()}},
        "turns": chain.turns.record,
        "steps": [each["step"] for each in taken],
        "group_by": config.group_by,
    }
    return Weights(returns_N=data.returns_N, weights_T=weights_T, chain=record, report=report)


def _weights(data: Conversations, chain: Chain, settings: Mapping[str, Any]) -> tuple[Floats, list[dict[str, Any]]]:
    """What each reply weighs in the end; and of each step what it took: conversations, and its share of ``Σ|w|``."""
    named = {name: getattr(data, name, None) for name in chain.asked}
    for name in (name for name, values in named.items() if values is None):
        known = ", ".join(key for key in vars(data) if key.endswith(("_N", "_T")))
        raise ConfigError(f"scheme {chain.scheme.name!r} asks for {name}, which there is not. Known: {known}.")
    weights = chain.scheme.function(data.returns_N, data.group_N, **named, **settings)
    weights = chain.turns(_checked(weights, len(data.returns_N), chain.scheme.name), data)
    weights = _checked(weights, int(data.turns_N.sum()), chain.turns.name)
    links, taken = list(chain.steps), []
    if data.first and "undo_adaptive" not in [each.name for each in links]:
        links.insert(0, link("undo_adaptive", STEPS, "weights.steps"))
    mass_N = data.mass(weights)
    for each in links:
        before, held_N = float(mass_N.sum()), mass_N > 0
        # What there may be very much of is not held while a step works.
        del mass_N
        weights = _checked(each(weights, data), len(weights), each.name)
        mass_N = data.mass(weights)
        share = 1 - float(mass_N.sum()) / before if before > 0 else 0.0
        taken += [{"step": each.record, "conversations": int((held_N & (mass_N == 0)).sum()), "share": share}]
    return weights, taken


def _diagnose(weights_T: Floats, data: Conversations) -> Mapping[str, Any]:
    up_N, down_N = np.maximum.reduceat(weights_T, data.start_N), np.minimum.reduceat(weights_T, data.start_N)
    largest_N = np.where(up_N >= -down_N, up_N, down_N)
    fair_N = data.first_N if data.first else np.ones(len(largest_N), bool)
    report = diagnose(largest_N, data.returns_N, data.group_N, data.success_N)
    # Only samples that are there whatever the outcomes were tell what share of prompts is mixed.
    return {**report, "mixed_by_samples": mixed_shares(data.success_N[fair_N], data.group_N[fair_N])}


def _checked(weights: Any, count: int, name: str) -> Floats:
    """``weights`` as ``(count,)`` floats of a sound size; raises ``ConfigError`` where the function gave others."""
    array: Floats = np.asarray(weights, float)
    if array.shape != (count,) or not (array.min() >= -LARGEST and array.max() <= LARGEST):
        raise ConfigError(
            f"{name!r} gave weights of shape {array.shape}, {int((~np.isfinite(array)).sum())} of them not finite; "
            f"expected {(count,)} numbers of at most {LARGEST:g} in size. Correct it, or its settings."
        )
    return array
