"""Several methods at a time: processes of this machine that each run one after the other.

A worker is ``python -m drift.comparison.jobs FILE``: a new Python process, not a fork, so nothing of the caller's
program runs in it. It reads orders and writes answers as lines of JSON. Where its input ends in the middle of an order,
the process that started it is gone, and it stops as on Ctrl-C.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from drift import errors
from drift.comparison.methods import BASE
from drift.comparison.settings import Comparison
from drift.errors import DriftError, Interrupted, StorageError, TrainingError
from drift.files import open_own, own_folder
from drift.own_process import ended_with
from drift.progress import leave
from drift.terminal import tell

Failed = dict[str, dict[int, str]]
# What makes one method fail. Running out of a GPU's memory is a RuntimeError, and says nothing about the others.
FAILURES = (DriftError, RuntimeError, MemoryError)
# What stops all of them.
FATAL = (Interrupted, StorageError)
PATIENCE_SECONDS = 60.0


def reason(error: BaseException) -> str:
    """Why a method failed, in words; what is none of our own errors is named."""
    return str(error) if isinstance(error, DriftError) else f"{type(error).__name__}: {error}"


def run_in_processes(comparison: Comparison, out: Path, jobs: int) -> Failed:
    """Run what is not finished in ``jobs`` processes: first what methods share, then the methods.

    What the processes say goes to ``worker-<n>.log`` in ``out``.

    Raises:
        DriftError: what stops all methods.
        KeyboardInterrupt: Ctrl-C; the processes have stopped then.
    """
    from drift.comparison.work import Seed

    seeds = [Seed.of(comparison, number, out) for number in comparison.seeds]
    own_folder(out, stage=True)
    with tempfile.TemporaryDirectory(prefix="drift-compare-") as folder:
        file = Path(folder) / "comparison.pickle"
        file.write_bytes(pickle.dumps((comparison, out)))
        shared = [(seed.number, BASE) for seed in seeds if not seed.finished(BASE)]
        failed = _Pool(file, out, jobs).run(shared)
        if failed:
            raise TrainingError(f"{BASE} failed: {next(iter(failed[BASE].values()))}")
        methods = [(seed.number, name) for seed in seeds for name in comparison.methods if not seed.finished(name)]
        return _Pool(file, out, jobs).run(methods)


class _Pool:
    """Workers, and a thread for each that hands it orders."""

    def __init__(self, file: Path, out: Path, jobs: int) -> None:
        self._file, self._out, self._jobs = file, out, jobs
        self._orders: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._workers: list[subprocess.Popen[str]] = []
        self._failed: Failed = {}
        self._fatal: list[DriftError] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._done = 0

    def run(self, orders: Sequence[tuple[int, str]]) -> Failed:
        """Have every order done; returns the reasons of those that failed."""
        for order in orders:
            self._orders.put(order)
        count = min(self._jobs, len(orders))
        threads = [threading.Thread(target=self._serve, args=(at, len(orders)), daemon=True) for at in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        finally:
            self._stop.set()
            self._end()
        if self._fatal:
            raise self._fatal[0]
        return self._failed

    def _serve(self, at: int, total: int) -> None:
        with open_own(self._out / f"worker-{at + 1}.log", "a") as log:
            worker: subprocess.Popen[str] | None = None
            while not self._stop.is_set():
                try:
                    number, name = self._orders.get_nowait()
                except queue.Empty:
                    break
                if worker is None or worker.poll() is not None:
                    worker = self._start(at, log)
                answer = _ask(worker, number, name)
                with self._lock:
                    self._note(number, name, answer, total)
            if worker is not None and worker.stdin is not None:
                worker.stdin.close()

    def _note(self, number: int, name: str, answer: dict[str, str], total: int) -> None:
        self._done += 1
        if self._stop.is_set():
            return
        what = "rollouts and base" if name == BASE else name
        if answer.get("fatal"):
            kind = getattr(errors, answer["fatal"], TrainingError)
            self._fatal.append(kind(answer["reason"]))
            self._stop.set()
        elif answer.get("reason"):
            self._failed.setdefault(name, {})[number] = answer["reason"]
        ended = f"failed: {answer['reason']}" if answer.get("reason") else "done"
        tell(f"drift compare: seed {number}: {what} {ended} ({self._done} of {total})", error=True)

    def _start(self, at: int, log: IO[str]) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C reaches it once, from here.
        worker = subprocess.Popen(
            [sys.executable, "-m", "drift.comparison.jobs", str(self._file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **_share(at, self._jobs)},
            start_new_session=True,
        )
        with self._lock:
            self._workers.append(worker)
        return worker

    def _end(self) -> None:
        """Wait for workers that were told that there is no more, and stop the others."""
        for worker in self._workers:
            idle = worker.stdin is None or worker.stdin.closed
            if worker.poll() is None and not idle:
                worker.send_signal(signal.SIGINT)
        for worker in self._workers:
            try:
                worker.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _share(at: int, jobs: int) -> dict[str, str]:
    """The cores and the GPU of worker ``at``, where the environment does not say."""
    share = {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(_gpus())]
    if visible != "" and len(devices) > 1:
        share["CUDA_VISIBLE_DEVICES"] = devices[at % len(devices)]
    return share


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _ask(worker: subprocess.Popen[str], number: int, name: str) -> dict[str, str]:
    """Hand one order to a worker and wait for its answer; a worker that ends without one has failed at it."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(json.dumps({"seed": number, "name": name}) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except (OSError, ValueError):
        line = ""
    if line:
        found: dict[str, str] = json.loads(line)
        return found
    code = worker.wait()
    return {"reason": f"its process {ended_with(code)}; see worker-*.log."}


def main() -> int:
    """Do what is ordered until there are no more orders."""
    # What starts in the background of a shell ignores Ctrl-C, and so would this.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    with _answers() as answer:
        comparison, out = pickle.loads(Path(sys.argv[1]).read_bytes())
        orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        busy = threading.Event()
        threading.Thread(target=_listen, args=(orders, busy), daemon=True).start()
        try:
            while (line := orders.get()) is not None:
                busy.set()
                order = json.loads(line)
                told = _do(comparison, out, order["seed"], order["name"])
                busy.clear()
                answer(told)
        except KeyboardInterrupt:
            return 130
    return 0


def _listen(orders: queue.SimpleQueue[str | None], busy: threading.Event) -> None:
    for line in sys.stdin:
        orders.put(line)
    orders.put(None)
    if busy.is_set():
        # Orders end while one is being done only where nobody waits for its answer any more.
        os.kill(os.getpid(), signal.SIGINT)


def _do(comparison: Comparison, out: Path, number: int, name: str) -> dict[str, str]:
    from drift.comparison.work import Seed, opened, run_base, run_method

    seed = Seed.of(comparison, number, out)
    try:
        if name == BASE:
            with opened(seed.recipe) as policy:
                run_base(seed, policy)
        else:
            run_method(comparison, seed, name)
    except FAILURES as error:
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt from error
        traceback.print_exc()
        fatal = isinstance(error, DriftError) and (name == BASE or isinstance(error, FATAL))
        return {"reason": reason(error), **({"fatal": type(error).__name__} if fatal else {})}
    return {}


@contextmanager
def _answers() -> Iterator[Callable[[dict[str, str]], Any]]:
    """Answers go where standard output went; what libraries print there goes to the log."""
    own = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(own, "w") as channel:

        def answer(told: dict[str, str]) -> None:
            channel.write(json.dumps(told) + "\n")
            channel.flush()

        yield answer


if __name__ == "__main__":
    leave(main())
