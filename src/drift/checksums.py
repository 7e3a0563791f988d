"""Checksums of files that are written once: kept in a list beside them, compared when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from drift.errors import DatasetError
from drift.files import inside, read_ordinary, sync, write_json

SUMS = "sums.json"
DIGITS = 16
# What makes a model or its tokenizer another one where it lies in the folder.
_READ_BY_LOADERS = (
    *("*.safetensors", "*.index.json", "config.json", "generation_config.json", "*.jinja", "adapter/adapter_*"),
    *("tokenizer.*", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "vocab.*"),
    *("merges.txt", "adapter_config.json", "processor_config.json", "additional_chat_templates/*.jinja"),
)


def sum_of_bytes(data: bytes) -> str:
    """The first sixteen hexadecimal digits of the SHA-256: against damage, not against someone who means harm."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def sum_of(path: Path) -> str:
    """The same of a file, read a part at a time."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no file there", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def write_sums(folder: Path, files: Iterable[Path]) -> None:
    """Write ``folder/sums.json``: the checksum of each of ``files``, which lie below ``folder``, by relative path.

    Before it is there, they are there for good.
    """
    files = sorted(files)
    for path in files:
        sync(path)
    write_json(folder / SUMS, {path.relative_to(folder).as_posix(): sum_of(path) for path in files})


def damaged_files(folder: Path) -> list[str]:
    """What is wrong with the files that ``folder/sums.json`` lists, a line for each; none where there is no list.

    That a manifest beside tells of a list which is gone is wrong too.
    """
    path = folder / SUMS
    if not path.is_file():
        return [f"{SUMS}, which the manifest lists, is gone"] if _lists_sums(folder) else []
    try:
        wanted: dict[str, str] = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, OSError) as error:
        return [f"{SUMS} can't be read ({error})"]
    found = []
    for name, expected in wanted.items():
        try:
            actual = sum_of(inside(folder, name))
        except (DatasetError, OSError) as error:
            found.append(f"{name} can't be read ({getattr(error, 'strerror', '') or error})")
            continue
        if actual != expected:
            found.append(f"{name} has the checksum {actual}, expected {expected}")
    return found


def read_by_loaders(folder: Path) -> list[Path]:
    """Files of a model's folder that decide what is loaded from it."""
    found = {path for name in _READ_BY_LOADERS for path in folder.glob(name) if path.is_file()}
    return sorted(path for path in found if path.name[0] != "." and path.suffix not in (".bak", ".orig", ".swp"))


def _lists_sums(folder: Path) -> bool:
    try:
        return SUMS in json.loads(read_ordinary(folder / "manifest.json"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
