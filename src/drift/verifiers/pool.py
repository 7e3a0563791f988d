"""Worker processes with a deadline: each belongs to one thread here, which kills and replaces it when it is late."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from drift.errors import ConfigError

# The worker gets this process's search path as arguments; it never runs this process's __main__.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from drift.verifiers.worker import main; main()"
START_SECONDS = 120.0
# A worker whose parent died in mid-check ends this long after the deadline at the latest.
GRACE_SECONDS = 1.0
# How often a check is begun: what ends so many workers, or hangs in them, is the check and not what befell a worker.
ATTEMPTS = 3
Outcome = dict[str, str]


class _Late(Exception):
    """No outcome by the deadline."""


class _Died(Exception):
    """The worker ended without an outcome."""


class _NotStarted(ConfigError):
    """The worker ended, or said nothing, before its first check."""


class Worker:
    """One process and the pipes to it, used by one thread at a time."""

    def __init__(self, deadline: float, memory_mb: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal is for this process, which decides about its workers.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        try:
            ready = self.ask({"alarm": deadline + GRACE_SECONDS, "memory_mb": memory_mb}, START_SECONDS)
        except (_Late, _Died) as error:
            self.kill()
            raise _NotStarted(
                f"verifier math: a worker process of {sys.executable} did not start "
                f"({'too slow' if isinstance(error, _Late) else 'it ended'}). "
                "Check that this runs: python -c 'import math_verify'."
            ) from None
        except BaseException:
            self.kill()
            raise
        if ready["verdict"] != "ready":
            self.kill()
            raise ConfigError(
                f"verifier math: math-verify can't be used ({ready['reason']}). "
                "Install it: pip install 'drift-rl[math]'."
            )

    def ask(self, request: object, seconds: float) -> Outcome:
        """The outcome of one request; raises when there is none within ``seconds``."""
        end = time.monotonic() + seconds
        data = memoryview((json.dumps(request) + "\n").encode("ascii"))
        while data:
            self._wait(self._input, selectors.EVENT_WRITE, end)
            try:
                data = data[os.write(self._input, data) :]
            except BrokenPipeError:
                raise _Died from None
        received = bytearray()
        while not received.endswith(b"\n"):
            self._wait(self._output, selectors.EVENT_READ, end)
            chunk = os.read(self._output, 1 << 16)
            if not chunk:
                raise _Died
            received += chunk
        outcome: Outcome = json.loads(received)
        return outcome

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def forget(self) -> None:
        """Close a forked child's copies of the pipes, so that the worker can see its parent end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.returncode = 0  # not this process's child: nothing to wait for

    @staticmethod
    def _wait(descriptor: int, event: int, end: float) -> None:
        with selectors.PollSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, end - time.monotonic())):
                raise _Late


class WorkerPool:
    """N threads with a worker process each, started when first needed.

    A Ctrl-C reaches only the thread that waits for an outcome, never one that talks to a worker, so it leaves the pool
    whole. After a fork the child starts workers of its own.

    Args:
        workers: N.
        deadline: seconds that one check may take.
        memory_mb: the most address space one worker may use, in MiB.
    """

    def __init__(self, workers: int, deadline: float, memory_mb: int) -> None:
        self._workers, self._deadline, self._memory_mb = workers, deadline, memory_mb
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._started: set[Worker] = set()
        self._own = threading.local()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def run(self, reply: str, gold: str) -> Outcome:
        """The outcome of one check; blocks until it is there."""
        future = self._submit(reply, gold)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def run_async(self, reply: str, gold: str) -> Outcome:
        """The outcome of one check; others go on meanwhile. Cancelling it takes it out of the queue."""
        return await asyncio.wrap_future(self._submit(reply, gold))

    def close(self) -> None:
        """Drop what is queued, end the workers; a later check starts new ones."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                workers, self._started = self._started, set()
            for worker in workers:
                worker.kill()
            threads.shutdown(wait=True)
            with self._lock:
                late, self._started = self._started, set()
            for worker in late:
                worker.kill()

    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        with self._lock:
            return sorted(worker.pid for worker in self._started)

    def _after_fork(self) -> None:
        inherited = self._started
        self._lock, self._threads, self._started = threading.Lock(), None, set()
        for worker in inherited:
            worker.forget()

    def _submit(self, reply: str, gold: str) -> Future[Outcome]:
        with self._lock:
            if self._threads is None:
                self._own = threading.local()
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="drift-math")
            return self._threads.submit(self._check, reply, gold)

    def _check(self, reply: str, gold: str) -> Outcome:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                outcome, again = self._try(reply, gold)
            except _NotStarted:
                if attempt == ATTEMPTS:
                    raise
                continue
            if not again or attempt == ATTEMPTS:
                return outcome
        raise AssertionError

    def _try(self, reply: str, gold: str) -> tuple[Outcome, bool]:
        """An outcome, and whether it says more of its worker than of the check: killed, or stopped, from outside."""
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = Worker(self._deadline, self._memory_mb)
            with self._lock:
                self._started.add(worker)
            self._own.worker = worker
        before = _cpu_seconds(worker.pid)
        try:
            return worker.ask([reply, gold], self._deadline), False
        except (_Late, _Died, OSError, ValueError) as error:
            after = _cpu_seconds(worker.pid)
            self._own.worker = None
            with self._lock:
                self._started.discard(worker)
            worker.kill()
            if not isinstance(error, _Late):
                return {"verdict": "unparseable", "reason": "crash"}, True
            # One that hardly ran did not hang: it was stopped, or had no core to run on.
            stalled = before is not None and after is not None and after - before < self._deadline / 4
            return {"verdict": "unparseable", "reason": "deadline"}, stalled


def _cpu_seconds(pid: int) -> float | None:
    """CPU seconds that a process has used, where the system tells (Linux); ``None`` where it does not."""
    try:
        # The name in parentheses may hold anything; user and system time are the 12th and 13th fields after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def shared_pool(workers: int, deadline: float, memory_mb: int) -> WorkerPool:
    """The one pool of these settings in this process; closed when the process ends."""
    pool = WorkerPool(workers, deadline, memory_mb)
    atexit.register(pool.close)
    return pool
