"""From conversations to estimates: one row per policy and metric, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drift.errors import DatasetError
from drift.evaluation.guessing import floors, resampling
from drift.evaluation.intervals import Floats, bootstrap, interval, ratio_value
from drift.evaluation.metrics import Ratio, Runs, language_metrics, metrics
from drift.types import Estimate

GREEDY, SAMPLED = "greedy", "sampled"


def estimate_all(runs: Mapping[str, Runs], *, mode: str, max_turns: int, baseline: str, seed: int) -> list[Estimate]:
    """Every metric of every policy, and its difference from ``baseline`` on the same prompts.

    Args:
        runs: conversations by policy, all on the same prompts.
        mode: ``greedy`` or ``sampled``; metrics are named ``<mode>/<metric>``.
        max_turns: T.
        baseline: the policy the others are compared with.
        seed: of the bootstrap.

    Raises:
        DatasetError: two policies were run on different prompts.
    """
    names = list(runs)
    for name in names:
        if runs[name].prompts != runs[baseline].prompts:
            raise DatasetError(
                f"{name!r} and {baseline!r} were evaluated on different tasks ({len(runs[name].prompts)} and "
                f"{len(runs[baseline].prompts)}, failures left out); a paired difference needs the same ones. "
                "Evaluate again."
            )
    main = {name: metrics(runs[name], max_turns) for name in names}
    more = {name: further_metrics(runs[name], main[name], mode, max_turns) for name in names}
    ratios = {name: main[name] | more[name] for name in names}
    # One seed for all policies: the same prompts are drawn for each, which is what makes differences paired. In two
    # calls, since the last bits of a matrix product depend on how many columns it has.
    drawn = {name: np.hstack([bootstrap(list(part[name].values()), seed) for part in (main, more)]) for name in names}
    rows = []
    for name in names:
        for column, (metric, ratio) in enumerate(ratios[name].items()):
            low, high = interval(drawn[name][:, column])
            rows.append(_row(name, f"{mode}/{metric}", ratio_value(ratio), low, high, runs[name]))
    for name in names:
        if name == baseline:
            continue
        theirs_at = {metric: column for column, metric in enumerate(ratios[baseline])}
        for column, metric in enumerate(ratios[name]):
            # The floor is the tasks', not the policies'.
            if metric not in theirs_at or metric.startswith("floor@"):
                continue
            ours, theirs = ratio_value(ratios[name][metric]), ratio_value(ratios[baseline][metric])
            low, high = interval(drawn[name][:, column] - drawn[baseline][:, theirs_at[metric]])
            value = None if ours is None or theirs is None else ours - theirs
            rows.append(_row(f"{name} - {baseline}", f"{mode}/{metric}", value, low, high, runs[name]))
    return rows


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Metrics of one policy that are not read off its conversations alone.

    Attributes:
        policy: its name.
        ratios: by metric.
        trajectories: how many they rest on.
        excluded: how many were left out.
    """

    policy: str
    ratios: Mapping[str, Ratio]
    trajectories: int
    excluded: int


def estimate_measured(measured: Sequence[Measured], *, mode: str, seed: int, baseline: str | None) -> list[Estimate]:
    """The rows of what was measured apart, and paired differences from ``baseline`` if it has the same prompts."""
    drawn = {(one.policy, name): bootstrap([r], seed)[:, 0] for one in measured for name, r in one.ratios.items()}
    theirs = next((one for one in measured if one.policy == baseline), None)
    rows, differences = [], []
    for one in measured:
        for metric, ratio in one.ratios.items():
            prompts = int((ratio.denominator_P > 0).sum())
            facts = {"prompts": prompts, "trajectories": one.trajectories, "excluded": one.excluded}
            value, key = ratio_value(ratio), (one.policy, metric)
            rows.append(_estimate(one.policy, f"{mode}/{metric}", value, drawn[key], facts))
            if theirs is None or one is theirs:
                continue
            other = ratio_value(theirs.ratios[metric])
            change = None if value is None or other is None else value - other
            between_B = drawn[key] - drawn[theirs.policy, metric]
            differences.append(_estimate(f"{one.policy} - {baseline}", f"{mode}/{metric}", change, between_B, facts))
    return rows + differences


def _estimate(policy: str, metric: str, value: float | None, drawn_B: Floats, facts: Mapping[str, int]) -> Estimate:
    low, high = interval(drawn_B) if value is not None else (None, None)
    return Estimate(policy=policy, metric=metric, value=value, low=low, high=high, **facts)


def further_metrics(runs: Runs, main: Mapping[str, Ratio], mode: str, max_turns: int) -> dict[str, Ratio]:
    """What stands beside the main metrics: how replies read, what a guesser would score, what asking again would."""
    found = language_metrics(runs) | floors(runs, main, max_turns)
    return found | resampling(runs, max_turns) if mode == SAMPLED else found


def _row(policy: str, metric: str, value: float | None, low: float | None, high: float | None, runs: Runs) -> Estimate:
    return Estimate(
        policy=policy,
        metric=metric,
        value=value,
        low=low if value is not None else None,
        high=high if value is not None else None,
        prompts=len(runs.prompts),
        trajectories=len(runs.prompt_N),
        excluded=runs.excluded,
    )
