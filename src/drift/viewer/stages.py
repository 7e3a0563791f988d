"""What a directory holds that can be looked at: every stage by its name, the conversations among them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.dataset.store import KIND as TRAJECTORIES
from drift.errors import DatasetError, unknown_name
from drift.evaluation.likelihood import KIND as LIKELIHOOD
from drift.evaluation.run import KIND as EVALUATION
from drift.manifest import MANIFEST, read_manifest
from drift.training.config import KIND as MODEL
from drift.weights.table import KIND as WEIGHTS

# A training that is under way has no manifest yet.
TRAINING = "training"
KINDS = (TRAJECTORIES, WEIGHTS, MODEL, TRAINING, EVALUATION, LIKELIHOOD)
# Folders in which no stage lies, and how deep one may: seed-1/methods/NAME/round-2/weights.
_WITHOUT_STAGES = {"shards", "checkpoints", "unfinished"}
_DEEPEST = 6
METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A directory that a stage wrote.

    Attributes:
        name: its path below what is looked at, or its own name where it is that.
        path: the directory.
        kind: what is in it.
        manifest: what it says of itself; empty where that can't be read.
        problem: why not.
    """

    name: str
    path: Path
    kind: str
    manifest: dict[str, Any]
    problem: str = ""


def find_stages(root: Path) -> list[Stage]:
    """Every stage in ``root`` and below, in the order in which they are made."""
    stages = [stage for path in _folders(root) if (stage := _stage(root, path))]
    return sorted(
        stages, key=lambda stage: (stage.path.parent.relative_to(root.parent).parts, _order(stage), stage.name)
    )


def _order(stage: Stage) -> int:
    return KINDS.index(stage.kind) if stage.kind in KINDS else len(KINDS)


def _folders(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        path = Path(folder)
        deep = len(path.relative_to(root).parts) >= _DEEPEST
        inner[:] = [] if deep else sorted(name for name in inner if name not in _WITHOUT_STAGES and name[0] != ".")
        if MANIFEST in files or METRICS in files:
            yield path


def _stage(root: Path, path: Path) -> Stage | None:
    name = path.relative_to(root).as_posix() if path != root else path.resolve().name
    if not (path / MANIFEST).is_file():
        return Stage(name=name, path=path, kind=TRAINING, manifest={})
    try:
        kind = str(json.loads((path / MANIFEST).read_text())["kind"])
        if kind not in KINDS:
            return None
        return Stage(name=name, path=path, kind=kind, manifest=read_manifest(path, kind))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Stage(name=name, path=path, kind="unreadable", manifest={}, problem=str(error))


def data_stages(stages: Sequence[Stage]) -> list[Stage]:
    """Those that hold conversations."""
    return [stage for stage in stages if stage.kind == TRAJECTORIES]


def weights_of(data: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The weights that were made of the data set in ``data`` as it is now."""
    made_of = data.manifest.get("dataset_hash")
    return [s for s in stages if s.kind == WEIGHTS and made_of and s.manifest["dataset_hash"] == made_of]


def stage_named(stages: Sequence[Stage], name: str, kind: str) -> Stage:
    """The stage of a kind and a name; raises ``ConfigError`` where there is none."""
    for stage in stages:
        if stage.kind == kind and stage.name == name:
            return stage
    raise unknown_name(kind, name, [stage.name for stage in stages if stage.kind == kind])


def require_stages(root: Path) -> list[Stage]:
    """The stages in ``root``; raises ``DatasetError`` where there is nothing to look at."""
    stages = find_stages(root) if root.is_dir() else []
    if not stages:
        what = "no stage of drift in it or below" if root.is_dir() else "no directory there"
        raise DatasetError(f"{root}: {what}. Give the directory of a run, or one that a stage wrote or is writing.")
    return stages
