"""How a command ends that does not end well: in words, with what is kept and how to go on, never with a traceback."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from drift.errors import DriftError, Unforeseen, in_short
from drift.files import open_own
from drift.manifest import MANIFEST
from drift.secrets import scrubbed
from drift.terminal import clean, flushed, tell

_STAGE = "stage: "
GO_ON = "Run the same command again: it goes on where it was."
# What a process is asked to end with; of SIGINT Python makes KeyboardInterrupt itself.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class AllSaid(SystemExit):
    """An end of which all is said: help is shown, or the rank that failed first says why."""


@contextmanager
def stage(name: str, out: Path) -> Iterator[None]:
    """What fails within carries the name of the stage and its folder."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{_STAGE}{name} in {out}")
        raise


def ended(work: Callable[[], int], command: str, out: Path | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
        work: the command; returns its exit code.
        command: how messages name it.
        out: where it writes, if that is known: the traceback of what nobody foresaw is written there.
    """
    try:
        with _signals():
            code = work()
    except DriftError as error:
        tell(f"drift: {error}", error=True)
        code = error.exit_code
    except AllSaid as stop:
        code = int(stop.code or 0)
    except KeyboardInterrupt as error:
        tell(f"drift: stopped{_where(error)}.{_kept(error, out)} {GO_ON}", error=True)
        code = 130
    except BaseException as error:
        # Code of the user's own may ask for an end, which is none in order: the work is not done.
        tell(f"drift: {in_words(error, command, out)}", error=True)
        code = 1
    failure = flushed()
    if failure is not None:
        tell(f"drift: standard output could not be written: {failure.strerror}. The work itself is done.", error=True)
    return code or int(failure is not None)


def in_words(error: BaseException, command: str, out: Path | None = None) -> Unforeseen:
    """``error`` as one with a message: what failed, in which stage, what is kept, how to go on, where the traceback is.

    Args:
        error: which no part of drift expects.
        command: how messages name what failed.
        out: where it writes.
    """
    path = _write_traceback(error, out)
    kind = type(error).__name__
    said = in_short(error).removeprefix(f"{kind}:").removeprefix(kind).strip().splitlines() or [""]
    what = f"{kind}: {said[0][:500]}" if said[0] else kind
    if isinstance(error, ModuleNotFoundError):
        what += f". It needs the package {error.name}, which is not installed"
    elif isinstance(error, OSError) and error.errno in _NO_ROOM:
        what += ". Free some space or fix the permissions"
    elif isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        what += ". Memory ran out: take smaller batches, shorter rows or a smaller model"
    kept = _kept(error, out)
    return Unforeseen(f"{command} failed{_where(error)}: {what.rstrip('.')}.{kept} {GO_ON} The traceback is in {path}.")


def _where(error: BaseException) -> str:
    found = [note.removeprefix(_STAGE) for note in getattr(error, "__notes__", ()) if note.startswith(_STAGE)]
    return f" in the stage {found[0]}" if found else ""


def _kept(error: BaseException, out: Path | None) -> str:
    """Which stages that have ended lie in or beside the folder where it failed."""
    if out is None or not out.is_dir():
        return ""
    found = [path.parent for path in (*out.glob(MANIFEST), *out.glob(f"*/{MANIFEST}"))]
    return f" Kept: {', '.join(map(str, sorted(found)))}." if found else ""


def _write_traceback(error: BaseException, out: Path | None) -> str:
    """Write the traceback to a new file in ``out``, or where temporary files are; returns where."""
    text = clean(scrubbed("".join(traceback.format_exception(error))))
    for folder in (out, Path(tempfile.gettempdir())):
        if folder is None or not folder.is_dir():
            continue
        with suppress(OSError):
            path = folder / f"error-{os.getpid()}-{os.urandom(4).hex()}.txt"
            with open_own(path, "x") as file:
                file.write(text)
            return str(path)
    return "no file, as none could be written"


@contextmanager
def _signals() -> Iterator[None]:
    """Signals that ask for an end become Ctrl-C, but for what was to be ignored, as SIGHUP is under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
