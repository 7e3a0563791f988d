"""What is left to the data: outcome, baseline, and with ``scheme: auto`` the weighting, and why (docs/results.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from drift.dataset.outcomes import Outcomes, outcome_values
from drift.weights.config import WeightConfig
from drift.weights.groups import group_max, group_min, index_groups
from drift.weights.schemes import AUTO, sft_weights

# Below so many conversations of most prompts of a log, their words have more to say than the others.
FEW = 4
# Above this share of conversations that were rewarded more than once, rewards are taken to be of replies.
BY_REPLY = 0.1
# From this share of right conversations on, successes alone are taken where rewards are graded: put between two tasks
# that were measured, with 4 and 47 %; it held on a third, with 9 %.
RIGHT = 0.15
# What each choice sees in the data, and what was measured of it.
_WHY = {
    "rft": "{mixed:.0%} of the prompts have both: successes alone are trained (rft), {ess:,} of them. Of thirteen "
    "other methods on two tasks none was ahead of that on both, and sampled all were behind on one (docs/results.md).",
    "right": "{right:.0%} of the conversations are right: successes alone are trained (rft), {successes:,} of them. "
    "Where 47 % were, that was some 9 points of reward ahead of each reply's own; where 4 and 9 % were, 4 and 7 behind "
    "(docs/results.md).",
    "refit": "{by_reply:.0%} of the conversations were rewarded more than once, and few or none are known to be right: "
    "each reply weighs its own reward (refit, own). Where 4 and 9 % were right, that was some 4 and 7 points of reward "
    "ahead of successes alone (docs/results.md).",
    "star_gate": "{mixed:.0%} of the prompts have conversations that differ: the last reply of the best of each is "
    "trained (star_gate). Of weights of whole conversations that did best where it was measured (docs/results.md).",
    "swift": "most prompts have one conversation: each is measured against what its prompt lets one expect (swift, "
    "fitted). On simulated logs that went 47 % of the way to the best policy, drift 47 %, awr 39 % (docs/method.md).",
}


def settled(config: WeightConfig, outcomes: Outcomes, *, logged: bool) -> tuple[WeightConfig, dict[str, Any]]:
    """The configuration with nothing left to the data, and what ``scheme: auto`` found there (else nothing).

    ``logged`` is whether the conversations come from a log, and were not sampled for a number of tasks.
    """
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
