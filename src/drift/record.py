"""Seals: what each stage, and the record of a whole run, say that everything was, compared with what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from drift.checksums import sum_of, sum_of_bytes
from drift.files import inside, json_bytes, read_ordinary, write_json
from drift.manifest import DECIDING, MANIFEST, seal_at, seal_of

State = Literal["ok", "harmless", "unfinished", "damaged", "mismatch"]
RECORD = "run.json"
# Of the whole run: what was asked for, and what came of it.
_FILES = ("recipe.yaml", "comparison.json")
# What only a stage leaves that has, or will have, a manifest.
_MARKS = ("shards", "weights.parquet", "estimates.json", "training.json", "sums.json")
# Of a stage; a recipe, its rounds and their times are a whole run's, which may begin in the folder of one.
_TOLD = tuple(name for name in DECIDING if name not in ("recipe.yaml", "rounds.jsonl", "seconds.json"))
_END = "<!-- sum of all before this line: "


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that an audit looked at.

    Attributes:
        path: file or directory.
        state: ``ok``; ``harmless`` (not as it was written, but nothing that decides a result); ``unfinished`` (stopped
            half-way; the same command goes on); ``damaged`` (not what was written); ``mismatch`` (whole, but not made
            from what lies beside it).
        detail: what was found, and what to do.
        removable: it is provably incomplete, and nothing is lost with it.
    """

    path: Path
    state: State
    detail: str
    removable: bool = False


def folders_below(root: Path) -> Iterator[Path]:
    """``root`` and every folder below it, in order; links to folders are followed, each folder once."""
    seen = set()
    for place, folders, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(place)


def write_record(run: Path) -> None:
    """Write ``run/run.json``: the seal of every stage below, sums of their manifests, and of the run's own files."""
    stages = {
        folder.relative_to(run).as_posix(): {"seal": seal_at(folder), "manifest": sum_of(folder / MANIFEST)}
        for folder in folders_below(run)
        if (folder / MANIFEST).is_file()
    }
    files = {name: sum_of(run / name) for name in _FILES if (run / name).is_file()}
    content = {"stages": stages, "files": files}
    write_json(run / RECORD, {**content, "seal": seal_of(content)})


def check_record(run: Path) -> Iterator[Finding]:
    """Compare a run with its record; a run without one is compared with nothing."""
    path = run / RECORD
    try:
        record = json.loads(read_ordinary(path))
        sealed = seal_of(record) == record["seal"]
        stages, files = dict(record["stages"]), dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield Finding(path=path, state="damaged", detail=f"can't be read ({error}). Run the same command again.")
        return
    if not sealed:
        yield Finding(
            path=path, state="damaged", detail="was changed after it was written. Run the same command again."
        )
        return
    yield from _spelling(path, record)
    for name, wanted in stages.items():
        folder = inside(run, name) if name != "." else run
        manifest = folder / MANIFEST
        if not manifest.is_file():
            yield Finding(
                path=folder, state="damaged", detail="a stage of this run whose manifest is gone. Restore it."
            )
        elif seal_at(folder) != wanted["seal"]:
            detail = (
                f"not the stage that {RECORD} tells of: changed, or run again by itself. Run the same command again."
            )
            yield Finding(path=folder, state="mismatch", detail=detail)
        elif sum_of(manifest) != wanted["manifest"]:
            detail = "tells other circumstances (cost, packages) than when the run ended; they decide no result"
            yield Finding(path=manifest, state="harmless", detail=detail)
    yield from _files(run, files, "Restore it, or run the same command again.")
    yield from _unknown(run, _FILES, files)


