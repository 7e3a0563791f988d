"""From the conversations of every method and seed to one table: estimates, paired differences, costs, what failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift.comparison.methods import BASE
from drift.comparison.settings import Comparison
from drift.dataset.store import read_trajectories
from drift.environments import make_environment
from drift.environments.base import EnvironmentFactory, options_of
from drift.evaluation.comparisons import TwoLevel, align, holm, over_seeds
from drift.evaluation.estimates import further_metrics
from drift.evaluation.intervals import ratio_value
from drift.evaluation.metrics import Ratio, Runs, metrics
from drift.evaluation.run import held_out_tasks, on_common_prompts
from drift.manifest import SCHEMA_VERSION, package_versions, read_manifest
from drift.reporting.comparison import COMPARISON as COMPARISON

KIND = "comparison"
# The chance, over all comparisons of a table, that a difference is claimed where there is none.
LEVEL = 0.05


def collate(
    comparison: Comparison, out: Path, failed: Mapping[str, Mapping[int, str]], *, command: str
) -> dict[str, Any]:
    """Everything the table, the page and docs/results.md say, as plain values (docs/artifacts.md).

    A method that failed with any seed has no estimates: a mean over other seeds could not be compared.
    """
    recipe = comparison.recipe
    factory = make_environment(recipe.environment)
    max_turns = factory.max_turns
    names = [BASE, *(name for name in comparison.methods if name not in failed)]
    modes = ["greedy", *(["sampled"] if recipe.evaluation.samples else [])]
    options = {seed: _options(comparison, factory, seed) for seed in comparison.seeds}
    found = [
        Side(mode, {seed: _runs(out / f"seed-{seed}", names, mode, options[seed]) for seed in options}, max_turns)
        for mode in modes
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "packages": package_versions(),
        "command": command,
        "recipe": _recipe(comparison, out, len(options[comparison.seeds[0]])),
        "methods": {
            name: {"summary": method.summary, "trainer": method.trainer, "overrides": dict(method.overrides)}
            for name, method in comparison.methods.items()
        },
        "seeds": list(comparison.seeds),
        "against": comparison.against,
        "modes": modes,
        "max_turns": max_turns,
        "rows": [row for mode in found for row in mode.rows()],
        "differences": [row for mode in found for row in mode.differences(comparison.against)],
        "best": {mode: each.best(f"multi@{max_turns}") for mode, each in zip(modes, found, strict=True)},
        "costs": {name: _costs(out, comparison.seeds, name) for name in names},
        "failed": {
            name: {str(seed): failed[name][seed] for seed in comparison.seeds if seed in failed[name]}
            for name in comparison.methods
            if name in failed
        },
    }


def _recipe(comparison: Comparison, out: Path, held_out: int) -> dict[str, Any]:
    """What all have in common, with the numbers of tasks that were drawn."""
    values = {key: value for key, value in comparison.recipe.to_dict().items() if key != "seed"}
    drawn = read_manifest(out / f"seed-{comparison.seeds[0]}" / "rollouts", "trajectories")["spec"]["tasks"]
    values["rollouts"] = {**values["rollouts"], "tasks": drawn}
    values["evaluation"] = {**values["evaluation"], "tasks": held_out}
    return values


def _options(comparison: Comparison, factory: EnvironmentFactory, seed: int) -> dict[str, int | None]:
    tasks = held_out_tasks(factory, comparison.recipe.evaluation, seed)
    return {task.id: options_of(factory, task) for task in tasks}


def _runs(folder: Path, names: Sequence[str], mode: str, options: Mapping[str, int | None]) -> dict[str, Runs]:
    held = {name: read_trajectories(folder / "methods" / name / mode) for name in names}
    return on_common_prompts(held, options)


def _wanted(metric: str, max_turns: int) -> bool:
    """Whether a table of many methods has it: what is asked at each turn alone is left to ``drift evaluate``."""
    name, _, turn = metric.partition("@")
    return name != "accuracy" and (name != "corrected" or turn == str(max_turns))


class Side:
    """Methods side by side in one mode, over the prompts of all seeds.

    Args:
        mode: ``greedy`` or ``sampled``.
        runs: conversations by seed and method; of one seed all on the same prompts.
        max_turns: T.
    """

    def __init__(self, mode: str, runs: Mapping[int, Mapping[str, Runs]], max_turns: int) -> None:
        self._mode = mode
        self._names = list(next(iter(runs.values())))
        self._places: dict[tuple[str, str], list[int]] = {}
        cells: list[tuple[tuple[str, ...], Ratio]] = []
        for held in runs.values():
            for name in self._names:
                main = metrics(held[name], max_turns)
                for metric, ratio in (main | further_metrics(held[name], main, mode, max_turns)).items():
                    if _wanted(metric, max_turns):
                        self._places.setdefault((name, metric), []).append(len(cells))
                        cells.append((held[name].prompts, ratio))
        self._ratios = align(cells)
        self._metrics = list(dict.fromkeys(metric for _, metric in self._places))

    def rows(self) -> list[dict[str, Any]]:
        """One estimate for each method and metric."""
        return [
            {
                "method": name,
                "metric": f"{self._mode}/{metric}",
                **_told(self._estimate(name, metric)),
                "by_seed": [_rounded(ratio_value(ratio)) for ratio in self._of(name, metric)],
            }
            for name in self._names
            for metric in self._metrics
        ]

    def differences(self, against: str) -> list[dict[str, Any]]:
        """Paired differences from ``against``; the correction is over methods, the base not being one."""
        if against not in self._names:
            return []
        rows = []
        for metric in self._metrics:
            found = {name: self._estimate(name, metric, against) for name in self._names if name != against}
            family = [name for name in found if name != BASE]
            p_values = [math.nan if (p := found[name].p_value) is None else p for name in family]
            corrected = dict(zip(family, holm(p_values).tolist(), strict=True))
            rows += [
                {
                    "method": name,
                    "metric": f"{self._mode}/{metric}",
                    **_told(estimate),
                    "p_value": _rounded(estimate.p_value),
                    "p_holm": _rounded(corrected.get(name)),
                }
                for name, estimate in found.items()
            ]
        return rows

    def best(self, metric: str) -> dict[str, Any]:
        """The method with the highest value, and which others it can't be told from.

        It wins where it differs from each other method at 5 %, corrected for their number (Bonferroni): whichever
        method is truly best, the chance that another is named is then at most 5 % (Hsu's comparison with the best).
        """
        value = {name: self._estimate(name, metric).value for name in self._names if name != BASE}
        known = {name: number for name, number in value.items() if number is not None}
        if len(known) < 2:
            return {"method": next(iter(known), None), "winner": False, "not_told_apart": []}
        top = max(known, key=lambda name: known[name])
        others = [name for name in known if name != top]
        apart = {name: self._estimate(top, metric, name).p_value for name in others}
        close = [name for name, p in apart.items() if p is None or p * len(others) >= LEVEL]
        return {"method": top, "winner": not close, "not_told_apart": close}

    def _of(self, name: str, metric: str) -> list[Ratio]:
        return [self._ratios[at] for at in self._places[name, metric]]

    def _estimate(self, name: str, metric: str, against: str = "") -> TwoLevel:
        return over_seeds(self._of(name, metric), self._of(against, metric) if against else None)


def _told(estimate: TwoLevel) -> dict[str, Any]:
    """An estimate as plain values."""
    keys = ("value", "low", "high", "from_seeds", "from_prompts")
    return {**{key: _rounded(getattr(estimate, key)) for key in keys}, "seeds": estimate.seeds}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 8)


def _costs(out: Path, seeds: tuple[int, ...], name: str) -> dict[str, Any]:
    """Mean over seeds of what a method needs from nothing: rollouts (shared ones too), weighing and training."""
    spent: list[dict[str, float]] = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        method = read_manifest(folder / "methods" / name, "method")
        shared = read_manifest(folder / "rollouts", "trajectories")["cost"]
        rollouts = shared if method.get("shared_rollouts", name != BASE) else {"seconds": 0.0, "tokens_sampled": 0}
        generated = [rollouts["tokens_sampled"], method.get("tokens_sampled", 0)]
        trained = method.get("tokens_trained", 0)
        spent.append(
            {
                "tokens_generated": math.nan if None in generated else sum(generated),
                "tokens_trained": math.nan if trained is None else trained,
                "steps": method.get("steps", 0),
                "rollout_seconds": rollouts["seconds"],
                "seconds": rollouts["seconds"] + method["seconds"],
            }
        )
    return {key: _rounded(float(np.mean([each[key] for each in spent]))) for key in spent[0]}
