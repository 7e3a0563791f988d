"""What a comparison found, as rows of text for the terminal, the page and docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drift.errors import DatasetError
from drift.manifest import SCHEMA_VERSION
from drift.reporting.facts import PLAIN

COMPARISON = "comparison.json"
LEVEL = 0.05


class Found:
    """A ``comparison.json``, looked up by method and metric.

    Args:
        values: its content.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.against: str = values["against"]
        self.modes: list[str] = values["modes"]
        self.max_turns: int = values["max_turns"]
        self.rows = {(row["method"], row["metric"]): row for row in values["rows"]}
        self.differences = {(row["method"], row["metric"]): row for row in values["differences"]}
        self.methods = list(dict.fromkeys(row["method"] for row in values["rows"]))

    def columns(self) -> list[str]:
        """Metrics of the main table."""
        final = self.max_turns
        wanted = [
            "multi@1",
            f"multi@{final}",
            f"above_floor@{final}",
            f"corrected@{final}",
            "distinct_answers",
            "turns",
        ]
        return [name for name in wanted if any(metric.endswith(f"/{name}") for _, metric in self.rows)]

    def ordered(self, mode: str) -> list[str]:
        """Methods, the best first, the base last."""
        metric = f"{mode}/multi@{self.max_turns}"
        known = [name for name in self.methods if name != "base"]
        known.sort(key=lambda name: -(self.rows[name, metric]["value"] or 0.0))
        return [*known, *(name for name in self.methods if name == "base")]


def read_comparison(path: Path) -> Found:
    """Read ``comparison.json``, or that of a directory; raises ``DatasetError`` where there is none."""
    file = path / COMPARISON if path.is_dir() else path
    try:
        values = json.loads(file.read_text())
        version, kind = values["schema_version"], values["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} can't be read as a comparison: {error}. Run drift compare into it.") from error
    if (version, kind) != (SCHEMA_VERSION, "comparison"):
        raise DatasetError(f"{file}: {kind} of schema version {version}, expected comparison of {SCHEMA_VERSION}.")
    return Found(values)


def verdicts(found: Found) -> list[str]:
    """What may be claimed, a sentence or two for each mode."""
    said = []
    for mode in found.modes:
        metric = f"multi@{found.max_turns}"
        best = found.values["best"][mode]
        if best["method"] is None:
            continue
        if len(found.methods) < 3:
            continue
        share = cell(found.rows[best["method"], f"{mode}/{metric}"], metric)[0]
        if best["winner"]:
            text = f"{mode}: {best['method']} wins with {metric} {share} %, ahead of every other method."
        else:
            close = ", ".join(best["not_told_apart"])
            text = f"{mode}: no winner. {best['method']} has the highest {metric} ({share} %)"
            text += f" and can't be told apart from {close}." if close else "."
        names = {"better": [], "worse": []}  # type: dict[str, list[str]]
        for name in found.ordered(mode):
            row = found.differences.get((name, f"{mode}/{metric}"))
            if row and row["p_holm"] is not None and row["p_holm"] < LEVEL:
                names["better" if row["value"] > 0 else "worse"].append(name)
        for word, those in names.items():
            if those:
                text += f" {word.capitalize()} than {found.against}: {', '.join(those)}."
        if found.against in found.methods and not any(names.values()):
            text += f" None differs from {found.against}."
        if len(found.values["seeds"]) == 1:
            text += " With one seed nothing is known of what another training would give."
        said.append(text)
    return said


def cell(row: Mapping[str, Any] | None, metric: str, *, signed: bool = False) -> tuple[str, str]:
    """A value and its interval as text, in per cent where the metric is a share."""
    if row is None or row["value"] is None:
        return "n/a", ""
    scale = 1.0 if metric in PLAIN else 100.0
    form = "{:+.1f}" if signed else "{:.1f}" if scale > 1 else "{:.2f}"
    value = form.format(scale * row["value"])
    if row["low"] is None:
        return value, ""
    return value, f"{form.format(scale * row['low'])} to {form.format(scale * row['high'])}"


def main_table(found: Found, mode: str) -> list[dict[str, Any]]:
    """Rows of the main table: method, cells by metric, paired difference of the last metric, corrected p-value."""
    final = f"multi@{found.max_turns}"
    rows = []
    for name in found.ordered(mode):
        difference = found.differences.get((name, f"{mode}/{final}"))
        p = None if difference is None else difference["p_holm"]
        rows.append(
            {
                "method": name,
                "cells": {
                    metric: cell(found.rows.get((name, f"{mode}/{metric}")), metric) for metric in found.columns()
                },
                "difference": cell(difference, final, signed=True) if difference else ("", ""),
                "p": "" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001",
                "sure": p is not None and p < LEVEL,
            }
        )
    return rows


def cost_table(found: Found) -> list[dict[str, str]]:
    """Rows of the cost table, means over seeds."""
    rows = []
    for name in found.methods:
        if name == "base":
            continue
        cost = found.values["costs"][name]
        numbers = {key: "unknown" if cost[key] is None else f"{cost[key]:,.0f}" for key in cost}
        rows.append({"method": name, **numbers})
    return rows


def failures(found: Found) -> list[dict[str, str]]:
    """Methods that failed, with the seeds and the first reason."""
    return [
        {"method": name, "seeds": ", ".join(reasons), "reason": next(iter(reasons.values()))}
        for name, reasons in found.values["failed"].items()
    ]


def level(found: Found) -> str:
    """What intervals are."""
    return "95 % intervals over prompts" + (" and seeds" if len(found.values["seeds"]) > 1 else ", one seed")


def subtitle(found: Found) -> str:
    """What was compared, on what, and what intervals are over."""
    recipe, seeds = found.values["recipe"], found.values["seeds"]
    # Comparisons from before the model was a key of its own say it in the policy.
    model = recipe["model"] if "model" in recipe else recipe["policy"]["model"]
    return (
        f"{recipe['environment']['name']}, {model}: {recipe['rollouts']['tasks']} tasks × "
        f"{recipe['rollouts']['samples']} conversations, {recipe['evaluation']['tasks']} held-out tasks, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    )
