"""Training by several processes of this machine, started through torch's launcher."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drift.errors import DriftError, Interrupted, TrainingError, require
from drift.own_process import GO_ON, ended_with, reported
from drift.training.config import TrainingConfig
from drift.training.distributed import is_launched


def needs_launch(config: TrainingConfig) -> bool:
    """Whether ranks must be started for ``config``; not where a launcher started this process as one of them.

    Raises:
        ConfigError: it started another number of them.
    """
    if not is_launched():
        return config.num_processes > 1 or config.engine != "ddp"
    started = int(os.environ["WORLD_SIZE"])
    require(
        config.num_processes in (1, started),
        "training.num_processes",
        config.num_processes,
        f"{started}, which is what the launcher started, or nothing",
        "Give the number to one of the two.",
    )
    return False


def train_in_processes(request: Mapping[str, Any], processes: int) -> None:
    """Run ``drift.training.worker_process`` on so many local ranks and wait for them.

    The ranks are new Python processes, not forks: nothing of the caller's program runs in them, so it needs no
    ``if __name__ == "__main__"``.

    Args:
        request: arguments of ``train_model`` as plain values.
        processes: ranks.

    Raises:
        DriftError: what a rank raised.
        TrainingError: a rank ended without saying why.
        Interrupted: Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="drift-ranks-") as folder:
        report = Path(folder) / "report.json"
        path = Path(folder) / "request.json"
        path.write_text(json.dumps({**request, "report": str(report)}))
        failure = _run(["-m", "drift.training.worker_process", str(path)], processes, Path(folder))
        if failure is None:
            return
        raise reported(report) or failure


def _run(arguments: list[str], processes: int, folder: Path) -> DriftError | None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        # Port 0: one that the system says is free.
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )
    with _signals_given_back(), _launcher_quiet():
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return TrainingError(f"rank {rank} of {processes} {ended_with(failure.exitcode)}; see above. {GO_ON}")
        except (SignalException, KeyboardInterrupt):
            return Interrupted(f"stopped. {GO_ON}")
    return None


@contextmanager
def _signals_given_back() -> Iterator[None]:
    """The launcher puts handlers of its own in place and leaves them there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _launcher_quiet() -> Iterator[None]:
    """We say once what went wrong; the launcher's log would say it twice more."""
    loggers = [
        logging.getLogger(f"torch.distributed.elastic.{name}")
        for name in ("multiprocessing.api", "agent.server.api", "agent.server.local_elastic_agent", "rendezvous")
    ]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False
