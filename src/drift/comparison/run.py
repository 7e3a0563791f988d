"""The comparison itself: per seed shared rollouts and one measurement of the base, then method by method."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift.comparison.collate import COMPARISON, collate
from drift.comparison.methods import BASE, WEIGHTED
from drift.comparison.plans import Plan
from drift.comparison.settings import Comparison
from drift.environments import make_environment
from drift.environments.base import EnvironmentFactory
from drift.errors import DriftError, Interrupted, StorageError
from drift.evaluation.run import EvaluationConfig, check_unseen, hold_modes, modes_of
from drift.manifest import MANIFEST, write_json, write_manifest
from drift.pipeline import check_claim, check_recipe, claim, one_process, roll_out
from drift.recipe import Recipe
from drift.reporting.page import write_comparison_page
from drift.rollouts.cluster import sampler
from drift.rollouts.worker import Making

KIND = "method"
SPENT = "seconds.json"


@dataclass(frozen=True, kw_only=True)
class _Seed:
    """What the methods of one seed share.

    Attributes:
        number: the seed.
        folder: of everything that is of this seed.
        recipe: with this seed, before any method changes it.
    """

    number: int
    folder: Path
    recipe: Recipe

    @property
    def rollouts(self) -> Path:
        return self.folder / "rollouts"

    def method(self, name: str) -> Path:
        return self.folder / "methods" / name


def compare(comparison: Comparison, out: str | Path, *, command: str = "") -> Path:
    """Run every method with every seed into ``out`` and write ``comparison.json`` and ``report.html``.

    What is finished is not run again, so the same call goes on where an earlier one stopped, and one with more methods
    or seeds costs those alone. A method that fails is told in the table, with its reason, and is tried again next time.

    Args:
        comparison: what to run.
        out: directory of the comparison.
        command: the command line that asks for it, for the record.

    Raises:
        ConfigError: some recipe is wrong, or ``out`` holds one of these methods with other settings.
        Interrupted: Ctrl-C.
    """
    one_process()
    out = Path(out)
    seeds = [
        _Seed(number=number, folder=out / f"seed-{number}", recipe=replace(comparison.recipe, seed=number))
        for number in comparison.seeds
    ]
    check_comparison(comparison, out)
    try:
        failed = _run_all(comparison, seeds)
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
    for number in comparison.seeds:
        for at, name in enumerate(comparison.methods):
            plan = comparison.plan_of(name, number)
            if not at:
                check_recipe(plan.recipe)
            check_claim(plan.to_dict(), out / f"seed-{number}" / "methods" / name)


def _run_all(comparison: Comparison, seeds: list[_Seed]) -> dict[str, dict[int, str]]:
    """Run what is not finished; returns reasons of failure by method and seed."""
    if not all(_finished(seed.method(BASE)) for seed in seeds):
        making = _making(comparison.recipe, comparison.recipe.policy.model)
        # One policy for all seeds: an engine may take a minute to start.
        with sampler(comparison.recipe.rollouts.cluster, making) as policy, _held(policy):
            for seed in seeds:
                if not _finished(seed.method(BASE)):
                    _say(f"seed {seed.number}: rollouts and {BASE}")
                    roll_out(seed.recipe, seed.rollouts, source=policy)
                    _measure(seed, BASE, policy)
                    _finish(seed, BASE, {})
    failed: dict[str, dict[int, str]] = {}
    todo = [(seed, name) for seed in seeds for name in comparison.methods if not _finished(seed.method(name))]
    for at, (seed, name) in enumerate(todo, 1):
        _say(f"seed {seed.number}: {name} ({at} of {len(todo)})")
        try:
            _run_method(seed, name, comparison.plan_of(name, seed.number))
        except (Interrupted, StorageError):
            raise
        except (DriftError, RuntimeError, MemoryError) as error:
            # Running out of a GPU's memory is a RuntimeError, and says nothing about the other methods.
            reason = str(error) if isinstance(error, DriftError) else f"{type(error).__name__}: {error}"
            _say(f"seed {seed.number}: {name} failed: {reason}")
            failed.setdefault(name, {})[seed.number] = reason
    return failed


def _run_method(seed: _Seed, name: str, plan: Plan) -> None:
    folder = seed.method(name)
    claim(plan.to_dict(), folder)
    with _clock(folder):
        model = plan.train(seed.rollouts, folder)
    with sampler(seed.recipe.rollouts.cluster, _making(seed.recipe, str(model))) as policy, _held(policy):
        _measure(seed, name, policy)
    _finish(seed, name, plan.costs(folder))


def _measure(seed: _Seed, name: str, policy: Any) -> None:
    recipe, config = seed.recipe, evaluation_of(seed.recipe)
    factory = _factory(recipe)
    tasks = factory.tasks(config.split, config.tasks, seed.number)
    check_unseen(tasks, seed.rollouts)
    places = {mode: seed.method(name) / mode for mode in modes_of(config)}
    environment = {"name": recipe.environment.name, "settings": dict(recipe.environment.settings)}
    hold_modes(tasks, factory, policy, config, places, environment, seed=seed.number, label=name)


def _finish(seed: _Seed, name: str, costs: Mapping[str, Any]) -> None:
    """Write the manifest of a finished method: what it cost, beside the rollouts where it shares them."""
    folder = seed.method(name)
    write_manifest(folder, KIND, {"name": name, "seed": seed.number, **costs, "seconds": round(_spent(folder), 3)})


@contextmanager
def _clock(folder: Path) -> Iterator[None]:
    """Add what the work within takes to what interrupted runs of it took before."""
    start, before = time.monotonic(), _spent(folder)
    try:
        yield
    finally:
        write_json(folder / SPENT, {"seconds": before + time.monotonic() - start})


def _spent(folder: Path) -> float:
    path = folder / SPENT
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def _finished(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def evaluation_of(recipe: Recipe) -> EvaluationConfig:
    """How methods are measured."""
    return EvaluationConfig(
        tasks=recipe.evaluation.tasks, samples=recipe.evaluation.samples, sampling=recipe.rollouts.sampling
    )


def _factory(recipe: Recipe) -> EnvironmentFactory:
    return make_environment(recipe.environment.name, recipe.environment.settings)


def _making(recipe: Recipe, model: str) -> Making:
    choice = recipe.policy
    environment: Mapping[str, Any] = {"name": recipe.environment.name, "settings": dict(recipe.environment.settings)}
    usual = {"dtype": choice.dtype, "device": choice.device, "batch_size": choice.batch_size}
    return Making(environment=environment, model=model, settings=choice.settings, usual=usual)


def _held(policy: Any) -> Any:
    return getattr(policy, "held_open", nullcontext)()


def _say(text: str) -> None:
    print(f"drift compare: {text}", file=sys.stderr, flush=True)
