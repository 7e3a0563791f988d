"""The self-description of a run directory: what made it, from what, with what result. JSON, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from drift.errors import DatasetError, StorageError

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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a ``StorageError`` that says what stays usable and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        remedy = (
            "What was written before is whole. Free some space or fix the permissions, then run the same command "
            "again: it goes on where it was."
        )
        if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
            remedy = "Give another path."
        raise StorageError(f"{path} can't be written: {error.strerror or error}. {remedy}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file a part at a time: it takes the place of ``path`` when all went well, or is removed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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


def check_out(out: Path, kind: str) -> None:
    """Raise ``DatasetError`` where ``out`` is a file, or holds something else than ``kind``, which would be lost."""
    if out.is_file():
        raise DatasetError(f"{out} is a file, expected a directory for {kind}. Give another one as out.")
    try:
        found = json.loads((out / MANIFEST).read_text())["kind"]
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
