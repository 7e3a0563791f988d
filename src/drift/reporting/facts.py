"""What the report says, read from the artifacts of a run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.checksums import sum_of
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import read_trajectories
from drift.errors import DatasetError
from drift.evaluation.likelihood import KIND as LIKELIHOOD
from drift.evaluation.run import ESTIMATES
from drift.evaluation.run import KIND as EVALUATION
from drift.manifest import MANIFEST, read_manifest
from drift.reporting.meanings import meaning
from drift.reporting.preview import Shown, weighed_examples
from drift.reporting.sentences import summary_of
from drift.training.config import KIND as MODEL
from drift.types import Trajectory
from drift.weights.table import KIND as WEIGHTS

# Metrics that are no shares.
PLAIN = {"turns", "turns_to_success", "reply_tokens"}
QUALITY = ("kl_", "judge_")
# What a run holds before anything is measured.
STAGES = ("rollouts", "weights", "model")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything the page shows.

    Attributes:
        name: of the directory.
        evaluation: manifest of the evaluation, where there is one.
        rows: estimates by ``(policy, metric)``.
        rollouts, weights, model: manifests, where those stages ran in this directory; of several rounds, those of the
            first rollouts and of the last weights and model.
        rounds: the same three by name for each round.
        curve: training metrics by step.
        held_out: loss of held-out prompts by step, the base's first.
        recipe: the resolved recipe as text.
        pairs: greedy conversations of the baseline and another policy on the same task.
        likelihood: what was measured on held-out prompts of a log, in sentences.
        kl: measurements of the KL from the base on prompts set aside, by step, where training had a limit.
        counted: sentences on the rollouts, where there are no weights, whose manifest tells it.
        trained: some of the conversations with the weights that were trained, from the largest to the smallest.
        largest: the largest ``|w|`` of all.
    """

    name: str
    evaluation: dict[str, Any] | None
    rows: Mapping[tuple[str, str], dict[str, Any]]
    rollouts: dict[str, Any] | None
    weights: dict[str, Any] | None
    model: dict[str, Any] | None
    rounds: list[dict[str, dict[str, Any] | None]]
    curve: list[dict[str, float]]
    held_out: list[dict[str, float]]
    recipe: str
    pairs: list[tuple[Trajectory, Trajectory]]
    likelihood: list[str]
    kl: list[dict[str, Any]]
    counted: list[str]
    trained: list[Shown]
    largest: float

    @property
    def policies(self) -> list[str]:
        """Names of the policies measured, the baseline first."""
        return list(self.measured["policies"])

    @property
    def stages(self) -> list[dict[str, Any] | None]:
        """Manifest of each stage, the last first."""
        return [self.evaluation, self.model, self.weights, self.rollouts]

    @property
    def measured(self) -> dict[str, Any]:
        """The manifest of the evaluation, which there must be."""
        assert self.evaluation is not None
        return self.evaluation


