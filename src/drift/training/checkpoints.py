"""Checkpoints that are whole or not there: written beside, synced, renamed; the oldest removed the same way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from drift.checksums import SUMS, damaged_files, write_sums
from drift.files import own_folder, sync, writing
from drift.terminal import tell

FOLDER = "checkpoints"
_SAVED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.md", "*.bin")
# Not named like a checkpoint: what lies here is half-written or half-removed.
UNFINISHED = "unfinished"


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a training directory."""
    return max(_all(out / FOLDER), key=_step, default=None)


def whole_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; says on stderr which ones are passed over."""
    for checkpoint in sorted(_all(out / FOLDER), key=_step, reverse=True):
        damage = damaged_files(checkpoint) if (checkpoint / SUMS).is_file() else [f"{SUMS} is gone"]
        if not damage:
            return checkpoint
        tell(f"training: {checkpoint} is damaged and not gone on from: {'; '.join(damage)}.", error=True)
    return None


def unfinished(folder: Path) -> Path:
    """Where a checkpoint of ``folder`` is written before it is whole."""
    return folder / UNFINISHED


def publish(folder: Path, name: str, keep: int) -> None:
    """Make the checkpoint ``name`` of ``unfinished(folder)`` the newest, and remove all but ``keep``."""
    written = unfinished(folder) / name
    write_sums(written, [path for path in written.rglob("*") if path.is_file()])
    for path in (*(path for path in written.rglob("*") if path.is_dir()), written):
        sync(path)
    if (folder / name).exists():
        _remove(folder, folder / name)
    written.replace(folder / name)
    sync(folder)
    for old in sorted(_all(folder), key=_step)[:-keep]:
        _remove(folder, old)
    unfinished(folder).rmdir()


def discard_unfinished(out: Path) -> None:
    """Remove what a killed run left half-written or half-removed."""
    own_folder(out / FOLDER)
    shutil.rmtree(unfinished(out / FOLDER), ignore_errors=True)


@contextmanager
def saving(out: Path) -> Iterator[None]:
    """``writing``, for libraries that report a write which the disk refuses in words of their own."""
    from drift.policies.stored import without_bars

    with writing(out):
        # Libraries would write to what a link points to.
        for path in (path for name in _SAVED for path in out.glob(name) if path.is_symlink()):
            path.unlink()
        try:
            with without_bars():
                yield
        except (RuntimeError, SafetensorError) as error:
            signs = ("inline_container", "PytorchStreamWriter", "No space left", "(os error ")
            if not any(sign in str(error) for sign in signs):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _remove(folder: Path, checkpoint: Path) -> None:
    away = unfinished(folder) / f"old-{checkpoint.name}"
    away.parent.mkdir(exist_ok=True)
    shutil.rmtree(away, ignore_errors=True)
    checkpoint.replace(away)
    shutil.rmtree(away)


def _all(folder: Path) -> list[Path]:
    named = folder.glob("checkpoint-*")
    # Trainer writes its state last: a folder without it was copied here in part.
    return [path for path in named if path.name.split("-")[1].isdigit() and (path / "trainer_state.json").is_file()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
