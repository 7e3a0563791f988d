"""From conversations to estimates: one row per policy and metric, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drift.errors import DatasetError
from drift.evaluation.comparisons import over_seeds
from drift.evaluation.guessing import floors, resampling
from drift.evaluation.metrics import Ratio, Runs, language_metrics, metrics
from drift.types import Estimate

GREEDY, SAMPLED = "greedy", "sampled"


def estimate_all(runs: Mapping[str, Runs], *, mode: str, max_turns: int, baseline: str) -> list[Estimate]:
    """Every metric of every policy, and its difference from ``baseline`` on the same prompts.

    Args:
        runs: conversations by policy, all on the same prompts.
        mode: ``greedy`` or ``sampled``; metrics are named ``<mode>/<metric>``.
        max_turns: T.
        baseline: the policy the others are compared with.

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
    rows = [
        _row(name, f"{mode}/{metric}", ratio, None, _facts(runs[name]))
        for name in names
        for metric, ratio in ratios[name].items()
    ]
    # The floor is the tasks', not the policies'.
    rows += [
        _row(f"{name} - {baseline}", f"{mode}/{metric}", ratio, ratios[baseline][metric], _facts(runs[name]))
        for name in names
        if name != baseline
        for metric, ratio in ratios[name].items()
        if metric in ratios[baseline] and not metric.startswith("floor@")
    ]
    return rows


def _facts(runs: Runs) -> dict[str, int]:
    return {"prompts": len(runs.prompts), "trajectories": len(runs.prompt_N), "excluded": runs.excluded}


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


def estimate_measured(measured: Sequence[Measured], *, mode: str, baseline: str | None) -> list[Estimate]:
    """The rows of what was measured apart, and paired differences from ``baseline`` if it has the same prompts."""
    theirs = next((one for one in measured if one.policy == baseline), None)
    rows, differences = [], []
    for one in measured:
        for metric, ratio in one.ratios.items():
            prompts = int((ratio.denominator_P > 0).sum())
            facts = {"prompts": prompts, "trajectories": one.trajectories, "excluded": one.excluded}
            rows.append(_row(one.policy, f"{mode}/{metric}", ratio, None, facts))
            if theirs is not None and one is not theirs:
                name = f"{one.policy} - {baseline}"
                differences.append(_row(name, f"{mode}/{metric}", ratio, theirs.ratios[metric], facts))
    return rows + differences


def _row(policy: str, metric: str, ours: Ratio, theirs: Ratio | None, facts: Mapping[str, int]) -> Estimate:
    found = over_seeds([ours], None if theirs is None else [theirs])
    return Estimate(policy=policy, metric=metric, value=found.value, low=found.low, high=found.high, **facts)


def further_metrics(runs: Runs, main: Mapping[str, Ratio], mode: str, max_turns: int) -> dict[str, Ratio]:
    """What stands beside the main metrics: how replies read, what a guesser would score, what asking again would."""
    found = language_metrics(runs) | floors(runs, main, max_turns)
    return found | resampling(runs, max_turns) if mode == SAMPLED else found
