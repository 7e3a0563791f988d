"""The processes that train together: which one writes, what the others wait for, how all of them exit."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch

from drift.endings import AllSaid
from drift.errors import DatasetError, DriftError, require
from drift.files import own_folder
from drift.manifest import check_out
from drift.training.config import KIND, SPEC

T = TypeVar("T")

# Longer than the first rank takes to write the rows of a very large data set.
TIMEOUT = timedelta(hours=12)
LOCK_SECONDS = 20.0


def is_launched() -> bool:
    """Whether torchrun, ``accelerate launch`` or the like started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where this process stands among those that train together.

    Attributes:
        index: its rank.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def on_first_rank(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the first rank alone; the others wait for what it returns."""
        if self.count == 1:
            return work()
        result = [work() if self.is_first else None]
        torch.distributed.broadcast_object_list(result, src=0)
        return result[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Return once all ranks are here."""
        self.on_first_rank(lambda: None)


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """The process group of a launched process, or one rank alone.

    An error of any rank ends all of them. The first that fails says so; the others, which fail as it exits, exit with
    its code and say nothing.

    Args:
        device: where to train; ``cpu`` takes gloo, CUDA takes NCCL.

    Raises:
        ConfigError: more ranks on this machine than GPUs.
    """
    if not is_launched():
        yield Ranks()
        return
    from accelerate import PartialState

    _exit_with_launcher(os.getppid())
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        if not on_cpu:
            local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
            require(local <= gpus, "training.num_processes", local, f"at most {gpus}, the GPUs of this machine")
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
        yield Ranks(index=state.process_index, count=state.num_processes)
        # A rank that leaves while gloo's threads still talk to it is aborted now and then.
        torch.distributed.barrier()
    except BaseException as error:
        code = _code_of_the_first(_exit_code(error))
        # With NCCL this would wait for operations that the others will never join.
        if on_cpu and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if code is not None:
            raise AllSaid(code) from None
        raise
    torch.distributed.destroy_process_group()


def _exit_code(error: BaseException) -> int:
    if isinstance(error, DriftError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _code_of_the_first(own: int) -> int | None:
    """The exit code of the rank that failed first; ``None`` if that is this one, or if it can't be known."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=10),
        )
        # A launcher may start all ranks again, with the same store.
        key = f"drift/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        place = store.add(key, 1)
        store.set(f"{key}/{place}", str(own))
        return None if place == 1 else int(store.get(f"{key}/1"))
    except (RuntimeError, ValueError):
        return None


def _exit_with_launcher(parent: int) -> None:
    """End this process soon after its launcher is gone: nobody else would, and it would go on writing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="drift-launcher", daemon=True).start()


@contextmanager
def locked(out: Path, patience: float | None = None) -> Iterator[None]:
    """Lock ``out`` for this process, so that two trainings never write into it at once.

    Args:
        out: the folder, which is made if missing.
        patience: seconds that another process may take to let go; those that a killed one takes unless given.

    Raises:
        DatasetError: it holds something else than a training, a model that was not trained there say; or another
            process has locked it, and does not end within seconds.
    """
    check_out(out, KIND)
    settings = out / "config.json"
    if settings.is_file() and not settings.is_symlink() and not (out / SPEC).is_file():
        raise DatasetError(f"{out} holds a model that was not trained there. Give another directory as out.")
    own_folder(out, stage=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        deadline = time.monotonic() + (LOCK_SECONDS if patience is None else patience)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DatasetError(
                        f"{out} is being trained into by process {_lock_holder(handle)}. "
                        "Wait for it, stop it, or give another directory."
                    ) from None
                time.sleep(0.1)
            except OSError:
                # Some file systems know no locks.
                break
        yield
    finally:
        # Nothing was begun if nothing is there.
        with suppress(OSError):
            out.rmdir()
        os.close(handle)


def _lock_holder(handle: int) -> str:
    """Id of the process that has locked what ``handle`` is open on, where the system says so (Linux)."""
    inode = os.fstat(handle).st_ino
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # Number, kind, ADVISORY, WRITE, process, device:device:inode, range.
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return fields[4]
    return "unknown"
