"""``scheme: auto``: the weighting that fared best on data of that kind, and why in words (docs/results.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from drift.dataset.outcomes import Outcomes, outcome_values
from drift.weights.groups import group_max, group_min
from drift.weights.schemes import Scheme, rft_weights

# What auto is until the data are seen; then it is what ``choice`` names.
AUTO = Scheme(function=rft_weights, name="auto", signed=False)


def choice(outcomes: Outcomes, outcome: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """How to weigh these conversations, and why, by what they look like.

    Two values of what counts: ``rft``, successes alone. More, and rewards that came reply by reply: ``refit`` with each
    reply's own. More, of whole conversations: ``star_gate``, the last reply of the best of each prompt, or ``swift``
    with a fitted baseline where most prompts have only one.

    Args:
        outcomes: with the rewards of replies.
        outcome: what counts, as ``outcome_values`` takes it; ``None`` is success, or reward where none is known.

    Returns:
        ``settings``, fields of ``WeightConfig``; ``why``, two sentences; and what was looked at: ``values`` (how many
        different ones), ``mixed`` and ``unsolved`` (shares of prompts whose conversations differ, and with none above
        the lowest value), ``samples`` (K, the median over prompts), ``ess`` (conversations above the mean of all) and
        ``by_reply`` (share of conversations that were rewarded more than once).
    """
    outcome = outcome or ("success" if outcomes.known_N.any() else "reward")
    values_N = outcome_values(outcomes, outcome)
    known_N = ~np.isnan(values_N)
    if not known_N.any():
        # What is missing is said by whoever weighs.
        known_N, values_N = ~known_N, np.zeros(len(values_N))
    values_N, index_N = values_N[known_N], np.unique(outcomes.group_index()[known_N], return_inverse=True)[1]
    groups, distinct = int(index_N.max()) + 1, np.unique(values_N)
    top_G, low_G = (extreme(values_N, index_N, groups) for extreme in (group_max, group_min))
    facts = {
        "values": len(distinct),
        "mixed": float((top_G > low_G).mean()),
        "unsolved": float((top_G == distinct[0]).mean()),
        "samples": float(np.median(np.bincount(index_N))),
        "ess": int((values_N > values_N.mean()).sum()),
        "by_reply": _rewarded_more_than_once(outcomes),
    }
    kind = _kind(facts)
    settings, why = _CHOICES[kind]
    if kind == "two" and outcome != "success" and "above" not in outcome:
        settings = settings | {"outcome": _above(outcome, float(distinct[0]))}
    return {"settings": settings, "why": why.format(**facts), **facts}


def _kind(facts: Mapping[str, Any]) -> str:
    if facts["values"] <= 2:
        return "two"
    if facts["by_reply"] >= BY_REPLY:
        return "reply"
    return "graded" if facts["samples"] >= 2 else "alone"


def _above(outcome: str | Mapping[str, Any], lowest: float) -> dict[str, Any]:
    """The outcome as a success: 1 where it is more than the lower of its two values."""
    return {**({outcome: 1.0} if isinstance(outcome, str) else outcome), "above": lowest}


def _rewarded_more_than_once(outcomes: Outcomes) -> float:
    """Share of conversations with several rewarded replies; 0 where a reward is negative, which ``refit`` refuses."""
    rewards_T = outcomes.reply_reward_T
    if rewards_T is None or rewards_T.min(initial=0.0) < 0:
        return 0.0
    index_T = np.repeat(np.arange(len(outcomes.turns_N)), outcomes.turns_N)
    return float((np.bincount(index_T, rewards_T > 0) > 1).mean())


# Above this share of conversations that were rewarded more than once, rewards are taken to be of replies.
BY_REPLY = 0.1
_CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "two": (
        {"scheme": "rft"},
        "What counts is right or wrong, and {mixed:.0%} of the prompts have both: successes alone are trained (rft), "
        "{ess:,} of them. Of thirteen other methods on two tasks none was ahead of that on both, and sampled all were "
        "behind on one (docs/results.md).",
    ),
    "reply": (
        {"scheme": "refit", "turns": "own"},
        "What counts has {values:,} values, and {by_reply:.0%} of the conversations were rewarded more than once: each "
        "reply weighs its own reward (refit, own). Where that was measured it was some 4 points of reward ahead of "
        "successes alone, and ahead of all weightings of whole conversations (docs/results.md).",
    ),
    "graded": (
        {"scheme": "star_gate", "turns": "terminal"},
        "What counts has {values:,} values, and {mixed:.0%} of the prompts have conversations that differ: the last "
        "reply of the best of each prompt is trained (star_gate). Of weights of whole conversations that, the limit of "
        "drift at β = 0, did best where it was measured (docs/results.md).",
    ),
    "alone": (
        {"scheme": "swift", "baseline": "fitted"},
        "What counts has {values:,} values, and most prompts have one conversation: each is measured against what its "
        "prompt lets one expect (swift, fitted). On simulated logs that came as near to the best policy as drift, and "
        "nearer than awr, 47 % of the way, 47 % and 39 % (docs/method.md).",
    ),
}
