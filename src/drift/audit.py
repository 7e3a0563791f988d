"""What is wrong in a run directory: counts, checksums, hashes, leftovers, parts that do not belong together."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.checksums import SUMS, damaged_files, read_by_loaders, sum_of
from drift.dataset.lock import DirectoryLock
from drift.dataset.rewards import KIND as REWARDS
from drift.dataset.schema import dataset_hash
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import check_shard, repeated, shards, stream_columns, stream_tasks, stream_trajectories
from drift.environments import ENVIRONMENTS, make_environment
from drift.environments.base import SPLITS, EnvironmentFactory, task_hash
from drift.environments.conformance import check_environment
from drift.errors import ConfigError, DatasetError, DriftError, require, unknown_name
from drift.evaluation.run import ESTIMATES
from drift.evaluation.run import KIND as EVALUATION
from drift.files import inside, leftovers, read_ordinary
from drift.keywords import by_fields
from drift.manifest import MANIFEST, differing_keys, read_manifest
from drift.progress import say, watched
from drift.record import (
    RECORD,
    Finding,
    check_page,
    check_record,
    check_seal,
    check_sources,
    folders_below,
    is_ours,
    without_manifest,
)
from drift.registry import path_of
from drift.rollouts.run import draw_tasks
from drift.training.checkpoints import FOLDER, unfinished
from drift.training.config import KIND as MODEL
from drift.weights.table import FILE, read_file
from drift.weights.table import KIND as WEIGHTS
from drift.yaml_files import read_mapping

# A name that drift gives shards, whose end Parquet marks.
SHARD = re.compile(r"\d{6,}-[0-9a-f]{16}\.parquet")
PARQUET_END = b"PAR1"
# Tasks of an environment that are tried for each split.
TASKS = 20


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What ``check`` found, for people.

    Attributes:
        lines: one for each thing looked at, then a sum.
        failed: how many were not in order.
    """

    lines: tuple[str, ...]
    failed: int


@by_fields()
def check(
    what: Any, *, tasks: int | None = None, repair: bool = False, environment: Mapping[str, Any] | None = None
) -> Checked:
    """Put an environment through its protocol, or look for damage in a directory that drift wrote.

    Args:
        what: a registered environment, module:attribute, an object, or a directory. Where a directory has an
            environment's name, the environment is meant; ./NAME is the directory.
        tasks: tasks per split of an environment to try; 20 unless given, or all there are where those are fewer.
        repair: remove what is provably incomplete in a directory.
        environment: settings of the environment.
    """
    if isinstance(what, os.PathLike):
        what = os.path.join(os.curdir, what)
    if not isinstance(what, str) or what in ENVIRONMENTS.names() or (":" in what and not Path(what).exists()):
        name = what if isinstance(what, str) else path_of(what)
        return _check_environment(name, {"name": what, **(environment or {})}, tasks)
    if not Path(what).is_dir():
        if "/" in what or Path(what).exists():
            raise DatasetError(f"{what}: no directory there. Give one that drift wrote, or an environment.")
        raise unknown_name("environment", what, ENVIRONMENTS.names())
    require(not environment, "environment", environment, f"no settings: {what} is a directory")
    return _check_directory(Path(what), repairing=repair)


def _check_environment(name: str, environment: Mapping[str, Any], tasks: int | None) -> Checked:
    factory = make_environment(environment)
    findings = check_environment(factory, tasks=tasks or _tasks_to_try(factory))
    lines = [
        f"{'ok  ' if each.passed else 'FAIL'} {each.check}{': ' * bool(each.detail)}{each.detail}" for each in findings
    ]
    failed = sum(not each.passed for each in findings)
    beside = f" (the environment; for the directory say ./{name})" if Path(name).is_dir() else ""
    return Checked(
        lines=(*lines, f"{name}{beside}: {len(findings) - failed} checks passed, {failed} failed"), failed=failed
    )


def _tasks_to_try(factory: EnvironmentFactory) -> int:
    try:
        return min(len(draw_tasks(factory, split, None, 0, default=TASKS)) for split in SPLITS)
    except Exception:
        # What is wrong with its tasks is a finding of the check.
        return TASKS


def _check_directory(root: Path, *, repairing: bool) -> Checked:
    findings, lines = audit(root), []
    if repairing and any(each.removable for each in findings):
        lines += [f"removed    {path}" for path in remove_incomplete(findings)]
        findings = audit(root)
    lines += [f"{each.state:10s} {each.path}: {each.detail}" for each in findings]
    if any(each.removable for each in findings):
        lines.append("Run the same with --repair to remove what is provably incomplete.")
    wrong = sum(each.state not in ("ok", "harmless") for each in findings)
    lines.append(f"{root}: {len(findings) - wrong} of {len(findings)} in order")
    return Checked(lines=tuple(lines), failed=wrong)


