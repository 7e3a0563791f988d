"""The comparison itself: per seed shared rollouts and one measurement of the base, then method by method."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drift.artifacts import COMPARISON as KIND
from drift.artifacts import Artifact
from drift.comparison.collate import COMPARISON, collate
from drift.comparison.jobs import FAILURES, FATAL, Failed, reason, run_in_processes
from drift.comparison.methods import BASE, WEIGHTED, find_methods
from drift.comparison.settings import Comparison, load_comparison
from drift.comparison.work import Seed, opened, run_base, run_method
from drift.errors import Interrupted, TrainingError, require
from drift.manifest import write_json
from drift.pipeline import one_process
from drift.preflight import check_recipe
from drift.recipe import make_recipe, override
from drift.record import write_record
from drift.registry import plain
from drift.reporting.page import write_comparison_page
from drift.run_directory import check_claim
from drift.serving import check_tuned, loads_adapter
from drift.terminal import tell


def compare(
    recipe: Any = "quickstart",
    *,
    methods: Sequence[str] | str = (),
    seeds: Sequence[int] | int = (),
    against: str = "",
    jobs: int = 1,
    out: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    **keys: Any,
) -> Artifact | None:
    """Run many methods and seeds on one recipe, and say which is better.

    Args:
        recipe: a built-in recipe or comparison, or a YAML file of either.
        methods: names of methods, such as [drift, sft, rft].
        seeds: whole numbers, each of which decides tasks, samples and the order of rows; 1, 2 and 3 unless given.
        against: what the others are compared with: a method, or base.
        jobs: how many methods run at a time.
        out: directory of the comparison; runs/compare-NAME unless given.
        dry_run: check everything, print what would run, and stop.
        keys: any key of a recipe.
    """
    given = load_comparison(os.fspath(recipe))
    values = override(given.recipe, keys, "compare", ("methods", "seeds", "against", "jobs", "out", "dry_run"))
    names = tuple(_several(methods)) or given.methods
    comparison = Comparison(
        recipe=make_recipe(values, str(recipe)),
        methods=find_methods(names, given.own),
        seeds=_numbers(seeds) or given.seeds,
        against=against or given.against_among(names),
    )
    place = Path(out or f"runs/compare-{Path(recipe).stem}")
    if dry_run:
        check_comparison(comparison, place)
        for name, method in comparison.methods.items():
            tell(f"{name}: {method.summary}")
        tell(f"seeds {', '.join(map(str, comparison.seeds))}, compared with {comparison.against}")
        return None
    run_comparison(comparison, place, jobs=jobs, command=_command(recipe, methods, seeds, against, keys))
    return Artifact(place, KIND)


def _several(given: Any) -> list[Any]:
    """One thing or several as a list."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    return [given] if isinstance(given, int) else list(given)


def _numbers(seeds: Any) -> tuple[int, ...]:
    found = [str(each) for each in _several(seeds)]
    require(all(each.lstrip("-").isdecimal() for each in found), "seeds", seeds, "whole numbers, such as 1,2,3")
    return tuple(map(int, found))


def _command(recipe: Any, methods: Any, seeds: Any, against: str, keys: Mapping[str, Any]) -> str:
    """The command line that asks for what decides the result: where it goes, and how many at a time, does not."""
    words = ["drift", "compare", os.fspath(recipe)]
    several = {"methods": _several(methods), "seeds": _several(seeds)}
    words += [f"--{name}={','.join(map(str, value))}" for name, value in several.items() if value]
    words += [f"--against={against}"] if against else []
    words += [f"--{key}={value if isinstance(value, str) else json.dumps(plain(value))}" for key, value in keys.items()]
    return shlex.join(words)


def run_comparison(comparison: Comparison, out: str | Path, *, jobs: int = 1, command: str = "") -> Path:
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
        TrainingError: no method got to its end; the page says of each why.
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
    write_record(out)
    if len(failed) == len(comparison.methods):
        name, reasons = next(iter(failed.items()))
        raise TrainingError(
            f"no method got to its end, so that there is nothing to compare. {name}: {next(iter(reasons.values()))} "
            "Correct that and run the same command again: what is finished is not run again."
        )
    return out


def check_comparison(comparison: Comparison, out: Path) -> None:
    """Find what can be found wrong without long work, of every method and seed."""
    if any(method.trainer != WEIGHTED for method in comparison.methods.values()):
        from drift.baselines.shared import trl_version

        trl_version()
    config = comparison.recipe.evaluation
    require(
        not config.kl and not config.judge,
        "evaluation",
        "kl or a judge",
        "neither in a comparison",
        "Measure its models with drift evaluate: they lie in seed-N/methods/NAME/model.",
    )
    require(
        bool(comparison.recipe.environment),
        "environment",
        None,
        "one to measure in: methods that learn from logged conversations are compared by what they do there",
    )
    for number in comparison.seeds:
        for at, name in enumerate(comparison.methods):
            plan = comparison.plan_of(name, number)
            if not at:
                check_recipe(plan.recipe)
            elif loads_adapter(plan.recipe):
                check_tuned(plan.recipe, adapter=bool(plan.recipe.training.lora) and plan.settings is None)
            check_claim(plan.to_dict(), out / f"seed-{number}" / "methods" / name)


def _run_here(comparison: Comparison, out: Path) -> Failed:
    """Run what is not finished, one after the other."""
    seeds = [Seed.of(comparison, number, out) for number in comparison.seeds]
    if not all(seed.finished(BASE) for seed in seeds):
        # One policy for all seeds: an engine may take a minute to start.
        with opened(comparison.recipe) as policy:
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
    tell(f"drift compare: {text}", error=True)
