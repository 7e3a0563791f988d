"""The weighing stage: outcome → return → scheme → turns → steps → ``weights.parquet``, and what weights will do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from drift.checksums import sum_of
from drift.dataset.lock import DirectoryLock
from drift.dataset.outcomes import Outcomes, giving_memory_back, outcome_values, read_outcomes
from drift.dataset.rewards import with_rewards
from drift.dataset.store import KIND as TRAJECTORIES
from drift.errors import ConfigError
from drift.files import replacing
from drift.manifest import MANIFEST, check_out, read_manifest, write_manifest
from drift.registry import link, plain
from drift.weights.auto import settled, temperature_of
from drift.weights.config import Chain, WeightConfig
from drift.weights.groups import Floats, group_max, group_min
from drift.weights.returns import baseline_values, trajectory_return
from drift.weights.steps import REGISTRY as STEPS
from drift.weights.table import FILE, KIND, weights_hash, write_table
from drift.weights.turns import Conversations

# Squares of what is larger could not be added up.
LARGEST = 1e100


class Weights(NamedTuple):
    """What a chain gave: R of each conversation, what each reply weighs, every link as it ran, and the diagnostics."""

    returns_N: Floats
    weights_T: Floats
    chain: dict[str, Any]
    report: dict[str, Any]


@giving_memory_back()
def weigh_dataset(data: Path, config: WeightConfig, out: Path, *, rewards: Path | None = None) -> dict[str, Any]:
    """Weigh the data set in ``data`` and write weights and manifest to ``out``; returns the manifest.

    With ``rewards`` (see ``with_rewards``) these are what counts, unless ``config`` has another outcome.

    Raises:
        DatasetError: ``data`` is missing, empty, damaged, unfinished, or all of it failed; or ``out`` is another thing.
        ConfigError: the settings don't fit the data.
        StorageError: the disk refuses.
    """
    start = time.monotonic()
    check_out(out, KIND)
    manifest = read_manifest(data, TRAJECTORIES)
    if rewards is not None:
        if config.chain.turns.name == "own" or config.chain.scheme.first_turn:
            raise ConfigError(f"rewards: {rewards} is of conversations; here replies are weighed alone. Leave it out.")
        config = replace(config, outcome=config.outcome or "reward")
    outcomes, content = _read(data, config, rewards, manifest)
    final, auto = settled(config, outcomes, logged="import" in manifest["spec"])
    if final.baseline == "fitted" and outcomes.words is None:
        # What was read without words is not held beside what is read with them.
        del outcomes
        outcomes, content = _read(data, final, rewards, manifest)
    outcomes = labelled(outcomes, final)
    ids, groups = outcomes.ids, outcomes.groups
    start_N = np.concatenate([[0], np.cumsum(outcomes.turns_N, dtype=np.int64)])
    conversations = _conversations(outcomes, final, first=int(manifest["spec"].get("first", 0)))
    # What is not needed again is given back, here and below: there may be very much of it.
    del outcomes
    pa.default_memory_pool().release_unused()
    weights = _run(conversations, final)
    del conversations
    pa.default_memory_pool().release_unused()
    # Where each reply was weighed alone, the return of a conversation is their sum.
    alone = len(weights.returns_N) > len(ids)
    returns_N = np.add.reduceat(weights.returns_N, start_N[:-1]) if alone else weights.returns_N
    unlabelled = manifest["counts"]["trajectories"] - content["excluded"]["failed"] - len(ids)
    content["excluded"] |= {"unlabelled": unlabelled} if unlabelled else {}
    content |= {
        "config": config.to_dict(),
        "chain": weights.chain,
        "weights_hash": weights_hash(ids, start_N, weights.weights_T),
        "automatic": [name for name in ("outcome", "baseline") if getattr(config, name) is None],
        **({"auto": auto} if auto else {}),
        "diagnostics": weights.report,
    }
    with DirectoryLock(out):
        with replacing(out / FILE) as temporary:
            write_table(temporary, ids, groups, returns_N, start_N, weights.weights_T)
            content["file_sum"] = sum_of(temporary)
            # Until the manifest of the new weights is there, there is none: one never describes others' weights.
            (out / MANIFEST).unlink(missing_ok=True)
        content["cost"] = {"seconds": round(time.monotonic() - start, 3)}
        write_manifest(out, KIND, content, sources={"data": data} | ({"rewards": rewards} if rewards else {}))
        return read_manifest(out, KIND)


def _read(data: Path, config: WeightConfig, rewards: Path | None, manifest: Any) -> tuple[Outcomes, dict[str, Any]]:
    asked, content = config.asked(), manifest["dataset_hash"]
    outcomes = read_outcomes(data, **asked)
    told = {"dataset_hash": content, "excluded": {"failed": manifest["counts"]["trajectories"] - len(outcomes.ids)}}
    if rewards is not None:
        outcomes, told["rewards"] = with_rewards(outcomes, rewards, content)
    return outcomes, told


def compute_weights(outcomes: Outcomes, config: WeightConfig, *, first: int = 0) -> Weights:
    """The weights of conversations in memory; of adaptive sampling ``first`` of a task came first.

    Raises ``ConfigError`` where the settings don't fit them, or a scheme or step gives what are no weights.
    """
    final, _ = settled(config, outcomes, logged=outcomes.words is not None)
    return _run(_conversations(labelled(outcomes, final), final, first=first), final)


def labelled(outcomes: Outcomes, config: WeightConfig) -> Outcomes:
    """The conversations of which what the chain asks is known; raises ``ConfigError`` where there are none."""
    chain, outcome = config.chain, config.outcome or "success"
    seen = outcomes.first_turn() if chain.scheme.first_turn else outcomes
    # What is no number is refused with the returns, and not taken for unknown.
    known_N = ~np.isnan(outcome_values(seen, outcome)) | np.isnan(seen.reward_N)
    steps = {"drop_unsolved", "shrink_unsolved"} & {each.name for each in chain.steps}
    if ("success_N" in chain.asked or steps or config.beta == "auto") and "above" not in outcome:
        known_N &= seen.known_N
    if not known_N.any():
        raise ConfigError(
            f"no conversation says whether it succeeded, or has a value of what counts ({outcome}), and scheme "
            f"{chain.scheme.name!r} with its steps asks for it. Say what counts as a success, with "
            "outcome: {reward: 1, above: 3} say, or use swift, refit, awr or rwr."
        )
    return outcomes if known_N.all() else outcomes.kept(known_N)


def _conversations(outcomes: Outcomes, config: WeightConfig, *, first: int) -> Conversations:
    """What a chain can look at, returns among it."""
    config.check_adaptive(first)
    chain, outcome, scheme = config.chain, config.outcome or "success", config.chain.scheme
    if chain.turns.name == "own":
        outcomes = outcomes.each_reply(**chain.turns.settings)
    seen, index_N = outcomes.first_turn() if scheme.first_turn else outcomes, outcomes.group_index()
    shaping = {"gamma": chain.gamma, "repetition": chain.repetition, "format_failure": config.format_failure}
    returns_N = trajectory_return(seen, outcome=outcome, repetition_over=config.repetition_over, **shaping)
    within = config.baseline == "task"
    if scheme.grouped and within and np.bincount(index_N).max() < 2:
        other = "give baseline: fitted, " if scheme.centred else ""
        raise ConfigError(
            f"scheme {scheme.name!r} compares conversations of one prompt, and no prompt has more than one. "
            f"Sample at least two per task (--samples 16 is published), {other}or use sft, rft, refit or rwr."
        )
    at = int(np.abs(returns_N).argmax())
    if not abs(returns_N[at]) <= LARGEST:
        raise ConfigError(
            f"the return of trajectory {str(outcomes.ids[at])!r} is {returns_N[at]:g}, expected at most {LARGEST:g} in "
            "size. Look at its rewards, or scale them."
        )
    # What nobody asks for is not held.
    no_mistakes = chain.turns.name in ("terminal", "first", "all") and "rejected_T" not in chain.asked
    baseline = config.column or str(config.baseline)
    return Conversations(
        **{name: getattr(outcomes, name) for name in ("turns_N", "reply_T", "feedback_T", "loss_weight_T")},
        group_N=index_N,
        returns_N=returns_N,
        baseline_N=None if within else baseline_values(baseline, returns_N, index_N, outcomes),
        success_N=outcome_values(seen, outcome) > 0 if "above" in outcome else seen.success_N,
        first_wrong_N=outcomes.first_graded_N & ~outcomes.first_success_N,
        stopped_N=outcomes.success_N,
        rejected_T=None if no_mistakes else outcomes.rejected_T,
        reward_N=seen.reward_N if "reward_N" in chain.asked else None,
        sample_N=outcomes.sample_N if first or "sample_N" in chain.asked else None,
        opening_N=None if outcomes.openings is None else np.asarray(outcomes.openings),
        partitioned=scheme.partitioned and within,
        first=first,
    )


def _run(data: Conversations, config: WeightConfig) -> Weights:
    """Scheme, turns and steps, and how that went."""
    chain, settings, found = config.chain, dict(config.chain.settings), {}
    beta = settings.get("beta")
    if beta == "auto":
        beta, share = temperature_of(data.advantage_N, data.pool_N, data.success_N)
        settings["beta"] = beta
        found = {"beta": {"value": beta if np.isfinite(beta) else None, "effective_share": share}}
    data = replace(data, beta=beta)
    weights_T, taken = _weights(data, chain, settings)
    pa.default_memory_pool().release_unused()
    told = {"outcome": plain(config.outcome), "baseline": plain(config.baseline)}
    report = {**told, **diagnose(weights_T, data), "steps": taken, **found}
    if not np.any(weights_T):
        raise ConfigError(
            f"scheme {chain.scheme.name!r} leaves every weight 0: {report['groups_without_success']} of "
            f"{report['groups']} prompts have no success, {report['groups_with_equal_returns']} have equal returns. "
            "Sample more, or leave out what drops prompts."
        )
    settings |= {name: value["value"] for name, value in found.items()}
    record = told | {"gamma": chain.gamma, "repetition": chain.repetition}
    record |= {name: getattr(config, name) for name in ("repetition_over", "format_failure")}
    record |= {"scheme": chain.scheme.name, "settings": settings, "turns": chain.turns.record}
    record |= {"steps": [each["step"] for each in taken]}
    return Weights(returns_N=data.returns_N, weights_T=weights_T, chain=record, report=report)


def _weights(data: Conversations, chain: Chain, settings: Mapping[str, Any]) -> tuple[Floats, list[dict[str, Any]]]:
    """What each reply weighs in the end; and of each step what it took: conversations, and its share of ``Σ|w|``."""
    named = {name: getattr(data, name, None) for name in chain.asked}
    for name in (name for name, values in named.items() if values is None):
        known = ", ".join(key for key in vars(data) if key.endswith(("_N", "_T")))
        raise ConfigError(f"scheme {chain.scheme.name!r} asks for {name}, which there is not. Known: {known}.")
    weights = chain.scheme.function(data.advantage_N, data.pool_N, **named, **settings)
    weights = chain.turns(_checked(weights, len(data.returns_N), chain.scheme.name), data)
    weights = _checked(weights, int(data.turns_N.sum()), chain.turns.name)
    if data.loss_weight_T is not None:
        weights = _checked(weights * data.loss_weight_T, len(weights), "loss_weight of the log")
    links, taken = list(chain.steps), []
    if data.first and "undo_adaptive" not in [each.name for each in links]:
        links.insert(0, link("undo_adaptive", STEPS, "weights.steps"))
    mass_N = data.mass(weights)
    for each in links:
        before, held_N = float(mass_N.sum()), mass_N > 0
        del mass_N
        weights = _checked(each(weights, data), len(weights), each.name)
        mass_N = data.mass(weights)
        share = 1 - float(mass_N.sum()) / before if before > 0 else 0.0
        taken += [{"step": each.record, "conversations": int((held_N & (mass_N == 0)).sum()), "share": share}]
    return weights, taken


def _checked(weights: Any, count: int, name: str) -> Floats:
    """``weights`` as ``(count,)`` floats of a sound size; raises ``ConfigError`` where the function gave others."""
    array: Floats = np.asarray(weights, float)
    if array.shape != (count,) or not (array.min() >= -LARGEST and array.max() <= LARGEST):
        raise ConfigError(
            f"{name!r} gave weights of shape {array.shape}, {int((~np.isfinite(array)).sum())} of them not finite; "
            f"expected {(count,)} numbers of at most {LARGEST:g} in size. Correct it, or its settings."
        )
    return array


def diagnose(weights_T: Floats, data: Conversations) -> dict[str, Any]:
    """Everything worth knowing about weights before training on them; docs/artifacts.md says what each field is."""
    # Of a conversation that of its reply with the largest. In place: there may be very many.
    weights_N, down_N = np.maximum.reduceat(weights_T, data.start_N), np.minimum.reduceat(weights_T, data.start_N)
    np.copyto(weights_N, down_N, where=-down_N > weights_N)
    del down_N
    returns_N, success_N, index_N = data.returns_N, data.success_N.astype(float), data.group_N
    best_G = group_max(success_N, index_N)
    found = {
        "trajectories": len(weights_N),
        "groups": len(best_G),
        "successes": int(success_N.sum()),
        "ess": effective_sample_size(weights_N),
        "zero_weights": int((weights_N == 0).sum()),
        "negative_weights": int((weights_N < 0).sum()),
        "mixed_share": float((best_G > group_min(success_N, index_N)).mean()),
        "groups_without_success": int((best_G == 0).sum()),
        "groups_with_equal_returns": int((group_max(returns_N, index_N) == group_min(returns_N, index_N)).sum()),
        "groups_of_one": int((np.bincount(index_N) == 1).sum()),
        "histogram": histogram(weights_N),
        "return_histogram": histogram(returns_N),
    }
    if data.baseline_N is not None:
        spread = float(np.var(returns_N))
        found["explained"] = 1 - float(np.var(data.advantage_N)) / spread if spread > 0 else 0.0
    return found


def effective_sample_size(weights_N: ArrayLike) -> float:
    """Kish's ``(Σ|w|)² / Σw²``: how many equally weighted conversations these are worth; 0 if all weights are 0."""
    weights = np.abs(np.asarray(weights_N, float))
    total = float((weights**2).sum())
    return float(weights.sum() ** 2 / total) if total > 0 else 0.0


def histogram(values_N: Floats) -> dict[str, Any]:
    """Edges and counts of 20 equal bins between the extremes of all values."""
    low, high = float(values_N.min()), float(values_N.max())
    # Values that differ by rounding alone lie in one bin, in the middle.
    same = 1e-9 * max(abs(low), abs(high))
    span = (low, high) if high - low > same else (low - max(0.5, same), high + max(0.5, same))
    counts, edges = np.histogram(values_N, bins=20, range=span)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