def audit(root: Path) -> list[Finding]:
    """Look at everything below ``root`` that drift wrote, and read all of it.

    Raises:
        DatasetError: there is nothing that drift wrote.
    """
    places = list(folders_below(root))
    folders = [place for place in places if is_ours(place / MANIFEST)]
    records = [place for place in places if is_ours(place / RECORD)]
    found = [finding for place in places if place not in folders for finding in without_manifest(place)]
    if not folders and not records and not found:
        raise DatasetError(f"{root}: no manifest.json in it or below, so drift wrote nothing there. Check the path.")
    manifests: dict[Path, dict[str, Any]] = {}
    # Only where drift writes can something be a leftover of it.
    for place in {*folders, *records, *(each.path for each in found), *(place / "shards" for place in folders)}:
        text = "left by a write that was broken off"
        found += [Finding(path=path, state="unfinished", detail=text, removable=True) for path in leftovers(place)]
    for folder in folders:
        try:
            kind = str(json.loads(read_ordinary(folder / MANIFEST))["kind"])
            manifests[folder] = read_manifest(folder, kind)
        except (DriftError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            found.append(Finding(path=folder / MANIFEST, state="damaged", detail=str(error)))
    for folder, manifest in manifests.items():
        look = _LOOKS.get(manifest["kind"])
        own = _guarded(check_seal, folder, manifest) if manifest["kind"] != "policy" else []
        own += _guarded(look, folder, manifest) if look is not None else []
        found += own or (_guarded(lambda *told: iter([_ok(*told)]), folder, manifest) if look is not None else [])
    for place in {*records, *(place for place in places if (place / "recipe.yaml").is_file())}:
        found += _guarded(lambda folder, _: _look_at_run(folder), place, {})
    found += _guarded(lambda _, __: check_sources(manifests), root, {})
    found += _drifted(places, manifests)
    return list(dict.fromkeys(found))


def remove_incomplete(findings: list[Finding]) -> list[Path]:
    """Remove what is provably incomplete, where nobody is writing, and nothing else; returns what is gone."""
    from drift.training.distributed import locked

    removed = []
    for finding in findings:
        if not finding.removable:
            continue
        stage = finding.path.parent
        stage = stage.parent if stage.name in ("shards", FOLDER) else stage
        try:
            with locked(stage, patience=0.0) if (stage / "training.json").is_file() else DirectoryLock(stage):
                if finding.path.is_symlink():
                    raise DatasetError(f"{finding.path} is a link.")
                if finding.path.is_dir():
                    shutil.rmtree(finding.path)
                else:
                    finding.path.unlink(missing_ok=True)
        except (DriftError, OSError) as error:
            say(f"{finding.path} is left: {error}")
            continue
        removed.append(finding.path)
    return removed


Look = Callable[[Path, dict[str, Any]], Iterator[Finding]]


def _guarded(look: Look, folder: Path, manifest: dict[str, Any]) -> list[Finding]:
    try:
        return list(look(folder, manifest))
    except (DriftError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        detail = str(error) if isinstance(error, DriftError) else f"its manifest lacks or spoils {error}"
        return [Finding(path=folder, state="damaged", detail=detail)]


def _ok(folder: Path, manifest: dict[str, Any]) -> Finding:
    told = {
        TRAJECTORIES: lambda: (
            f"{manifest['counts']['trajectories']} trajectories, hash {manifest['dataset_hash'][:16]}"
        ),
        WEIGHTS: lambda: f"{manifest['diagnostics']['trajectories']} weights, hash {manifest['weights_hash'][:16]}",
        REWARDS: lambda: f"{manifest['conversations']} conversations",
        MODEL: lambda: f"{manifest['steps']} steps",
        EVALUATION: lambda: f"{len(manifest['policies'])} policies on {manifest['tasks']} tasks",
    }
    return Finding(path=folder, state="ok", detail=f"{manifest['kind']}: {told[manifest['kind']]()}")


def _look_at_run(folder: Path) -> Iterator[Finding]:
    """The record of a whole run, and its page."""
    page = folder / "report.html"
    if (folder / RECORD).is_file():
        yield from check_record(folder)
    elif page.is_file():
        yield Finding(path=folder / RECORD, state="damaged", detail="is gone. Run the same command again.")
    if page.is_file():
        yield from check_page(page)


def _look_at_trajectories(folder: Path, manifest: dict[str, Any]) -> Iterator[Finding]:
    damaged = False
    for path in shards(folder):
        try:
            check_shard(path)
        except OSError as error:
            damaged = True
            incomplete = SHARD.fullmatch(path.name) is not None and not read_ordinary(path).endswith(PARQUET_END)
            yield Finding(
                path=path,
                state="damaged",
                detail=f"{error}. "
                + ("It ends too early. " if incomplete else "Delete it if you have no copy. ")
                + "The same rollout command samples what it held again.",
                removable=incomplete,
            )
    if damaged:
        return
    if not manifest["complete"]:
        wanted = manifest["spec"].get("trajectories", "?")
        yield Finding(
            path=folder, state="unfinished", detail=f"of {wanted} trajectories. Run the same rollout command again."
        )
        return
    if twice := repeated(lambda: (name for ids in stream_columns(folder, ["id"]) for name in ids[0].to_pylist())):
        yield Finding(path=folder, state="damaged", detail=f"{len(twice)} ids are there twice, first {min(twice)!r}")
    count = manifest["counts"]["trajectories"]
    digest = dataset_hash(watched(stream_trajectories(folder), f"check {folder}", count, unit="conversations"))
    if digest != manifest["dataset_hash"]:
        yield Finding(
            path=folder,
            state="damaged",
            detail=f"its hash is {digest[:16]}, the manifest says {manifest['dataset_hash'][:16]}",
        )
    wanted = manifest["spec"].get("task_hash")
    try:
        found = task_hash(stream_tasks(folder))
        same = wanted in (None, found)
    except DatasetError:
        same = False
    if not same:
        yield Finding(
            path=folder / "tasks.jsonl",
            state="damaged",
            detail="not the tasks that the manifest tells of. Run the same rollout command again.",
        )


def _look_at_weights(folder: Path, manifest: dict[str, Any]) -> Iterator[Finding]:
    digest = read_file(folder / FILE, manifest.get("file_sum", "")).hash
    if digest != manifest["weights_hash"]:
        yield Finding(
            path=folder,
            state="damaged",
            detail=f"their hash is {digest[:16]}, the manifest says {manifest['weights_hash'][:16]}. Weigh again.",
        )


def _look_at_model(folder: Path, manifest: dict[str, Any]) -> Iterator[Finding]:
    for line in damaged_files(folder):
        yield Finding(path=folder, state="damaged", detail=f"{line}. Train it again, or restore it.")
    if (folder / SUMS).is_file():
        known = json.loads((folder / SUMS).read_text())
        for path in read_by_loaders(folder):
            if path.relative_to(folder).as_posix() not in known:
                detail = "not of this training, and loaded with its model. Remove it, or train again."
                yield Finding(path=path, state="damaged", detail=detail)
    for checkpoint in sorted((folder / FOLDER).glob("checkpoint-*")):
        gone = [] if (checkpoint / SUMS).is_file() else [f"{SUMS} is gone"]
        for line in gone or damaged_files(checkpoint):
            yield Finding(path=checkpoint, state="damaged", detail=f"{line}. Training passes it over.")
    if unfinished(folder / FOLDER).is_dir() and not unfinished(folder / FOLDER).is_symlink():
        yield Finding(
            path=unfinished(folder / FOLDER),
            state="unfinished",
            detail="a half-written checkpoint",
            removable=True,
        )


def _look_at_evaluation(folder: Path, manifest: dict[str, Any]) -> Iterator[Finding]:
    try:
        json.loads((folder / ESTIMATES).read_text())
        wanted, found = manifest.get("estimates_sum"), sum_of(folder / ESTIMATES)
        if wanted not in (None, found):
            raise OSError(f"its checksum is {found}, expected {wanted}")
    except (OSError, ValueError) as error:
        yield Finding(
            path=folder / ESTIMATES, state="damaged", detail=f"can't be read ({error}). Run drift evaluate again."
        )
    for mode in manifest["modes"]:
        for name in manifest["policies"]:
            place = inside(folder, mode, name)
            held = read_manifest(place, TRAJECTORIES)
            if held["spec"]["task_hash"] != manifest["task_hash"]:
                yield Finding(path=place, state="mismatch", detail="held on other tasks than the evaluation tells")


_LOOKS: dict[str, Look] = {
    TRAJECTORIES: _look_at_trajectories,
    # Its seal tells all.
    REWARDS: lambda folder, manifest: iter(()),
    WEIGHTS: _look_at_weights,
    MODEL: _look_at_model,
    EVALUATION: _look_at_evaluation,
}


def _drifted(places: list[Path], manifests: dict[Path, dict[str, Any]]) -> Iterator[Finding]:
    """Stages beside a recipe that were made with other settings than it says."""
    for path in (place / "recipe.yaml" for place in places if (place / "recipe.yaml").is_file()):
        stages = {place.name: manifest for place, manifest in manifests.items() if place.parent == path.parent}
        if not stages:
            continue
        try:
            recipe = read_mapping(path)
        except ConfigError as error:
            yield Finding(path=path, state="damaged", detail=str(error))
            continue
        # What lies beside under other names was not made by the recipe; a log has no seed.
        drawn = {"seed": recipe.get("seed")} if recipe.get("data") is None else None
        spec = stages.get("rollouts", {}).get("spec") or {}
        compared = {
            "rollouts": ({"seed": spec.get("seed")}, drawn),
            "weights": (stages.get("weights", {}).get("config"), recipe.get("weights")),
        }
        for name, (done, said) in compared.items():
            changed = differing_keys(done, said) if isinstance(said, dict) and isinstance(done, dict) else []
            if changed and name in stages:
                detail = f"not what {path.name} says: {'; '.join(changed)}"
                yield Finding(path=path.parent / name, state="mismatch", detail=detail)
