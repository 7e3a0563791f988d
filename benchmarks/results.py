"""docs/results.md from the comparisons in docs/results/: no figure in it is typed.

Keep what a finished comparison found, then write the page:

    python benchmarks/results.py keep runs/compare-guess/comparison.json guess
    python benchmarks/results.py write

``docs/results/index.yaml`` says which tables there are:

    - title: Methods on environments
      text: What is shown, in a sentence or two.
      columns: {arithmetic: arithmetic, guess 1 to 20: guess}    # heading: name of a kept comparison
      mode: greedy            # or sampled
      metric: multi@5         # the last turn unless given
      rows: [sft, drift]      # all methods, in the order of their mean, unless given
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from drift.errors import ConfigError, unknown_name
from drift.reporting.comparison import LEVEL, Found, cell, cost_table, failures, main_table, read_comparison, subtitle
from drift.reporting.comparison import verdicts as verdicts_of

FOLDER = Path(__file__).parents[1] / "docs" / "results"
# Of the rows, and of the differences.
KEPT = {
    "rows": ("multi@", "above_floor@", "corrected@", "distinct_answers", "turns", "reward"),
    "differences": ("multi@", "reward"),
}
HEAD = """# Results

Made by `make results` from the comparisons in [results/](results); nothing here is typed. Each table says which
commands made it: run one, then `python benchmarks/results.py keep DIR/comparison.json NAME`.

Figures are per cent with 95 % intervals over prompts and seeds. ▲ and ▼: better or worse than the method that the
comparison's differences are from, at 5 %, corrected for the number of methods (Holm).
"""


def keep(source: Path, target: Path) -> None:
    """Write the figures of ``source`` that the page shows to ``target``, a line for each: changes can be read."""
    values = read_comparison(source).values
    kept: dict[str, Any] = {key: value for key, value in values.items() if key not in ("rows", "differences")}
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, sort_keys=True)}" for key, value in kept.items()
    ]
    for key, metrics in KEPT.items():
        rows = [row for row in values[key] if row["metric"].partition("/")[2].startswith(metrics)]
        texts = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        lines.append(f' "{key}": [\n  {texts}\n ]')
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def page(folder: Path) -> str:
    """The whole page from ``index.yaml`` and the kept comparisons in ``folder``."""
    found = {path.stem: read_comparison(path) for path in sorted(folder.glob("*.json"))}
    index = folder / "index.yaml"
    usual = [{"title": "Methods on environments", "columns": {name: name for name in found}}] if found else []
    tables = yaml.safe_load(index.read_text()) if index.is_file() else usual
    parts = [HEAD]
    shown: list[str] = []
    for table in tables:
        for name in table["columns"].values():
            if name not in found:
                raise unknown_name("comparison", name, found, where=str(index))
            shown += [name] if name not in shown else []
        parts.append(summary(table, {heading: found[name] for heading, name in table["columns"].items()}))
    parts += ["## Each comparison\n"] if found else []
    parts += [detail(name, found[name]) for name in [*shown, *(name for name in found if name not in shown)]]
    return "\n".join(parts)


def summary(table: dict[str, Any], columns: dict[str, Found]) -> str:
    """One table, methods by comparisons, in the shape of the paper's Table 1."""
    unknown = table.keys() - {"title", "text", "columns", "mode", "metric", "rows"}
    if unknown:
        raise ConfigError(f"{table.get('title')}: unknown key {min(unknown)!r}, see benchmarks/results.py.")
    mode = table.get("mode", "greedy")
    metrics = {head: table.get("metric") or f"multi@{found.max_turns}" for head, found in columns.items()}

    def value(method: str, head: str) -> float | None:
        row = columns[head].rows.get((method, f"{mode}/{metrics[head]}"))
        return None if row is None else row["value"]

    def mean(method: str) -> float | None:
        values = [value(method, head) for head in columns]
        return None if None in values else sum(v for v in values if v is not None) / len(values)

    named = dict.fromkeys(name for found in columns.values() for name in (*found.values["methods"], "base"))
    methods = table.get("rows") or sorted(
        (name for name in named if name != "base"),
        key=lambda name: (-(mean(name) if mean(name) is not None else -1), name),
    )
    heads = [*columns, *(["mean"] if len(columns) > 1 else [])]
    kinds = ", ".join(sorted(set(metrics.values())))
    lines = [f"## {table['title']}\n", *([table["text"].strip() + "\n"] if table.get("text") else [])]
    lines += [f"{kinds}, {mode}.\n", "| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method in [*(name for name in methods if name != "base"), "base"]:
        cells = [_cell(columns[head], method, f"{mode}/{metrics[head]}", metrics[head]) for head in columns]
        if len(columns) > 1:
            average = mean(method)
            cells.append("" if average is None else f"{100 * average:.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines.append("")
    for head, found in columns.items():
        lines.append(f"- {head}: `{found.values['command']}`; differences from {found.against}.")
    return "\n".join(lines) + "\n"


def _cell(found: Found, method: str, metric: str, name: str) -> str:
    if method in found.values["failed"]:
        return "failed"
    shown, span = cell(found.rows.get((method, metric)), name)
    difference = found.differences.get((method, metric))
    sure = difference is not None and difference["p_holm"] is not None and difference["p_holm"] < LEVEL
    mark = "" if not sure or difference is None else " ▲" if difference["value"] > 0 else " ▼"
    return f"{shown} [{span.replace(' to ', ', ')}]{mark}" if span else shown + mark


def detail(name: str, found: Found) -> str:
    """Everything kept of one comparison."""
    lines = [f"### {name}\n", f"{subtitle(found)}.\n", f"`{found.values['command']}`\n"]
    lines += [f"- {text}" for text in verdicts_of(found)]
    lines += [
        f"- failed: {row['method']} (seed {row['seeds']}): {' '.join(row['reason'].split())}" for row in failures(found)
    ]
    final = f"multi@{found.max_turns}"
    for mode in found.modes:
        heads = [*(column.replace("_", " ") for column in found.columns()), f"{final} − {found.against}", "p (Holm)"]
        lines += [f"\n{mode}:\n", "| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for row in main_table(found, mode):
            cells = [*row["cells"].values(), row["difference"]]
            texts = [f"{value} [{span.replace(' to ', ', ')}]" if span else value for value, span in cells]
            lines.append(f"| {row['method']} | " + " | ".join([*texts, row["p"]]) + " |")
    lines += [
        "\ncost, mean over seeds:\n",
        "| method | tokens generated | tokens trained | steps | seconds |",
        "|---" * 5 + "|",
    ]
    for line in cost_table(found):
        keys = ("method", "tokens_generated", "tokens_trained", "steps", "seconds")
        lines.append("| " + " | ".join(line[key] for key in keys) + " |")
    versions = ", ".join(f"{package} {version}" for package, version in found.values["packages"].items())
    return "\n".join([*lines, f"\n{versions}\n"])


def main() -> None:
    """Keep a comparison, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    kept = verbs.add_parser("keep")
    kept.add_argument("source", type=Path)
    kept.add_argument("name")
    kept.add_argument("--folder", type=Path, default=FOLDER)
    written = verbs.add_parser("write")
    written.add_argument("--folder", type=Path, default=FOLDER)
    written.add_argument("--out", type=Path, default=FOLDER.parent / "results.md")
    given = parser.parse_args()
    if given.verb == "keep":
        keep(given.source, given.folder / f"{given.name}.json")
    else:
        given.out.write_text(page(given.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