def read_facts(run: Path, *, conversations: int = 8) -> Facts:
    """Collect what is there; raises ``DatasetError`` where there is no finished stage in ``run``."""
    folder = run / "evaluation" if (run / "evaluation").is_dir() else run
    others = any((place / name / MANIFEST).is_file() for place in (run, run / "round-1") for name in STAGES)
    measured = (folder / MANIFEST).is_file() or folder != run
    evaluation = read_manifest(folder, EVALUATION) if measured or not others else None
    rounds = sorted(run.glob("round-*"), key=lambda path: int(path.name.rpartition("-")[2])) or [run]
    stages = [
        {
            # The first round's rollouts lie where those of a single round do.
            "rollouts": _manifest((place if number else run) / "rollouts", TRAJECTORIES),
            "weights": _manifest(place / "weights", WEIGHTS),
            "model": _manifest(place / "model", MODEL),
        }
        for number, place in enumerate(rounds)
    ]
    model, weights = rounds[-1] / "model", rounds[-1] / "weights"
    data = (rounds[-1] if len(rounds) > 1 else run) / "rollouts"
    shown, largest = weighed_examples(data, weights, conversations) if stages[-1]["weights"] else ([], 0.0)
    rollouts = stages[0]["rollouts"]
    uncounted = rollouts if conversations and rollouts and rollouts["complete"] and not stages[-1]["weights"] else None
    recipe = run / "recipe.yaml"
    logged = _manifest(run / LIKELIHOOD, LIKELIHOOD)
    return Facts(
        name=run.resolve().name,
        evaluation=evaluation,
        rows=_estimates(folder, evaluation) if evaluation else {},
        rollouts=rollouts,
        weights=stages[-1]["weights"],
        model=stages[-1]["model"],
        rounds=stages,
        curve=_lines(model / "metrics.jsonl"),
        held_out=_lines(model / "held-out.jsonl"),
        recipe=recipe.read_text() if recipe.is_file() else "",
        pairs=_pairs(folder, list(evaluation["policies"]), conversations) if evaluation else [],
        likelihood=list(summary_of(LIKELIHOOD, logged, run / LIKELIHOOD)) if logged else [],
        kl=_lines(model / "kl.jsonl"),
        counted=list(summary_of(TRAJECTORIES, uncounted, run / "rollouts")) if uncounted else [],
        trained=shown,
        largest=largest,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _estimates(folder: Path, evaluation: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    try:
        wanted, found = evaluation.get("estimates_sum"), sum_of(folder / ESTIMATES)
        if wanted not in (None, found):
            raise OSError(f"its checksum is {found}, expected {wanted}")
        return {(row["policy"], row["metric"]): row for row in json.loads((folder / ESTIMATES).read_text())}
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{folder / ESTIMATES} can't be read: {error}. Run the evaluation again.") from error


def _manifest(folder: Path, kind: str) -> dict[str, Any] | None:
    return read_manifest(folder, kind) if (folder / MANIFEST).is_file() else None


def _pairs(folder: Path, policies: list[str], count: int) -> list[tuple[Trajectory, Trajectory]]:
    """Conversations to read: each way the outcome can change is shown in turn, so that losses are seen too."""
    if len(policies) < 2:
        return []
    before, after = (
        {t.task_id: t for t in read_trajectories(folder / "greedy" / name)} for name in (policies[0], policies[-1])
    )
    kinds: dict[tuple[bool, bool], list[tuple[Trajectory, Trajectory]]] = {}
    for task_id in sorted(before.keys() & after.keys()):
        pair = before[task_id], after[task_id]
        kinds.setdefault((bool(pair[0].success), bool(pair[1].success)), []).append(pair)
    order = [kinds[key] for key in ((False, True), (True, False), (False, False), (True, True)) if key in kinds]
    chosen: list[tuple[Trajectory, Trajectory]] = []
    while len(chosen) < count and any(order):
        chosen += [pairs.pop(0) for pairs in order if pairs]
    return chosen[:count]


def warnings_of(facts: Facts) -> list[str]:
    """What an evaluation leaves out, and what makes it worth little, aloud; empty where nothing does."""
    if facts.evaluation is None:
        return []
    metric = f"multi@{facts.evaluation['max_turns']}"
    rows = [
        facts.rows.get((policy, f"{mode}/{metric}")) for policy in facts.policies for mode in facts.measured["modes"]
    ]
    values = [row["value"] for row in rows if row and row["value"] is not None]
    warnings = []
    for place, cost in facts.evaluation["cost"].items():
        if failures := cost.get("failures"):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in failures.items())
            warnings.append(f"{place}: {kinds} failed and are left out.")
    if values and max(values) == 0:
        warnings.append(
            "NOTHING SUCCEEDED, by any policy: look at what they reply, and how it is judged (drift report)."
        )
    elif values and min(values) == 1:
        warnings.append("EVERYTHING SUCCEEDED, by every policy: these tasks tell nothing apart. Take harder ones.")
    return warnings


def verdict(facts: Facts) -> str:
    """One sentence on whether the last policy beats the baseline, by how much, and how sure that is."""
    if facts.evaluation is None and facts.likelihood:
        return "No conversation was held with the tuned model: how good its own replies are is not known."
    if facts.evaluation is None:
        return "Nothing was measured: what the model has become is not known."
    base, last = facts.policies[0], facts.policies[-1]
    metric = f"greedy/multi@{facts.evaluation['max_turns']}"
    row = facts.rows[(base, metric)]
    name, prompts = metric.partition("/")[2], row["prompts"]
    if last == base:
        return f"{base} solves {_percent(row)} of {prompts} held-out tasks ({name}, greedy)."
    ours, difference = facts.rows[(last, metric)], facts.rows[(f"{last} - {base}", metric)]
    change, low, high = (f"{100 * difference[key]:+.1f}" for key in ("value", "low", "high"))
    points = f"{change} points, 95 % interval {low} to {high}"
    if difference["low"] > 0:
        word = "is better than"
    elif difference["high"] < 0:
        word = "is worse than"
    else:
        word = "can't be told apart from"
    return (
        f"{last} {word} {base}: {name} is {_percent(ours)} against {_percent(row)} on {prompts} held-out tasks "
        f"({points}, greedy, paired)."
    )


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:.1f} %"