def check_seal(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare a manifest with its own seal, and the stage's files with the sums in it."""
    path = folder / MANIFEST
    if "seal" not in manifest:
        detail = "it has no seal: of a version of drift before seals, or its end is gone"
        yield Finding(path=path, state="damaged", detail=detail)
        return
    if seal_of(manifest) != manifest["seal"]:
        detail = "was changed after it was written: its content has not the seal it names. Restore it, or run it again."
        yield Finding(path=path, state="damaged", detail=detail)
    yield from _spelling(path, manifest)
    if manifest.get("complete", True):
        yield from _files(folder, manifest.get("files", {}), "Restore it, or run the stage again.")
        yield from _unknown(folder, _TOLD, manifest.get("files", {}))


def is_ours(path: Path) -> bool:
    """Whether drift may have written a manifest or a record, however damaged it is; others use these names too."""
    try:
        found = json.loads(read_ordinary(path))
    except (OSError, ValueError, RecursionError):
        return path.is_file()
    return not isinstance(found, dict) or not found.keys().isdisjoint({"schema_version", "seal", "stages"})


def check_sources(manifests: Mapping[Path, Mapping[str, Any]]) -> Iterator[Finding]:
    """Stages made of others than those that lie where theirs lay, or than any of that kind beside them."""
    here, beside = {str(manifest.get("seal")) for manifest in manifests.values()}, set[tuple[Path, str]]()
    for folder, manifest in manifests.items():
        beside.add((folder.parent, manifest["kind"]))
    # A model, or what it was not to be measured on, may well lie elsewhere.
    kinds = {"data": "trajectories", "rollouts": "trajectories", "weights": "weights"}
    for folder, manifest in manifests.items():
        for name, seal in dict(manifest.get("sources") or {}).items():
            below, kind = inside(folder, name), kinds.get(name)
            if below in manifests:
                wrong = manifests[below].get("seal") != seal
            else:
                near = any((place, kind) in beside for place in folder.parents[:2])
                wrong = seal not in here and near and len(str(seal)) == 64
            if wrong:
                detail = f"its {name} is not what it was made of: another lies there, or it was changed. Run it again."
                yield Finding(path=folder, state="mismatch", detail=detail)


def without_manifest(folder: Path) -> Iterator[Finding]:
    """A folder that a stage wrote into, and that no manifest describes."""
    marks = [name for name in _MARKS if (folder / name).exists()]
    if marks and not folder.name.startswith("checkpoint-"):
        detail = f"holds {marks[0]} and no {MANIFEST}: the stage has not ended, or its manifest is gone. Run it again."
        yield Finding(path=folder, state="unfinished", detail=detail)


def sealed_page(page: str) -> bytes:
    """A page with the sum of its content in its last line."""
    # A reply can hold half of a surrogate pair, which no encoding can carry.
    data = page.encode("utf-8", errors="replace") + b"\n"
    return data + f"{_END}{sum_of_bytes(data)} -->\n".encode()


def check_page(path: Path) -> Iterator[Finding]:
    """Compare a page with the sum in its last line."""
    data, mark, end = path.read_bytes().rpartition(_END.encode())
    if not mark or end != f"{sum_of_bytes(data)} -->\n".encode():
        yield Finding(path=path, state="damaged", detail="was changed after it was written. Run drift report again.")


def _spelling(path: Path, content: Mapping[str, Any]) -> Iterator[Finding]:
    if path.read_bytes() != json_bytes(content):
        yield Finding(
            path=path, state="harmless", detail="spelled otherwise than it was written; its content is the same"
        )


def _unknown(folder: Path, names: Iterable[str], sums: Mapping[str, str]) -> Iterator[Finding]:
    """Files that a reader would take for the stage's own, and that were not there when it ended."""
    for name in names:
        if name not in sums and (folder / name).exists():
            detail = "not there when the stage ended, and read as a part of it. Remove it, or run the stage again."
            yield Finding(path=folder / name, state="damaged", detail=detail)


def _files(folder: Path, sums: Mapping[str, str], remedy: str) -> Iterator[Finding]:
    for name, wanted in sums.items():
        path = inside(folder, name)
        try:
            found = sum_of(path)
        except OSError as error:
            yield Finding(path=path, state="damaged", detail=f"can't be read ({error.strerror}). {remedy}")
            continue
        if found != wanted:
            detail = f"its checksum is {found}, expected {wanted}: changed after it was written. {remedy}"
            yield Finding(path=path, state="damaged", detail=detail)
