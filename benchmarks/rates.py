"""The learning rate of each method: a sweep on a seed that nothing is reported with, and what it chooses.

    python benchmarks/rates.py sweep benchmarks/swept-guess.yaml runs/rates-guess.yaml --rates 3e-4 1e-3 3e-3
    drift compare runs/rates-guess.yaml --jobs 2 --out runs/rates-guess
    python benchmarks/rates.py choose benchmarks/swept-guess.yaml runs/rates-guess

``sweep`` writes the comparison of every method at every rate, named METHOD-RATE; ``choose`` writes into the comparison,
for each method, the rate with the most of a metric, sampled, and where rates tie, greedily.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from drift.comparison.methods import METHODS
from drift.reporting.comparison import read_comparison

RATE, SWEPT, SEED, TASKS = "training.learning_rate", "-swept", 9, 100


def sweep(comparison: Path, out: Path, rates: list[float]) -> None:
    """Write to ``out`` the methods of ``comparison`` at every one of ``rates``, on ``SEED`` and few held-out tasks."""
    values = yaml.safe_load(comparison.read_text(encoding="utf-8"))
    own, define = values.get("define", {}), {}
    for rate in rates:
        for name in values["methods"]:
            changes = own[name] if name in own else dict(METHODS[name].overrides)
            define[f"{name.removesuffix(SWEPT)}-{rate:g}"] = {**changes, RATE: rate}
    recipe = {**values["recipe"], "evaluation": {"tasks": TASKS, "samples": 1}}
    found = {
        "recipe": recipe,
        "define": define,
        "methods": list(define),
        "seeds": [SEED],
        "against": next(iter(define)),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")


def choose(comparison: Path, swept: Path, metric: str) -> None:
    """Write the rates that did best in the comparison in ``swept`` to ``comparison``, and print them."""
    found = read_comparison(swept)
    metric = metric or f"multi@{found.max_turns}"
    best: dict[str, tuple[tuple[float, ...], float]] = {}
    for name in found.values["methods"]:
        rate = found.values["methods"][name]["overrides"][RATE]
        method = name.removesuffix(f"-{rate:g}")
        scores = tuple(round(found.rows[name, f"{mode}/{metric}"]["value"], 6) for mode in ("sampled", "greedy"))
        if method not in best or scores > best[method][0]:
            best[method] = scores, rate
    values: dict[str, Any] = yaml.safe_load(comparison.read_text(encoding="utf-8"))
    for method, (scores, rate) in best.items():
        values["define"][method + SWEPT][RATE] = rate
        print(f"{method}: {rate:g} ({', '.join(f'{100 * score:.1f} %' for score in scores)})")
    head = "".join(line for line in comparison.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    comparison.write_text(head + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def main() -> None:
    """Write a sweep, or what it chose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["sweep", "choose"])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("path", type=Path, help="of the sweep to write, or of the one that was run")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--metric", default="", help="the last multi@k unless given")
    given = parser.parse_args()
    if given.verb == "sweep":
        sweep(given.comparison, given.path, given.rates)
    else:
        choose(given.comparison, given.path, given.metric)


if __name__ == "__main__":
    main()