def table(facts: Facts, mode: str) -> list[dict[str, Any]]:
    """Rows of the results table: metric, one cell per policy, and the paired difference of the last one.

    ``main`` tells the rows that answer the question from those for whoever wants them all.
    """
    base, last = facts.policies[0], facts.policies[-1]
    final = facts.measured["max_turns"]
    main = {f"corrected@{final}", "turns_to_success", "distinct_answers", "format_failures"}
    # What success within T turns must be read beside, where it is there.
    main |= {f"{name}@{final}" for name in ("floor", "above_floor", "pass", "feedback_gain")}
    # What is measured from the baseline has no row of its own.
    names = list(dict.fromkeys(name for p, name in facts.rows if p in facts.policies and name.startswith(f"{mode}/")))
    # A reward of 1 for success says nothing that multi@T doesn't.
    pairs = [(policy, f"{mode}/reward", f"{mode}/multi@{final}") for policy in facts.policies]
    if f"{mode}/reward" in names and any(facts.rows[p, r]["value"] != facts.rows[p, m]["value"] for p, r, m in pairs):
        main.add("reward")
    rows = []
    for name in names:
        metric = name.partition("/")[2]
        scale = 1.0 if metric in PLAIN or metric.startswith(QUALITY) else 100.0
        # A divergence of a hundredth of a nat is something.
        digits = 3 if metric.startswith("kl_") else 1
        held = [facts.rows.get((policy, name)) for policy in facts.policies]
        cells = [_cell(row, scale, digits) if row else ("", "") for row in held]
        difference = facts.rows.get((f"{last} - {base}", name))
        sure = difference is not None and difference["low"] is not None and difference["low"] * difference["high"] > 0
        rows.append(
            {
                "metric": metric.replace("_", " ") + (" × 100" if metric == "reward" else " %" if scale == 100 else ""),
                "meaning": meaning(metric),
                "main": metric in main or metric.startswith(("multi@", *QUALITY)),
                "cells": cells,
                "difference": _cell(difference, scale, digits, "+") if difference else None,
                "sure": sure,
            }
        )
    return rows


def _cell(row: Mapping[str, Any], scale: float, digits: int, sign: str = "") -> tuple[str, str]:
    if row["value"] is None:
        return "n/a", ""
    value, low, high = (
        "" if row[key] is None else f"{scale * row[key]:{sign}.{digits}f}" for key in ("value", "low", "high")
    )
    return value, f"{low} to {high}" if low else ""


def floor_curve(facts: Facts, mode: str) -> list[float | None]:
    """floor@k of the baseline for k = 1 … T, where tasks have a number of options; else nothing."""
    rows = [facts.rows.get((facts.policies[0], f"{mode}/floor@{k}")) for k in range(1, facts.measured["max_turns"] + 1)]
    return [row["value"] for row in rows if row]


def conversations_line(manifest: Mapping[str, Any]) -> str:
    """Where the conversations of a data set come from, how many they are, and how they ended."""
    spec = manifest["spec"]
    counts = ", ".join(f"{key.removeprefix('stop_')} {count}" for key, count in manifest["counts"].items())
    if "import" in spec:
        return f"{spec['import']['file']}, format {spec['import']['format']}: {counts}"
    drawn = f"temperature {spec['sampling']['temperature']}"
    return f"{spec['tasks']} tasks × {spec['samples']} conversations, {drawn}, {counts}"


def _sampled(costs: Collection[Mapping[str, Any]]) -> str:
    counts = [cost["tokens_sampled"] for cost in costs]
    return "unknown" if None in counts else f"{sum(counts):,} sampled"


def costs(facts: Facts) -> list[dict[str, str]]:
    """Rows of the cost table: stage, seconds, tokens; the last is the total time."""
    rows: list[tuple[str, float, str]] = []
    for number, stages in enumerate(facts.rounds, 1):
        round_ = f", round {number}" if len(facts.rounds) > 1 else ""
        rollouts, weights, model = stages["rollouts"], stages["weights"], stages["model"]
        if rollouts:
            rows.append((f"rollouts{round_}", rollouts["cost"]["seconds"], _sampled([rollouts["cost"]])))
        if weights:
            rows.append((f"weights{round_}", weights["cost"]["seconds"], ""))
        if model:
            cost = model["cost"]
            rows.append((f"training{round_}", cost["seconds"], f"{cost['tokens_trained']:,} trained"))
    if facts.evaluation:
        measured = facts.measured["cost"].values()
        rows.append(("evaluation", sum(cost["seconds"] for cost in measured), _sampled(measured)))
    rows.append(("total", sum(seconds for _, seconds, _ in rows), ""))
    return [{"stage": stage, "seconds": f"{seconds:,.1f}", "tokens": text} for stage, seconds, text in rows]
