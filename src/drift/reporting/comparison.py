"""What a comparison found, in the terminal and as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drift.errors import DatasetError
from drift.manifest import SCHEMA_VERSION, write_atomic
from drift.reporting.facts import PLAIN

COMPARISON = "comparison.json"
LEVEL = 0.05
_SHORT = {"distinct_answers": "distinct"}


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
    """Rows of the main table: method, cells by column, paired difference of the last metric, corrected p-value."""
    final = f"multi@{found.max_turns}"
    rows = []
    for name in found.ordered(mode):
        difference = found.differences.get((name, f"{mode}/{final}"))
        p = None if difference is None else difference["p_holm"]
        rows.append(
            {
                "method": name,
                "cells": [cell(found.rows.get((name, f"{mode}/{metric}")), metric) for metric in found.columns()],
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


def subtitle(found: Found) -> str:
    """What was compared, on what, and what intervals are over."""
    recipe, seeds = found.values["recipe"], found.values["seeds"]
    return (
        f"{recipe['environment']['name']}, {recipe['policy']['model']}: {recipe['rollouts']['tasks']} tasks × "
        f"{recipe['rollouts']['samples']} conversations, {recipe['evaluation']['tasks']} held-out tasks, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    )


def print_comparison(out: Path) -> None:
    """Print tables and verdicts of the comparison in ``out``."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    found, console = read_comparison(out), Console(highlight=False)
    for mode in found.modes:
        title = f"{mode}, {subtitle(found)}; 95 % intervals over prompts and seeds, p by Holm"
        shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        shown.add_column("method", no_wrap=True)
        for name in [*found.columns(), f"- {found.against}", "p"]:
            shown.add_column(_SHORT.get(name, name), justify="right", no_wrap=True)
        for row in main_table(found, mode):
            # Where a decision hangs on it there is an interval; the page has all of them, which no terminal holds.
            cells = [
                _text(each) if name == f"multi@{found.max_turns}" else each[0]
                for name, each in zip(found.columns(), row["cells"], strict=True)
            ]
            shown.add_row(row["method"], *cells, _text(row["difference"]), row["p"])
        console.print(shown)
    shown = Table(title="cost, mean over seeds", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("method", "tokens generated", "tokens trained", "steps", "seconds"):
        shown.add_column(name, justify="left" if name == "method" else "right")
    for line in cost_table(found):
        shown.add_row(*(line[key] for key in ("method", "tokens_generated", "tokens_trained", "steps", "seconds")))
    console.print(shown)
    for line in failures(found):
        console.print(f"failed: {line['method']} (seed {line['seeds']}): {line['reason']}", markup=False)
    for text in verdicts(found):
        console.print(text, markup=False)
    console.print(f"report: {out / 'report.html'}", markup=False)


def _text(shown: tuple[str, str]) -> str:
    """A value and its interval, in as little room as that takes."""
    value, span = shown
    return f"{value} [{span.replace('+', '').replace(' to ', ', ')}]" if span else value


def write_comparison_page(source: Path, out: Path) -> Path:
    """Write the page of the comparison in ``source`` to ``out`` and return ``out``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from drift.reporting.comparison_plots import accuracy_against_cost, curves

    found = read_comparison(source)
    environment = Environment(loader=PackageLoader("drift.reporting"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("comparison.html").render(
        title=f"drift: {len(found.methods) - 1} methods on {found.values['recipe']['environment']['name']}",
        subtitle=subtitle(found),
        verdicts=verdicts(found),
        found=found,
        modes=[
            {
                "name": mode,
                "rows": main_table(found, mode),
                "curves": Markup(curves(found, mode)),
                "cost": Markup(accuracy_against_cost(found, mode)),
            }
            for mode in found.modes
        ],
        costs=cost_table(found),
        failed=failures(found),
        settings=json.dumps(found.values["recipe"], indent=2, ensure_ascii=False),
    )
    write_atomic(out, page.encode("utf-8", errors="replace"))
    return out
