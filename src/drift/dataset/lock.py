"""One process at a time in a directory: the second is told which process the first is."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from drift.errors import DatasetError
from drift.files import own_folder, writing

NAME = ".lock"
# How long a process that has the lock may take until its id can be read.
PATIENCE_SECONDS = 2.0


class DirectoryLock:
    """Holds ``directory``, which is made if missing, until it is released or this process ends, however it ends.

    Raises:
        DatasetError: another process holds it.
        StorageError: the disk refuses.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle: int | None = None
        own_folder(directory, stage=True)
        with writing(directory):
            handle = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            self._take(handle)
            if not re.fullmatch(rb"\d*\s*", os.pread(handle, 40, 0)):
                raise DatasetError(f"{directory / NAME} is not drift's, and would be written over. Remove it.")
            with writing(directory):
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _take(self, handle: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            except OSError:
                # Some file systems know no locks.
                return
            holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
            # The id of a process that is gone is not the holder's, who is about to write its own, or to leave.
            if _alive(holder) or time.monotonic() > end:
                raise DatasetError(
                    f"{self._directory} is being written by process {holder or 'unknown'}. "
                    "Wait for it, stop it, or give another directory."
                )
            time.sleep(0.01)

    def release(self) -> None:
        """Let the directory go."""
        handle, self._handle = self._handle, None
        if handle is not None:
            # A disk that can't be written any more hides no other error: an id that stays there is nobody's.
            with suppress(OSError):
                os.ftruncate(handle, 0)
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _alive(pid: str) -> bool:
    if not pid.isascii() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
