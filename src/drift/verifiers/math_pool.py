"""Worker processes that judge answers, each killed and replaced when it is late."""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from drift.errors import ConfigError

# The worker gets this process's search path as arguments; it never runs this process's __main__.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from {} import main; main()"
MATH = "drift.verifiers.math_worker"
START_SECONDS = 120.0
# A worker whose parent died in mid-check ends this long after the deadline at the latest.
GRACE_SECONDS = 1.0
# How often a check is begun: what ends so many workers, or hangs in them, is the check and no accident of a worker.
ATTEMPTS = 3
Outcome = dict[str, str]


class _NotStarted(ConfigError):
    """The worker ended, or said nothing, before its first check."""


class WorkerProcess:
    """One process and the socket to it, used by one thread at a time.

    Args:
        deadline: seconds that one check may take.
        memory_mb: the most address space it may use, in MiB.
        module: whose ``main`` it runs.

    Raises:
        ConfigError: it does not start, or math-verify can't be used.
    """

    def __init__(self, deadline: float, memory_mb: int, module: str = MATH) -> None:
        self._socket, its_end = socket.socketpair()
        with its_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT.format(module), *sys.path],
                stdin=its_end.fileno(),
                stdout=its_end.fileno(),
                stderr=subprocess.DEVNULL,
                # What goes through a set is in the same order in every worker.
                env={**os.environ, "PYTHONHASHSEED": "0"},
                # Ctrl-C in the terminal is for this process, which decides about its workers.
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            ready = self.ask({"alarm": deadline + GRACE_SECONDS, "memory_mb": memory_mb}, START_SECONDS)
        except OSError as error:
            self.kill()
            raise _NotStarted(
                f"{module}: a worker process of {sys.executable} did not start "
                f"({'too slow' if isinstance(error, TimeoutError) else 'it ended'}). "
                f"Check that this runs: python -c 'import {module if module != MATH else 'math_verify'}'."
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
        """The outcome of one request; ``TimeoutError`` by the deadline, another ``OSError`` where the worker ended."""
        end = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        self._socket.sendall((json.dumps(request) + "\n").encode("ascii"))
        received = bytearray()
        while not received.endswith(b"\n"):
            # A timeout of 0 would mean none.
            self._socket.settimeout(max(1e-3, end - time.monotonic()))
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise ConnectionResetError
            received += chunk
        outcome: Outcome = json.loads(received)
        return outcome

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def forget(self) -> None:
        """Close a forked child's copy of the socket, so that the worker can see its parent end."""
        self._socket.close()
        self._process.returncode = 0  # not this process's child: nothing to wait for


class WorkerPool:
    """Threads that ask a worker process each; the processes are started when first needed.

    A Ctrl-C reaches only the thread that waits for an outcome, never one that talks to a worker, so it leaves the pool
    whole. After a fork the child starts workers of its own.

    Args:
        workers: how many.
        deadline: seconds that one check may take.
        memory_mb: the most address space one worker may use, in MiB.
        module: whose ``main`` they run.
    """

    def __init__(self, workers: int, deadline: float, memory_mb: int, module: str = MATH) -> None:
        self._workers, self._deadline, self._memory_mb, self._module = workers, deadline, memory_mb, module
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._running: set[WorkerProcess] = set()
        self._idle: list[WorkerProcess] = []
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
            self._kill_all()
            threads.shutdown(wait=True)
            # Those that a check started meanwhile, because its worker had been killed.
            self._kill_all()

    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        with self._lock:
            return sorted(worker.pid for worker in self._running)

    def _kill_all(self) -> None:
        with self._lock:
            workers, self._running, self._idle = self._running, set(), []
        for worker in workers:
            worker.kill()

    def _after_fork(self) -> None:
        inherited = self._running
        self._lock, self._threads, self._running, self._idle = threading.Lock(), None, set(), []
        for worker in inherited:
            worker.forget()

    def _submit(self, reply: str, gold: str) -> Future[Outcome]:
        with self._lock:
            if self._threads is None:
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
            if not again:
                break
        return outcome

    def _try(self, reply: str, gold: str) -> tuple[Outcome, bool]:
        """An outcome, and whether it says more of its worker than of the check: killed, or stopped, from outside."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = WorkerProcess(self._deadline, self._memory_mb, self._module)
            with self._lock:
                self._running.add(worker)
        before = _cpu_seconds(worker.pid)
        try:
            outcome = worker.ask([reply, gold], self._deadline)
        except (OSError, ValueError) as error:
            after = _cpu_seconds(worker.pid)
            with self._lock:
                self._running.discard(worker)
            worker.kill()
            if not isinstance(error, TimeoutError):
                return {"verdict": "unparseable", "reason": "crash"}, True
            # One that hardly ran did not hang: it was stopped, or had no core to run on.
            stalled = before is not None and after is not None and after - before < self._deadline / 4
            return {"verdict": "unparseable", "reason": "deadline"}, stalled
        with self._lock:
            # Unless the pool was closed meanwhile, and it is being killed.
            if worker in self._running:
                self._idle.append(worker)
        return outcome, False


def _cpu_seconds(pid: int) -> float | None:
    """CPU seconds that a process has used, where the system shows them (Linux); ``None`` where it does not."""
    try:
        # The name in parentheses may hold anything; user and system time are the 12th and 13th fields after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def shared_pool(workers: int, deadline: float, memory_mb: int, module: str = MATH) -> WorkerPool:
    """The one pool of these settings in this process; closed when the process ends."""
    pool = WorkerPool(workers, deadline, memory_mb, module)
    atexit.register(pool.close)
    return pool
