"""The result in a terminal: the verdict, the main table, where the page is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from drift import terminal
from drift.manifest import read_manifest
from drift.reporting.comparison import cost_table, failures, level, main_table, read_comparison, subtitle, verdicts
from drift.reporting.facts import read_facts, table, verdict, warnings_of
from drift.reporting.preview import Preview, lines
from drift.reporting.sentences import summary_of
from drift.terminal import clean, tell


def print_summary(place: os.PathLike[str]) -> None:
    """Print what an evaluation in ``place`` found, with 95 % intervals, or what was done where nothing was measured."""
    run = Path(place)
    if getattr(place, "kind", "") == "likelihood":
        tell("\n".join([f"{place}:", *summary_of("likelihood", read_manifest(run, "likelihood"), run)]))
        return
    facts = read_facts(run, conversations=0)
    console = terminal.console()
    stages = (("trajectories", facts.rollouts), ("weights", facts.weights), ("model", facts.model))
    before = [(kind, manifest) for kind, manifest in stages if manifest and not facts.evaluation]
    told = [line for kind, manifest in before for line in summary_of(kind, manifest, run / "rollouts")]
    # Rollouts and weights both say how many succeeded.
    for line in dict.fromkeys([*told, *facts.likelihood]):
        console.print(line)
    for mode in facts.measured["modes"] if facts.evaluation else ():
        title = f"{mode}, {facts.measured['tasks']} held-out tasks, 95 % intervals"
        shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        shown.add_column("metric")
        for name in facts.policies:
            shown.add_column(name, justify="right")
        if len(facts.policies) > 1:
            shown.add_column(f"{facts.policies[-1]} - {facts.policies[0]}", justify="right")
        for row in table(facts, mode):
            if not row["main"]:
                continue
            cells = [*row["cells"], *([row["difference"]] if row["difference"] else [])]
            # Without plus signs a row of two policies and their difference fits 80 columns.
            ranges = (f"[{span.replace('+', '').replace(' to ', ', ')}]" if span else "" for _, span in cells)
            texts = (f"{value} {span}".rstrip() for (value, _), span in zip(cells, ranges, strict=True))
            shown.add_row(row["metric"], *texts)
        console.print(shown)
    for line in warnings_of(facts):
        console.print(line)
    console.print(verdict(facts))
    if (run / "report.html").is_file():
        console.print(f"report: {run / 'report.html'}")


def print_findings(checked: Any) -> int:
    """Print what a check found; returns the exit code, 1 if anything was not in order."""
    tell("\n".join(checked.lines))
    return 1 if checked.failed else 0


def print_import(data: Any) -> None:
    """Print what of a log came in, and what did not and why."""
    from drift.dataset.imports.remarks import in_words
    from drift.dataset.imports.run import SHOWN, listing, read_rejected

    manifest = data.manifest
    if manifest["excluded"]:
        refused = [row for row in read_rejected(data.path, 50 * SHOWN) if row.reason in manifest["excluded"]]
        tell(listing(refused[:SHOWN]), error=True)
        counts = ", ".join(f"{reason} {count}" for reason, count in manifest["excluded"].items())
        tell(f"left out {sum(manifest['excluded'].values()):,} of {manifest['rows']:,} rows: {counts}")
    tell("\n".join(in_words(manifest["counted"], manifest["unused"], manifest["rows"])))
    tell("\n".join([f"{data}:", *data.summary()]))


def print_export(manifest: Mapping[str, Any]) -> None:
    """Print what was made of the conversations."""
    counts = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in manifest["counts"].items())
    tell(f"{manifest['file']}: {counts}")
    if any((manifest["rendered"] or {}).values()):
        counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in manifest["rendered"].items() if value)
        tell(f"rendered again: {counts}")


def print_preview(preview: Preview) -> None:
    """Print conversations with what will be trained in colour: green is imitated, red pushed away."""
    console = terminal.console()
    for line in (*preview.sentences, *lines(preview)):
        console.print(line)
    for each in preview.shown:
        console.rule(Text(clean(f"{each.id} ({each.outcome})")), align="left", style="dim")
        for said in each.said:
            mark, style = ("", "dim") if said.weight is None else (f" [{said.weight:.4g}]", "dim strike")
            style = "green" if said.weight and said.weight > 0 else "red" if said.weight else style
            why = f"  ({said.why})" if said.why else ""
            said_by = Text(clean(f"{said.role}{mark}:{why}"), style="bold")
            console.print(said_by, Text(clean(said.text), style=style), sep="\n")
        if each.why:
            console.print(Text(clean(f"not trained: {each.why}"), style="bold"))
    if preview.page:
        console.print(f"page: {preview.page}")


def print_comparison(place: os.PathLike[str]) -> None:
    """Print tables and verdicts of the comparison in ``place``: what decides first, then how, then at what cost."""
    out = Path(place)
    found, console = read_comparison(out), terminal.console()
    final = f"multi@{found.max_turns}"
    console.print(f"{subtitle(found)}; {level(found)}, p by Holm")
    for mode in found.modes:
        rows = [
            [
                row["method"],
                row["cells"]["multi@1"][0],
                _in_brackets(row["cells"][final]),
                _in_brackets(row["difference"]),
                row["p"],
            ]
            for row in main_table(found, mode)
        ]
        console.print(_table(mode, ["method", "multi@1", final, f"{final} - {found.against}", "p"], rows))
    names = [name for name in found.columns() if name not in ("multi@1", final)]
    how = {mode: {row["method"]: row["cells"] for row in main_table(found, mode)} for mode in found.modes}
    lines = [
        [method, *(" / ".join(how[mode][method][name][0] for mode in found.modes) for name in names)]
        for method in found.ordered(found.modes[0])
    ]
    console.print(_table(" / ".join(found.modes), ["method", *(name.replace("_", " ") for name in names)], lines))
    costs = [
        [line[key] for key in ("method", "tokens_generated", "tokens_trained", "steps", "seconds")]
        for line in cost_table(found)
    ]
    heads = ["method", "tokens generated", "tokens trained", "steps", "seconds"]
    console.print(_table("cost, mean over seeds", heads, costs))
    for line in failures(found):
        console.print(f"failed: {line['method']} (seed {line['seeds']}): {line['reason']}")
    for text in verdicts(found):
        console.print(text)
    console.print(f"report: {out / 'report.html'}")


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in heads:
        shown.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def _in_brackets(shown: tuple[str, str]) -> str:
    """A value and its interval, in as little room as that takes."""
    value, span = shown
    return f"{value} [{span.replace('+', '').replace(' to ', ', ')}]" if span else value
