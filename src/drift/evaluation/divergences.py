"""How far policies are from the first one, on held-out conversations that each of the two sampled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drift.environments.base import stable_unit
from drift.errors import ConfigError, require
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.estimates import Measured
from drift.evaluation.metrics import Ratio, has_outcome
from drift.policies import kind_of
from drift.policies.base import Sampling
from drift.types import Trajectory

WHERE = "evaluation.kl"


def check_divergence(
    models: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    config: EvaluationConfig,
    sampling: Sampling,
) -> dict[str, str]:
    """Where the model of each policy lies; found wrong before anything is sampled.

    Raises:
        ConfigError: a policy whose logits can't be had, one policy alone, no sampled conversations, or sampled ones
            that are not drawn from the policies' own distribution.
    """
    paths = {}
    for name, model in models.items():
        kind, argument = kind_of(model, settings[name].get("engine"))
        if kind not in ("hf", "vllm") or argument is None or settings[name].get("adapter"):
            adapted = " with an adapter" if settings[name].get("adapter") else ""
            raise ConfigError(
                f"{WHERE}: policy {name!r} is {model!r}{adapted}, whose probabilities over the vocabulary can't be "
                "had. Give model folders or hub ids, or leave the KL out."
            )
        paths[name] = argument
    require(len(models) > 1, WHERE, config.kl, "0 with one policy alone", "It is measured from the first policy.")
    require(
        config.samples >= 1,
        "evaluation.samples",
        config.samples,
        f"at least 1 with {WHERE}, which is of sampled conversations",
    )
    plain = sampling.temperature == 1 and not sampling.truncates
    drawn = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}, min_p "
    drawn += f"{sampling.min_p:g}"
    require(plain, "sampling", drawn, f"temperature 1 and no truncation with {WHERE}: the policies' own distribution")
    return paths


def measure_divergence(
    held: Mapping[str, Sequence[Trajectory]],
    paths: Mapping[str, str],
    config: EvaluationConfig,
    *,
    dtype: str,
    device: str,
) -> tuple[list[Measured], dict[str, Any]]:
    """KL in both directions between the first policy and each other, exact over the vocabulary at every position.

    ``kl_base_tuned`` is KL(base ‖ tuned) on conversations that the base sampled, ``kl_tuned_base`` is KL(tuned ‖ base)
    on the other's, in nats per conversation; ``…_per_token`` divides their sum by that of the sampled tokens. The
    first is large where the base's ways were given up, the second where new ways were found.

    Args:
        held: sampled conversations by policy, the base first.
        paths: where the model of each lies.
        config: how many conversations.
        dtype: see ``load_model``.
        device: see ``load_model``.

    Returns:
        What was measured of each policy but the first, and for the manifest: ``conversations`` and ``seconds``.

    Raises:
        ConfigError: two policies don't share a vocabulary, or returned no token ids.
    """
    from drift.policies.hf import load_model

    start, (base, *others) = time.monotonic(), held
    model, tokenizer = load_model(paths[base], dtype=dtype, device=device)
    chosen = {name: _choose(found, config.kl, name) for name, found in held.items()}
    measured = []
    for name in others:
        other, its_tokenizer = load_model(paths[name], dtype=dtype, device=device)
        sizes = [one.config.get_text_config().vocab_size for one in (model, other)]
        if tokenizer.get_vocab() != its_tokenizer.get_vocab() or sizes[0] != sizes[1]:
            raise ConfigError(f"{WHERE}: {base!r} and {name!r} have different vocabularies. Leave the KL out.")
        ratios = {
            **_ratios("kl_base_tuned", model, other, chosen[base]),
            **_ratios("kl_tuned_base", other, model, chosen[name]),
        }
        count = len(chosen[name])
        measured.append(Measured(policy=name, ratios=ratios, trajectories=count, excluded=0))
    facts = {"conversations": {name: len(found) for name, found in chosen.items()}}
    return measured, {**facts, "seconds": round(time.monotonic() - start, 3)}


def _choose(found: Sequence[Trajectory], count: int, name: str) -> list[Trajectory]:
    """At most ``count`` conversations, of as many tasks as there are."""
    usable = [t for t in found if has_outcome(t)]
    if any(t.text_only for t in usable):
        raise ConfigError(f"{WHERE}: policy {name!r} returned no token ids. Leave the KL out.")
    ordered = sorted(usable, key=lambda t: (t.sample, stable_unit("kl", t.task_id)))
    return sorted(ordered[:count], key=lambda t: (t.task_id, t.sample))


def _ratios(metric: str, first: Any, second: Any, conversations: Sequence[Trajectory]) -> dict[str, Ratio]:
    from drift.training.divergence import exact_kl
    from drift.training.examples import rows_of

    rows = [row for t in conversations for row in rows_of(t, [1.0] * len(t.turns), normalization="sum")]
    kl_R, tokens_R = exact_kl(first, second, rows)
    prompts = {task: at for at, task in enumerate(sorted({t.task_id for t in conversations}))}
    task_of = {t.id: t.task_id for t in conversations}
    index_R = np.array([prompts[task_of[row.trajectory_id]] for row in rows], np.int64)
    kl_P, tokens_P = (np.bincount(index_R, weights=of, minlength=len(prompts)).astype(float) for of in (kl_R, tokens_R))
    held_P = np.bincount([prompts[t.task_id] for t in conversations], minlength=len(prompts)).astype(float)
    return {
        metric: Ratio(numerator_P=kl_P, denominator_P=held_P),
        f"{metric}_per_token": Ratio(numerator_P=kl_P, denominator_P=tokens_P),
    }
