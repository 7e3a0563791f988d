"""One rank of ``train_in_processes``: ``python -m drift.training.worker_process REQUEST``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from drift.endings import in_words
from drift.errors import DriftError
from drift.own_process import report_to
from drift.progress import leave
from drift.training.config import TrainingConfig


def main() -> int:
    """Train as the request says; an error goes into its report, for the process that started this one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Each rank would take all cores.
    cores = max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    # DDP looks for unused parameters (experts that got no token) and warns when there were none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    request = json.loads(Path(sys.argv[1]).read_text())
    report, config = Path(request.pop("report")), request.pop("config")
    try:
        from drift.training.run import train_model

        data, weights, out = (Path(request.pop(name)) for name in ("data", "weights", "out"))
        train_model(data, weights, TrainingConfig(**config), out, **request)
    except DriftError as error:
        report_to(report, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        report_to(report, in_words(error, "training"))
        return 1
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    leave(code)
