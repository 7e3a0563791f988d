"""One piece of a comparison: the rollouts and the base of a seed, or one method with one seed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift.comparison.methods import BASE
from drift.comparison.settings import Comparison
from drift.evaluation.run import check_unseen, held_out_tasks, hold_modes, modes_of
from drift.manifest import MANIFEST, write_json, write_manifest
from drift.pipeline import sample
from drift.recipe import Recipe
from drift.rollouts.cluster import sampler
from drift.run_directory import claim
from drift.serving import who_samples

KIND = "method"
SPENT = "seconds.json"


@dataclass(frozen=True, kw_only=True)
class Seed:
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
        """Where the shared conversations lie."""
        return self.folder / "rollouts"

    @classmethod
    def of(cls, comparison: Comparison, number: int, out: Path) -> Seed:
        """Seed ``number`` of a comparison in ``out``."""
        return cls(number=number, folder=out / f"seed-{number}", recipe=replace(comparison.recipe, seed=number))

    def method(self, name: str) -> Path:
        """Where a method lies."""
        return self.folder / "methods" / name

    def finished(self, name: str) -> bool:
        """Whether all of a method is there."""
        return (self.method(name) / MANIFEST).is_file()


def run_base(seed: Seed, policy: Any) -> None:
    """Hold the conversations that all methods of a seed share, and measure the model that held them."""
    sample(seed.recipe, seed.rollouts, source=policy)
    _measure(seed, BASE, policy)
    _finish(seed, BASE, {})


@contextmanager
def opened(recipe: Recipe, model: Path | None = None) -> Iterator[Any]:
    """The policy of the recipe's model, or of the tuned one in a folder; an engine stays up for several collections."""
    opened = sampler(recipe.cluster, who_samples(recipe, model))
    with opened as policy, getattr(policy, "keep_running", nullcontext)():
        yield policy


def run_method(comparison: Comparison, seed: Seed, name: str) -> None:
    """Train and measure one method; raises what its stages raise."""
    folder, plan = seed.method(name), comparison.plan_of(name, seed.number)
    claim(plan.to_dict(), folder)
    with _clock(folder):
        model = plan.train(seed.rollouts, folder)
    with opened(seed.recipe, model) as policy:
        _measure(seed, name, policy)
    _finish(seed, name, plan.costs(folder))


def _measure(seed: Seed, name: str, policy: Any) -> None:
    recipe, setup = seed.recipe, seed.recipe.setup
    factory, modes = setup.make_environment(), modes_of(recipe.evaluation, recipe.sampling)
    tasks = held_out_tasks(factory, recipe.evaluation, seed.number)
    check_unseen(tasks, seed.rollouts)
    places = {mode: seed.method(name) / mode for mode in modes}
    more: dict[str, Any] = {"seed": seed.number, "concurrency": recipe.concurrency, "label": name}
    hold_modes(tasks, factory, policy, modes, places, setup.record, **more)


def _finish(seed: Seed, name: str, costs: Mapping[str, Any]) -> None:
    """Write the manifest of a finished method: what it cost, beside the rollouts where it shares them."""
    folder = seed.method(name)
    content = {"name": name, "seed": seed.number, **costs, "seconds": round(_spent(folder), 3)}
    write_manifest(folder, KIND, content, sources=_sources(seed, folder))


def _sources(seed: Seed, folder: Path) -> dict[str, Path]:
    """What a method was made of: the conversations that all share, its own stages and those it was measured on."""
    stages = [path.parent for path in sorted(folder.rglob(MANIFEST)) if path.parent != folder]
    return {"rollouts": seed.rollouts, **{path.relative_to(folder).as_posix(): path for path in stages}}


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
