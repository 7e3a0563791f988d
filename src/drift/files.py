"""Files of ours: opened without following links, written beside and renamed, under names that can't lead elsewhere."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from drift.errors import DatasetError, StorageError, require

# What a write that was broken off leaves: nobody else names files so.
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a ``StorageError`` that says what stays usable and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        if error.errno == errno.ELOOP:
            raise StorageError(
                f"{error.filename or path} is a link, where a file or folder of drift's own is expected: what it "
                "points to may be another's. Remove the link, or give another directory."
            ) from error
        remedy = (
            "What was written before is whole. Free some space or fix the permissions, then run the same command "
            "again: it goes on where it was."
        )
        if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
            remedy = "Give another path."
        raise StorageError(f"{path} can't be written: {error.strerror or error}. {remedy}") from error


def open_own(path: Path, mode: str) -> IO[str]:
    """Open a text file to be written, made if missing; raises ``OSError`` where a link or a device lies there.

    What has other names too becomes a copy of its own first.
    """
    if mode == "a" and path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
        write_atomic(path, path.read_bytes())

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "no ordinary file", name)
        return handle

    return open(path, mode, encoding="utf-8", opener=opener)


def read_ordinary(path: Path) -> bytes:
    """What is in a file; raises ``OSError`` where none is there, or something that may never end: a pipe, a device."""
    if not path.is_file():
        raise OSError(errno.EINVAL if path.exists() else errno.ENOENT, "no ordinary file there", str(path))
    return path.read_bytes()


def own_folder(path: Path, *, stage: bool = False) -> Path:
    """Make a folder that a stage writes into, if it is missing; returns it.

    Args:
        path: where. That of a whole ``stage`` may be a link to an empty folder, or to one that drift wrote.
        stage: it is that of a whole stage, with a manifest.

    Raises:
        StorageError: the disk refuses, it is a link, another user owns it, or its manifest is not drift's.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        ours = stage and _is_ours(path)
        if path.is_symlink() and not ours and (not stage or any(path.iterdir())):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    refuse_others_folder(path)
    return path


def _is_ours(path: Path) -> bool:
    """Whether drift wrote into a folder before; raises ``StorageError`` for the manifest of something else."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return any((path / name).is_file() for name in (".lock", "training.json"))
    try:
        known = "schema_version" in json.loads(manifest.read_bytes())
    except (ValueError, TypeError, RecursionError):
        # A damaged one is replaced: by itself it tells nothing.
        return True
    if not known:
        raise StorageError(f"{manifest} is not drift's, and would be written over. Give another directory.")
    return True


def refuse_others_folder(path: Path) -> None:
    """Raise ``StorageError`` for a folder that another user owns, who could change what is written while it is."""
    owner = path.stat().st_uid
    if owner == os.geteuid():
        return
    with writing(path), tempfile.TemporaryFile(dir=path) as probe:
        # Where a file system gives every file one owner, the owner says nothing.
        if os.fstat(probe.fileno()).st_uid == owner:
            return
    raise StorageError(
        f"{path} belongs to the user with id {owner}, not to the one who runs this ({os.geteuid()}), and would hold "
        f"files of both. Give another directory, or take it over with chown {os.geteuid()}."
    )


def check_folder_name(name: str, where: str) -> None:
    """Raise ``ConfigError`` unless ``name`` can name a folder: letters, digits, ``-``, ``_`` and dots within."""
    sound = bool(name) and name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name[0] != "."
    require(sound and len(name) <= 100, where, name, "a name of letters, digits, -, _ and dots, which a folder gets")


def inside(folder: Path, *names: str) -> Path:
    """The path of names below ``folder``, as ``inside(out, "greedy", "tuned")``, of names that a file tells.

    Raises:
        DatasetError: one of them is no relative path, or would lead out of the folder.
    """
    path = folder
    for name in names:
        parts = name.split("/") if isinstance(name, str) else [""]
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise DatasetError(f"{folder}: got {name!r}, expected the name of a file in that folder. It is damaged.")
        path = path.joinpath(*parts)
    return path


def open_beside(path: Path) -> tuple[Path, int]:
    """A new file that is to take the place of ``path``, and a handle on it: under a name where no link could lie.

    As long as the handle is open, whoever looks for leftovers sees that this is none.
    """
    remove_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temporary, handle


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file a part at a time: it takes the place of ``path`` when all went well, or is removed."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = open_beside(path)
        try:
            yield temporary
            os.fsync(handle)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a power cut."""
    with replacing(path) as temporary, temporary.open("r+b") as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, json_bytes(value))


def append_json(path: Path, value: Any) -> None:
    """Add a line of JSON to a file; it is there for good before what comes after it is written.

    Raises:
        StorageError: the disk refuses.
    """
    with writing(path), open_own(path, "a") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Have a file or a folder on the disk itself when this returns; raises ``OSError`` where the disk refuses."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(value: Any) -> bytes:
    """JSON as drift writes it into files."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def leftovers(folder: Path, name: str = "") -> list[Path]:
    """Files that a broken-off write of ``name``, or of anything, left in ``folder``, and that nobody writes now."""
    found = []
    for entry in os.scandir(folder) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(entry.name)
        if match and name in ("", match["name"]) and entry.is_file(follow_symlinks=False) and _is_idle(entry.path):
            found.append(Path(entry.path))
    return sorted(found)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove ``leftovers``; raises ``StorageError`` where the disk refuses."""
    with writing(folder):
        for path in leftovers(folder, name):
            path.unlink(missing_ok=True)


def _is_idle(path: str) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
