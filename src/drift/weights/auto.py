"""What is left to the data: outcome, baseline, β, and with ``scheme: auto`` the weighting, and why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.dataset.outcomes import Outcomes, outcome_values
from drift.weights.config import WeightConfig
from drift.weights.groups import Floats, Indices, group_max, group_mean, group_min, group_sum, index_groups
from drift.weights.schemes import AUTO, exact_mean, sft_weights, tilted

# Below so many conversations of most prompts of a log, their words have more to say than the others.
FEW = 4
# Above this share of conversations that were rewarded more than once, rewards are taken to be of replies.
BY_REPLY = 0.1
# From this share of right conversations on, successes alone are taken where rewards are graded: put between two tasks
# that were measured, with 4 and 47 %; it held on a third, with 9 %.
RIGHT = 0.15
# Halvings of an interval of log β: what is left is below 1e-9 for any returns that floats can hold.
HALVINGS = 40
# e^-750 is 0, and 1e9 spans make weights that differ from 1 by less than a float shows; nor has e^709.8 a float.
_COLD, _HOT, _LARGEST, _SMALLEST = 750.0, 1e9, 709.0, float(np.finfo(float).smallest_subnormal)
# What each choice sees in the data, and what was measured of it.
_WHY = {
    "rft": "{mixed:.0%} of the prompts have both: successes alone are trained (rft), {ess:,} of them. Of thirteen "
    "other methods on two tasks none was ahead of that on both, and sampled all were behind on one (docs/results.md).",
    "right": "{right:.0%} of the conversations are right: successes alone are trained (rft), {successes:,} of them. "
    "Where 47 % were, each reply's own reward was some 9 points behind; at 4 and 9 %, 4 and 7 ahead (docs/results.md).",
    "refit": "{by_reply:.0%} of the conversations were rewarded more than once, and few or none are known to be right: "
    "each reply weighs its own reward (refit, own). Where 4 and 9 % were right, that was some 4 and 7 points ahead of "
    "successes alone (docs/results.md).",
    "star_gate": "{mixed:.0%} of the prompts have conversations that differ: the last reply of the best of each is "
    "trained (star_gate). Of weights of whole conversations that did best where it was measured (docs/results.md).",
    "swift": "most prompts have one conversation: each is measured against what its prompt lets one expect (swift, "
    "fitted). On simulated logs that went 47 % of the way to the best policy, drift 47 %, awr 39 % (docs/method.md).",
}


def settled(config: WeightConfig, outcomes: Outcomes, *, logged: bool) -> tuple[WeightConfig, dict[str, Any]]:
    """The configuration with nothing but β left to the data, ``logged`` or sampled, and what ``scheme: auto`` found."""
    found = _choice(config, outcomes) if config.chain.scheme is AUTO else {}
    config = replace(config, **found.get("settings", {}))
    known_N, scheme, index_N = outcomes.known_N, config.chain.scheme, outcomes.group_index()
    # Plain fine-tuning asks for no outcome, and leaves no conversation out for lack of one.
    judged = known_N.all() if scheme.function is sft_weights else known_N.any()
    few = np.median(np.bincount(index_N)[index_N]) < FEW and index_N.max() > 0
    baseline = "fitted" if logged and scheme.centred and few else "task"
    outcome = config.outcome or ("success" if judged else "reward")
    return replace(config, outcome=outcome, baseline=config.baseline or baseline), found


def _choice(config: WeightConfig, outcomes: Outcomes) -> dict[str, Any]:
    """How to weigh these conversations: ``settings``, ``why`` and what was looked at (docs/artifacts.md: ``auto``)."""
    outcome = config.outcome or ("success" if outcomes.known_N.any() else "reward")
    values_N = outcome_values(outcomes, outcome)
    # Where nothing is known, that is said by whoever weighs.
    values_N = np.zeros(len(values_N)) if np.isnan(values_N).all() else values_N
    known_N = ~np.isnan(values_N)
    values_N, index_N = values_N[known_N], index_groups(outcomes.group_index()[known_N])
    distinct, top_G, low_G = np.unique(values_N), group_max(values_N, index_N), group_min(values_N, index_N)
    several, rewards_T = 0.0, outcomes.reply_reward_T
    # A negative reward is nothing that refit could weigh by.
    if rewards_T is not None and rewards_T.min(initial=0.0) >= 0:
        index_T = np.repeat(np.arange(len(outcomes.turns_N)), outcomes.turns_N)
        several = float((np.bincount(index_T, rewards_T > 0) > 1).mean())
    successes = int(outcomes.success_N[outcomes.known_N].sum())
    facts = {
        "values": len(distinct),
        "mixed": float((top_G > low_G).mean()),
        "unsolved": float((top_G == distinct[0]).mean()),
        "samples": float(np.median(np.bincount(index_N))),
        "ess": int((values_N > values_N.mean()).sum()),
        "by_reply": several,
        "successes": successes,
        "right": successes / max(1, int(outcomes.known_N.sum())),
    }
    reason, settings = "swift", dict[str, Any](scheme="swift", baseline="fitted")
    if len(distinct) <= 2:
        reason, settings = "rft", {"scheme": "rft"}
        if outcome != "success" and "above" not in outcome:
            # A success is then what is more than the lower value.
            summed = {outcome: 1.0} if isinstance(outcome, str) else outcome
            settings |= {"outcome": {**summed, "above": float(distinct[0])}}
    elif facts["right"] >= RIGHT:
        reason, settings = "right", {"scheme": "rft"}
    elif several >= BY_REPLY:
        reason, settings = "refit", {"scheme": "refit", "turns": "own"}
    elif facts["samples"] >= 2:
        reason, settings = "star_gate", {"scheme": "star_gate", "turns": "terminal"}
    counts = "is right or wrong" if len(distinct) <= 2 else f"has {len(distinct):,} values"
    why = f"What counts {counts}, and {_WHY[reason].format(**facts)}"
    return {"settings": settings, "why": why, **facts}


def temperature_of(returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike) -> tuple[float, float | None]:
    """What ``beta: auto`` finds: one β for a whole data set, and the share of conversations that stays effective.

    The mean of ``effective_shares`` over prompts whose returns differ falls with β, so that β is found by bisection
    where it is the mean share of their conversations that succeed, which is the share returned. Ours.
    β is 0, the best alone, where none of them succeeds or too many tie for the best; ∞, all alike, where all succeed or
    no prompt has returns that differ (then the share is ``None``).
    """
    returns, index_N = np.asarray(returns_N, float), index_groups(group_N)
    with np.errstate(over="ignore"):
        gap_N = returns - group_max(returns, index_N)[index_N]
    differs_G = group_min(gap_N, index_N) < 0
    share = exact_mean(group_mean(success_N, index_N)[differs_G]) if differs_G.any() else None
    if share in (0, 1, None):
        return (math.inf if share != 0 else 0.0), share
    kept_N = differs_G[index_N]
    gap_M, index_M = gap_N[kept_N], (np.cumsum(differs_G) - 1)[index_N[kept_N]]

    def effective_share(beta: float) -> float:
        return exact_mean(effective_shares(tilted(gap_M, 0.0, beta), index_M))

    if effective_share(0.0) >= share:
        return 0.0, share
    finite = -gap_M[(gap_M < 0) & np.isfinite(gap_M)]
    low = math.log(max(float(finite.min(initial=math.inf)) / _COLD, _SMALLEST))
    high = math.log(float(finite.max(initial=0.0))) + math.log(_HOT)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if effective_share(math.exp(min(middle, _LARGEST))) > share else (middle, high)
    return math.exp(min((low + high) / 2, _LARGEST)), share


def effective_shares(tilted_N: Floats, index_N: Indices) -> Floats:
    """``(G,)`` Kish's ``(Σw)²/Σw²`` over K of each prompt under weights of which the largest of each is 1."""
    # What is below e^-300 of the largest changes no sum, and without it no number gets slow or loses digits.
    tilted_N = np.maximum(tilted_N, math.exp(-300.0))
    return group_sum(tilted_N, index_N) ** 2 / group_sum(tilted_N**2, index_N) / np.bincount(index_N)
