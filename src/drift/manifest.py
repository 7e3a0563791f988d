"""The self-description of a run directory: what made it, from what, with what result. JSON, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from drift.checksums import sum_of
from drift.errors import DatasetError
from drift.files import read_ordinary
from drift.files import write_json as write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# Files of a stage's own folder that decide a result, or are read as one.
DECIDING = (
    *("tasks.jsonl", "rejected.jsonl", "rewards.parquet", "weights.parquet", "estimates.json", "replies.jsonl"),
    *("sums.json", "training.json", "metrics.jsonl", "shared-prefixes.json", "kl.jsonl", "held-out.jsonl"),
    *("rounds.jsonl", "seconds.json", "recipe.yaml"),
)
# What a manifest tells of circumstances, which the same stage run again may change. Shards have sums in their names.
CIRCUMSTANCES = (
    *("seal", "packages", "cost", "shards", "policy_errors", "policy_usage", "environment_counts", "cluster", "ranks"),
)
_LIBRARIES = ("gymnasium", "openenv", "verifiers")
_PACKAGES = ("drift-rl", "torch", "transformers", "accelerate", "peft", "pyarrow", "numpy", *_LIBRARIES)


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(
    directory: Path, kind: str, content: Mapping[str, Any], *, sources: Mapping[str, Path] | None = None
) -> None:
    """Write ``directory/manifest.json`` with schema version, kind and package versions, and seal it.

    Args:
        directory: of the stage, whose files are there.
        kind: of the stage.
        content: what made it, with what result.
        sources: directories and files that it was made of, by what they are to it; their seals are kept.
    """
    head = {"schema_version": SCHEMA_VERSION, "kind": kind, "packages": package_versions()}
    files = {name: sum_of(directory / name) for name in DECIDING if (directory / name).is_file()}
    seals = {name: seal_at(path) for name, path in (sources or {}).items()}
    # As it is read back: tuples are lists, and keys are text.
    whole = json.loads(json.dumps({**head, **content, "files": files, "sources": seals}, allow_nan=False))
    write_json(directory / MANIFEST, {**whole, "seal": seal_of(whole)})


def seal_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all in a manifest that decides a result: sums of its files and seals of its sources among it."""
    deciding = {key: value for key, value in manifest.items() if key not in CIRCUMSTANCES}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def seal_at(path: Path) -> str | None:
    """The seal of a stage, the checksum of a file, or nothing where neither is there."""
    if path.is_file():
        return sum_of(path)
    try:
        found = json.loads(read_ordinary(path / MANIFEST)).get("seal")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def read_manifest(directory: Path, kind: str) -> dict[str, Any]:
    """Read a manifest and check that it is of ``kind`` and of this schema version; raises ``DatasetError``."""
    path = directory / MANIFEST
    if not path.is_file():
        kinds = {"a directory without manifest.json": directory.is_dir(), "a file": directory.is_file()}
        found = next((kind for kind, is_it in kinds.items() if is_it), "nothing there")
        raise DatasetError(f"{directory}: {found}, expected {kind} written by drift. Check the path.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        found_version, found_kind = manifest["schema_version"], manifest["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({error}). Restore it, or start again in another directory.") from error
    if found_version != SCHEMA_VERSION:
        raise DatasetError(
            f"{path}: schema version {found_version}, expected {SCHEMA_VERSION}. "
            "Read it with the version of drift that wrote it, or make it again."
        )
    if found_kind != kind:
        raise DatasetError(f"{path}: holds {found_kind}, expected {kind}. Check which directory you meant.")
    return manifest


def check_out(out: Path, kind: str) -> None:
    """Raise ``DatasetError`` where ``out`` is a file, or holds something else than ``kind``, which would be lost."""
    if out.is_file():
        raise DatasetError(f"{out} is a file, expected a directory for {kind}. Give another one as out.")
    try:
        found = json.loads(read_ordinary(out / MANIFEST))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found != kind:
        raise DatasetError(f"{out} holds {found}, and {kind} would be written over it. Give another directory as out.")


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every nested key whose value differs, as ``key: old -> new``."""
    rows = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return rows
