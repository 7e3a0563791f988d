"""The result in a terminal: the verdict, the main table, where the page is."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from drift.reporting.facts import read_facts, table, verdict


def print_summary(run: Path) -> None:
    """Print what an evaluation in ``run`` found, with 95 % intervals."""
    facts = read_facts(run, conversations=0)
    console = Console(highlight=False)
    for mode in facts.evaluation["modes"]:
        title = f"{mode}, {facts.evaluation['tasks']} held-out tasks, 95 % intervals"
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
    console.print(verdict(facts))
    if (run / "report.html").is_file():
        console.print(f"report: {run / 'report.html'}")
