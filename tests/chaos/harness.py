"""Stages of drift in processes of their own, and ways to disturb them."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drift.checksums import sum_of
from drift.cli import main
from drift.dataset import store
from drift.manifest import read_manifest

ROUNDS = int(os.environ.get("DRIFT_CHAOS_ROUNDS", "3"))
SEED = int(os.environ.get("DRIFT_CHAOS_SEED", "1"))
# How often one run is disturbed before it may end.
BLOWS = int(os.environ.get("DRIFT_CHAOS_BLOWS", "3"))


@dataclass
class Child:
    """A command line of drift, run in a fork of this process, which has everything imported and nothing begun.

    Attributes:
        pid: of the process.
        said: what it wrote to both outputs, so far.
        code: its exit status, once it has ended; negative for a signal.
    """

    pid: int
    pipe: int
    said: str = ""
    code: int | None = None

    def wait(self, seconds: float) -> bool:
        """Let it run for so long at most; whether it has ended."""
        if self.code is not None:
            return True
        end = time.monotonic() + seconds
        while self.code is None:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if select.select([self.pipe], [], [], min(left, 0.05))[0]:
                self.said += os.read(self.pipe, 65536).decode(errors="replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        while select.select([self.pipe], [], [], 0)[0] and (rest := os.read(self.pipe, 65536)):
            self.said += rest.decode(errors="replace")
        os.close(self.pipe)
        return True

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; whether it was still running."""
        if self.code is None and not self.wait(0):
            os.kill(self.pid, number)
            return True
        return False


def start(arguments: Sequence[str], prepare: Callable[[], object] = lambda: None) -> Child:
    """Run ``drift`` with ``arguments`` in a fork, after ``prepare()`` there."""
    reading, writing = os.pipe()
    # What comes before the child is itself waits: it would run on as another pytest.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Ignored where the tests run under nohup, and so would it be here.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            except KeyboardInterrupt:
                # It came before there was a drift to hear it.
                os._exit(130)
            # So that a process that lives for seconds has written something when it is stopped.
            store.FLUSH_SECONDS = 0.15
            prepare()
            code = main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    os.close(writing)
    return Child(pid=pid, pipe=reading)


def finish(arguments: Sequence[str]) -> str:
    """Run to the end undisturbed; what it said."""
    child = start(arguments)
    assert child.wait(240), f"{arguments} did not end; it said {child.said}"
    assert child.code == 0, child.said
    return child.said


def small_files(size: int) -> Callable[[], object]:
    """A disk that is full once a file has ``size`` bytes."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return prepare


def jumping_clock(seed: int) -> Callable[[], object]:
    """The time of day jumps by up to a day, either way, whenever it is asked for."""

    def prepare() -> None:
        rng, real = random.Random(seed), time.time
        time.time = lambda: real() + rng.uniform(-86_400, 86_400)

    return prepare


def clock_set_back(seed: int) -> Callable[[], object]:
    """The time of day is set back by up to a month, once, some moment after the start."""

    def prepare() -> None:
        rng, real, began = random.Random(seed), time.time, time.monotonic()
        moment, back = rng.uniform(0.0, 1.5), rng.uniform(60, 30 * 86_400)
        time.time = lambda: real() - (back if time.monotonic() - began > moment else 0.0)

    return prepare


def stopped_for_a_while(child: Child, rng: random.Random) -> bool:
    """Stop a process as a shell or a scheduler does, and let it go on; whether it was running."""
    running = child.send(signal.SIGSTOP)
    time.sleep(rng.uniform(0.0, 0.3))
    if running:
        os.kill(child.pid, signal.SIGCONT)
    return running


@dataclass(frozen=True)
class Disk:
    """A file system in a file, which can only be read after an error, as a disk that fails: files that are open too.

    Attributes:
        image: the file.
        root: where it is mounted.
    """

    image: Path
    root: Path

    def mount(self) -> None:
        """Mount it, as it is after whatever error."""
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self.image, self.root], check=True)

    def fail(self) -> None:
        """Have its driver find an error."""
        device = os.stat(self.root).st_dev
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")

    def unmount(self) -> None:
        """Take it away."""
        subprocess.run(["umount", self.root], check=True)


def without_override() -> None:
    """Without the superuser's right to write where nobody may (CAP_DAC_OVERRIDE, capability 1)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        for at in (0, 1, 2):
            sets[at] &= ~(1 << 1)
        libc.capset(header, sets)


@dataclass
class Tally:
    """Faults that hit, by stage and kind, and what became of them."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, stage: str, fault: str, count: int = 1) -> None:
        """Note that ``count`` faults hit and the stage ended as if they had not."""
        self.counts[stage, fault] = self.counts.get((stage, fault), 0) + count

    def table(self) -> str:
        """Markdown, a row for each fault and a column for each stage."""
        stages = list(dict.fromkeys(stage for stage, _ in self.counts))
        faults = list(dict.fromkeys(fault for _, fault in self.counts))
        rows = [[fault, *(str(self.counts.get((stage, fault), "")) for stage in stages)] for fault in faults]
        rows.append(["all", *(str(sum(n for (s, _), n in self.counts.items() if s == stage)) for stage in stages)])
        lines = ["| fault | " + " | ".join(stages) + " |", "|---" * (len(stages) + 1) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def tree_of(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Stage:
    """A command, and what tells that its result is the one it should be."""

    name: str
    command: list[str]
    seconds: float
    expected: str

    def at(self, out: Path) -> list[str]:
        return [*self.command, "--out", str(out / FILES.get(self.name, ""))]


# What is written by stages that write a file; it lies in a folder of its own here.
FILES = {"export": "rows.jsonl", "report": "page.html"}


def result(name: str, out: Path) -> str:
    """What must not differ between a run that was disturbed and one that was not."""
    if name in ("rollout", "import"):
        return str(read_manifest(out, "trajectories")["dataset_hash"])
    if name == "weigh":
        return str(read_manifest(out, "weights")["weights_hash"]) + sum_of(out / "weights.parquet")
    if name == "train":
        return sum_of(out / "model.safetensors") + sum_of(out / "metrics.jsonl")
    if name in FILES:
        return sum_of(out / FILES[name])
    if name == "compare":
        found = json.loads((out / "comparison.json").read_text())
        return json.dumps([found["rows"], found["differences"], found["failed"]])
    return sum_of(out / "estimates.json")


def end_as_it_should(stage: Stage, out: Path) -> None:
    finish(stage.at(out))
    assert result(stage.name, out) == stage.expected
    assert not [name for name in tree_of(out) if name.endswith(".tmp")]
    shutil.rmtree(out)
