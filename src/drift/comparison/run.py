"""The comparison itself: per seed shared rollouts and one measurement of the base, then method by method."""

from __future__ import annotations

import sys
from pathlib import Path

from drift.comparison.collate import COMPARISON, collate
from drift.comparison.jobs import FAILURES, FATAL, Failed, reason, run_in_processes
from drift.comparison.methods import BASE, WEIGHTED
from drift.comparison.settings import Comparison
from drift.comparison.work import Seed, opened, run_base, run_method
from drift.errors import Interrupted, require
from drift.manifest import write_json
from drift.pipeline import check_claim, check_recipe, one_process
from drift.reporting.page import write_comparison_page


def compare(comparison: Comparison, out: str | Path, *, jobs: int = 1, command: str = "") -> Path:
    """Run every method with every seed into ``out`` and write ``comparison.json`` and ``report.html``.

    What is finished is not run again, so the same call goes on where an earlier one stopped, and one with more methods
    or seeds costs those alone. A method that fails is told in the table, with its reason, and is tried again next time.

    Args:
        comparison: what to run.
        out: directory of the comparison.
        jobs: how many methods run at a time, each in a process with its share of the cores, and a GPU of its own where
            there are several. Results are the same but for rounding, where another number of threads computes them,
            and seconds are those of a shared machine.
        command: the command line that asks for it, for the record.

    Raises:
        ConfigError: some recipe is wrong, or ``out`` holds one of these methods with other settings.
        Interrupted: Ctrl-C.
    """
    one_process()
    out = Path(out)
    require(jobs >= 1, "jobs", jobs, "a whole number ≥ 1")
    check_comparison(comparison, out)
    try:
        failed = run_in_processes(comparison, out, jobs) if jobs > 1 else _run_here(comparison, out)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped: what was finished is in {out}. Run the same command again to go on.") from stop
    write_json(out / COMPARISON, collate(comparison, out, failed, command=command))
    write_comparison_page(out / COMPARISON, out / "report.html")
    return out


def check_comparison(comparison: Comparison, out: Path) -> None:
    """Find what can be found wrong without long work, of every method and seed."""
    if any(method.trainer != WEIGHTED for method in comparison.methods.values()):
        from drift.baselines.shared import trl_version

        trl_version()
    quality = comparison.recipe.evaluation.quality
    require(
        not quality.kl and not quality.judge,
        "evaluation.quality",
        "kl or a judge",
        "neither in a comparison",
        "Measure its models with drift evaluate: they lie in seed-N/methods/NAME/model.",
    )
    for number in comparison.seeds:
        for at, name in enumerate(comparison.methods):
            plan = comparison.plan_of(name, number)
            if not at:
                check_recipe(plan.recipe)
            check_claim(plan.to_dict(), out / f"seed-{number}" / "methods" / name)


def _run_here(comparison: Comparison, out: Path) -> Failed:
    """Run what is not finished, one after the other."""
    seeds = [Seed.of(comparison, number, out) for number in comparison.seeds]
    if not all(seed.finished(BASE) for seed in seeds):
        # One policy for all seeds: an engine may take a minute to start.
        with opened(comparison.recipe, comparison.recipe.policy.model) as policy:
            for seed in seeds:
                if not seed.finished(BASE):
                    _say(f"seed {seed.number}: rollouts and {BASE}")
                    run_base(seed, policy)
    failed: Failed = {}
    todo = [(seed, name) for seed in seeds for name in comparison.methods if not seed.finished(name)]
    for at, (seed, name) in enumerate(todo, 1):
        _say(f"seed {seed.number}: {name} ({at} of {len(todo)})")
        try:
            run_method(comparison, seed, name)
        except FAILURES as error:
            if isinstance(error, FATAL):
                raise
            _say(f"seed {seed.number}: {name} failed: {reason(error)}")
            failed.setdefault(name, {})[seed.number] = reason(error)
    return failed


def _say(text: str) -> None:
    print(f"drift compare: {text}", file=sys.stderr, flush=True)
