"""The self-description of a run directory: what made it, from what, with what result. JSON, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from drift.errors import DatasetError
from drift.files import write_atomic

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
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


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_manifest(directory: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write ``directory/manifest.json`` with the schema version, the kind and the package versions."""
    head = {"schema_version": SCHEMA_VERSION, "kind": kind, "packages": package_versions()}
    write_json(directory / MANIFEST, {**head, **content})


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
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged ({error}). Restore it, or start again in another directory.") from error
    if found_version != SCHEMA_VERSION:
        raise DatasetError(
            f"{path}: schema version {found_version}, expected {SCHEMA_VERSION}. "
            "Read it with the version of drift that wrote it, or make it again."
        )
    if found_kind != kind:
        raise DatasetError(f"{path}: holds {found_kind}, expected {kind}. Check which directory you meant.")
    return manifest


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
