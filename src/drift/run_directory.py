"""The directory of a run: the recipe it was begun with, and which of its stages another recipe leaves valid."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drift.errors import ConfigError
from drift.files import refuse_others_folder, write_atomic, writing
from drift.manifest import MANIFEST, differing_keys
from drift.recipe import SECTIONS, Recipe
from drift.terminal import tell
from drift.yaml_files import read_mapping

RECIPE = "recipe.yaml"
# Where conversations are held and rows are computed changes none of them, nor does how many at a time.
FREE = (
    "cluster", "concurrency", "device", "training.num_processes", "training.tokens_per_batch", "training.save_steps",
    "training.arguments.gradient_checkpointing",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: what it is called.
        places: where in the directory of a run it lies.
        results: what is there once something was computed.
        quick: it is made again in moments, so that nothing is lost with it.
    """

    name: str
    places: tuple[str, ...]
    results: tuple[str, ...]
    quick: bool = False

    def found(self, out: Path) -> list[Path]:
        """Its results in ``out``."""
        return [path for pattern in self.results for path in sorted(out.glob(pattern))]


_MODEL = (f"model/{MANIFEST}", "model/checkpoints/checkpoint-*")
# In their order: a stage depends on those before it.
STAGES = (
    Stage(name="rollouts", places=("rollouts",), results=("rollouts/shards/*.parquet",)),
    Stage(name="weights", places=("weights",), results=(f"weights/{MANIFEST}",), quick=True),
    Stage(
        name="training",
        places=("model", "round-*"),
        results=(*_MODEL, *(f"round-*/{path}" for path in (*_MODEL, "rollouts/shards/*.parquet"))),
    ),
    Stage(
        name="evaluation",
        places=("evaluation", "likelihood"),
        results=(f"evaluation/{MANIFEST}", "evaluation/*/*/shards/*.parquet", f"likelihood/{MANIFEST}"),
    ),
)


def first_stage(key: str, values: Mapping[str, Any]) -> int:
    """The number of the first of ``STAGES`` that a dotted key of the recipe ``values`` changes."""
    head = key.partition(".")[0]
    if head in ("training", "rounds"):
        # Each round has weights of its own.
        return 1 if head == "rounds" else 2
    if head == "weights":
        return 1
    own = values["rounds"] == 1 and key.startswith("policy.tuned")
    logged = values["data"] is not None
    if head == "evaluation" or own or (logged and head in ("environment", "sampling", "policy", "rollouts")):
        return 3
    return 2 if logged and head == "seed" else 0


def take(values: Mapping[str, Any], out: Path, *, replace: bool = False, dry_run: bool = False) -> list[str]:
    """Make ``out`` the directory of a run by the resolved recipe ``values``; stages that stay valid are kept.

    Args:
        values: the recipe.
        out: a new directory, or that of a run that may have been begun with another recipe.
        replace: move results of stages that are no longer valid to ``out/replaced-N``, to make them again.
        dry_run: change nothing.

    Returns:
        Sentences that say what was corrected, which stages are kept and what was moved.

    Raises:
        ConfigError: results of a stage are no longer valid, and ``replace`` does not say to make them again.
    """
    changed, said = changed_keys(values, out, FREE), list[str]()
    if changed:
        number = min(first_stage(row.partition(":")[0], values) for row in changed)
        kept = [stage.name for stage in STAGES[:number] if stage.found(out)]
        lost = [stage.name for stage in STAGES[number:] if not stage.quick and stage.found(out)]
        keeps = f"Still valid and kept: {', '.join(kept) or 'nothing'}."
        if lost and not replace:
            raise ConfigError(
                f"{out} was begun with another recipe: {'; '.join(changed)}. Give another --out, or run the {RECIPE} "
                f"in it; or say --replace, and {', '.join(lost)} will be made again, what is there being moved to "
                f"{aside(out).name}. {keeps}"
            )
        said = [f"the recipe was corrected: {'; '.join(changed)}. {keeps}"]
        if not dry_run and (moved := _move(out, STAGES[number:])):
            said.append(f"what was made with the recipe before is in {moved}.")
    if not dry_run:
        write_recipe(values, out)
    return said


def aside(out: Path) -> Path:
    """Where what is replaced next is moved to."""
    return out / f"replaced-{1 + len(list(out.glob('replaced-*')))}"


def _move(out: Path, stages: Sequence[Stage]) -> Path | None:
    """Move what there is of ``stages``, with their recipe; returns where to."""
    found = [path for stage in stages for pattern in stage.places for path in sorted(out.glob(pattern))]
    if not found:
        return None
    place = aside(out)
    with writing(place):
        place.mkdir()
        shutil.copy(out / RECIPE, place / RECIPE)
        for path in found:
            path.replace(place / path.name)
    return place


def say(sentences: Sequence[str]) -> None:
    """Tell the person who waits, beside what the command prints."""
    for sentence in sentences:
        tell(f"drift: {sentence}", error=True)


def claim(values: Mapping[str, Any], out: Path) -> None:
    """Write a resolved recipe to ``out``; raises ``ConfigError`` as ``check_claim`` does."""
    check_claim(values, out)
    write_recipe(values, out)


def check_claim(values: Mapping[str, Any], out: Path) -> None:
    """Raise ``ConfigError`` where ``out`` was begun with another recipe."""
    changed = changed_keys(values, out, FREE)
    if changed:
        raise ConfigError(
            f"{out} was begun with another recipe: {'; '.join(changed)}. Give another --out, or run the {RECIPE} in it."
        )


def write_recipe(values: Mapping[str, Any], out: Path) -> None:
    """Write a resolved recipe as ``out/recipe.yaml``."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    refuse_others_folder(out)
    write_atomic(out / RECIPE, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).encode())


def changed_keys(values: Mapping[str, Any], out: Path, free: tuple[str, ...]) -> list[str]:
    """Keys in which ``values`` differ from the recipe in ``out``, as ``key: old -> new``, but for those in ``free``.

    A key that the recipe there lacks is newer than it, and had what is now the default.
    """
    path = out / RECIPE
    if not path.is_file():
        return []
    old: Mapping[str, Any] = read_mapping(path)
    defaults = Recipe().to_dict()
    inner = {name: {**defaults[name], **(old.get(name) or {})} for name in SECTIONS}
    return [row for row in differing_keys({**defaults, **old, **inner}, values) if not row.startswith(free)]
