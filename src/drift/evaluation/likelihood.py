"""Measured without an environment: how likely models find replies of a log whose prompts no training has seen.

What it can't say: these are replies of whoever was logged. That a model finds good ones likelier and bad ones less
likely shows that it learned from the ratings, not that its own replies are better; for that somebody must read or judge
those.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.checksums import sum_of
from drift.dataset.lock import DirectoryLock
from drift.dataset.outcomes import Outcomes, outcome_values, read_outcomes
from drift.dataset.store import stream_trajectories
from drift.errors import ConfigError, require
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.estimates import Measured, estimate_measured
from drift.evaluation.metrics import Ratio
from drift.evaluation.run import tuned_folders
from drift.evaluation.side_by_side import FILE as REPLIES
from drift.evaluation.side_by_side import OPENINGS, opening_of, replies_of, write_side_by_side
from drift.manifest import check_out, read_manifest, write_json, write_manifest
from drift.policies import kind_of, model_name
from drift.policies.base import Sampling
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import compute_weights, labelled
from drift.weights.steps import is_held_out
from drift.weights.table import KIND as WEIGHTS

KIND, ESTIMATES, MODE = "likelihood", "estimates.json", "held_out"
Floats = NDArray[np.float64]


class NothingHeldOut(ConfigError):
    """No prompt fell into the share that was to be held out."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Conversations of prompts that were held out, and what each reply would weigh if it were trained.

    Attributes:
        trajectories: N of them.
        prompt_N: ``(N,)`` the prompt of each, 0…P−1, near-duplicates alike.
        good_N: ``(N,)`` whether what counts of it is above the mean of all.
        weights: by id, of its replies.
    """

    trajectories: Sequence[Trajectory]
    prompt_N: NDArray[np.int64]
    good_N: NDArray[np.bool_]
    weights: Mapping[str, Floats]


def evaluate_log(
    data: Path,
    weights: Path,
    models: Mapping[str, Any],
    out: Path,
    *,
    config: EvaluationConfig,
    sampling: Sampling,
    dtype: str,
    device: str,
) -> None:
    """Measure the negative log-likelihood of held-out replies under each model, in nats per token.

    ``nll`` of all of them, ``nll_good`` and ``nll_bad`` of conversations of which what counts is above the mean, and
    not, and ``nll_weighted``, where a reply counts by its weight (nats times weights over tokens times their absolute
    values, so that it may be negative); with intervals over prompts, and paired differences from the first model.
    ``replies.jsonl`` has what each model says to some of the held-out openings, side by side; with a judge,
    ``preferred`` is how often it finds a model's reply better than another's.

    Args:
        data: directory of trajectories.
        weights: of them, made with the step ``hold_out``.
        models: model folders or hub ids by name, checkpoints too.
        out: directory of ``estimates.json``, ``replies.jsonl`` and a manifest.
        config: how many openings are replied to (``tasks``, 20 unless given), and the judge of the replies.
        sampling: the longest of these replies, and what ends them; they are greedy.
        dtype: see ``load_model``.
        device: see ``load_model``.

    Raises:
        ConfigError: no models, one that can't be loaded, or weights made without ``hold_out``.
        DatasetError: ``out`` holds something else.
        NothingHeldOut: there were too few prompts.
    """
    require(bool(models), "models", dict(models), "at least one model by name, like base=default")
    check_out(out, KIND)
    paths = {name: _path(name, model) for name, model in models.items()}
    held, manifest, start = read_held_out(data, weights), read_manifest(weights, WEIGHTS), time.monotonic()
    # One conversation for each held-out prompt.
    _, first = np.unique(held.prompt_N, return_index=True)
    shown = [held.trajectories[int(at)] for at in first[: config.tasks or OPENINGS]]
    ratios, replies = {}, {}
    with DirectoryLock(out):
        for name, path in paths.items():
            settings = {"dtype": dtype, "device": device}
            ratios[name] = _likelihoods(held, path, **settings)
            replies[name] = replies_of(path, [opening_of(each) for each in shown], sampling, settings)
        preferred, compared = write_side_by_side(out / REPLIES, shown, replies, config.judge)
        for name, ratio in preferred.items():
            ratios[name]["preferred"] = ratio
        count = len(held.trajectories)
        measured = [Measured(policy=name, ratios=of, trajectories=count, excluded=0) for name, of in ratios.items()]
        estimates = estimate_measured(measured, mode=MODE, baseline=next(iter(models)))
        write_json(out / ESTIMATES, [asdict(row) for row in estimates])
        content = {
            "policies": {name: model_name(model) for name, model in models.items()},
            "dataset_hash": manifest["dataset_hash"],
            "weights_hash": manifest["weights_hash"],
            "conversations": len(held.trajectories),
            "good": int(held.good_N.sum()),
            "prompts": int(held.prompt_N.max()) + 1,
            "replies": compared,
            "estimates_sum": sum_of(out / ESTIMATES),
            "cost": {"seconds": round(time.monotonic() - start, 3)},
        }
        write_manifest(out, KIND, content, sources={"data": data, "weights": weights, **tuned_folders(models)})


def _likelihoods(held: HeldOut, path: str, *, dtype: str, device: str) -> dict[str, Ratio]:
    """Nats of the held-out replies under the model in ``path``, by metric."""
    from drift.policies.hf import load_model
    from drift.training.divergence import sampled_logprobs
    from drift.training.examples import rows_of

    lengths = [[len(turn.completion.token_ids) for turn in t.turns] for t in held.trajectories]
    rows = [rows_of(t, [1.0] * len(t.turns), normalization="sum") for t in held.trajectories]
    model, _ = load_model(path, dtype=dtype, device=device)
    flat = iter(sampled_logprobs(model, [row for each in rows for row in each]))
    logprobs = [np.concatenate([next(flat) for _ in each]) for each in rows]
    nll = [_by_reply(logprob_T, n) for logprob_T, n in zip(logprobs, lengths, strict=True)]
    return _ratios(held, nll, lengths)


def _path(name: str, model: Any) -> str:
    kind, argument = kind_of(model)
    sound = kind == "hf" and argument is not None
    require(sound, f"models.{name}", model_name(model), "a model folder or hub id, whose probabilities can be had")
    return str(argument)


def _by_reply(logprob_T: Floats, lengths: Sequence[int]) -> Floats:
    """Nats of each reply of a conversation, whose tokens lie one after the other."""
    return np.array([-part.sum() for part in np.split(logprob_T, np.cumsum(lengths)[:-1])])


def read_held_out(data: Path, weights: Path) -> HeldOut:
    """The conversations that the weights hold out, weighed as if they were not; raises ``ConfigError`` for none."""
    manifest = read_manifest(weights, WEIGHTS)
    steps = [step for step in manifest["chain"]["steps"] if isinstance(step, Mapping) and "hold_out" in step]
    if not steps:
        raise ConfigError(
            f"{weights} holds no prompts out, so every reply of {data} was trained. Weigh and train with "
            "steps: [{hold_out: 0.05}]."
        )
    config = WeightConfig(**manifest["config"])
    config = replace(config, outcome=manifest["chain"]["outcome"], baseline=manifest["chain"]["baseline"])
    whole = replace(config, steps=[step for step in config.steps if "hold_out" not in step])
    outcomes = labelled(read_outcomes(data, **config.asked()), config)
    weights_T = compute_weights(outcomes, whole, first=0).weights_T
    end_N = np.cumsum(outcomes.turns_N, dtype=np.int64)
    kept_N = is_held_out(outcomes.openings, steps[0]["hold_out"]["share"])
    values_N = outcome_values(outcomes, config.outcome or "success")
    good_N = values_N > values_N.mean()
    return _held(data, outcomes, kept_N, good_N, np.split(weights_T, end_N[:-1]))


def _held(data: Path, outcomes: Outcomes, kept_N: Any, good_N: Any, weights: Sequence[Floats]) -> HeldOut:
    places = {outcomes.ids[int(at)].as_py(): int(at) for at in np.flatnonzero(kept_N)}
    trajectories = [t for t in stream_trajectories(data) if t.id in places and not t.text_only]
    if not trajectories:
        raise NothingHeldOut(f"{data}: none of its prompts was held out, there are too few. Hold out a larger share.")
    at_N = np.array([places[t.id] for t in trajectories])
    _, prompt_N = np.unique(np.asarray(outcomes.openings)[at_N], return_inverse=True)
    return HeldOut(
        trajectories=trajectories,
        prompt_N=prompt_N.reshape(-1),
        good_N=good_N[at_N],
        weights={t.id: weights[at] for t, at in zip(trajectories, at_N, strict=True)},
    )


def _ratios(held: HeldOut, nll: Sequence[Floats], lengths: Sequence[Sequence[int]]) -> dict[str, Ratio]:
    """Each metric as sums by prompt: nats over tokens, of some conversations or by the weights of replies."""
    nats_N, tokens_N = np.array([each.sum() for each in nll]), np.array([sum(each) for each in lengths], float)
    given = [held.weights[t.id] for t in held.trajectories]
    up_N = np.array([(w * of).sum() for w, of in zip(given, nll, strict=True)])
    down_N = np.array([(np.abs(w) * n).sum() for w, n in zip(given, lengths, strict=True)])
    chosen: dict[str, tuple[Floats, Floats]] = {
        "nll": (nats_N, tokens_N),
        "nll_good": (nats_N * held.good_N, tokens_N * held.good_N),
        "nll_bad": (nats_N * ~held.good_N, tokens_N * ~held.good_N),
        "nll_weighted": (up_N, down_N),
    }
    prompts = int(held.prompt_N.max()) + 1
    return {
        name: Ratio(
            numerator_P=np.bincount(held.prompt_N, weights=top, minlength=prompts).astype(float),
            denominator_P=np.bincount(held.prompt_N, weights=bottom, minlength=prompts).astype(float),
        )
        for name, (top, bottom) in chosen.items()
    }
