"""Work in a process of its own, which gives all its memory back when it ends, a GPU's too.

The process is ``python -m drift.own_process FILE``: a new one, not a fork, so nothing of the caller's program runs in
it. Where its input ends, the process that started it is gone, and it stops as on Ctrl-C.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from drift import errors
from drift.endings import in_words
from drift.errors import ConfigError, DriftError, Interrupted, TrainingError
from drift.progress import leave

PATIENCE_SECONDS = 60.0
GO_ON = "Run the same command again to go on from the last checkpoint."


def call_apart(function: str, **arguments: Any) -> None:
    """Call ``module:function`` in a process of its own and wait for it; what it returns is lost.

    Raises:
        ConfigError: an argument that can't be handed to another process.
        DriftError: what the function raised.
        TrainingError: the process ended without saying why.
        Interrupted: Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="drift-apart-") as folder:
        request, report = Path(folder) / "request.pickle", Path(folder) / "report.json"
        try:
            request.write_bytes(pickle.dumps((function, arguments, report)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{function} runs in a process of its own, which can't be given all of its settings: {error}. "
                "Put your own classes and functions into a module."
            ) from error
        code = _wait(
            subprocess.Popen(
                [sys.executable, "-m", "drift.own_process", str(request)],
                stdin=subprocess.PIPE,
                # A session of its own: Ctrl-C reaches it once, from here.
                start_new_session=True,
            )
        )
        failure = reported(report)
        if failure is not None:
            raise failure
        if code == 130:
            raise Interrupted("stopped. Run the same command again to go on.")
        if code:
            raise TrainingError(f"the process of {function} {ended_with(code)}; see above. {GO_ON}")


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
        process.kill()
        process.wait()
        return 130


def ended_with(code: int) -> str:
    """How a process ended, and what that says."""
    ended = f"ended with signal {-code}" if code < 0 else f"ended with exit code {code}"
    return ended + (" (the system ends processes so when memory runs out)" if code == -signal.SIGKILL else "")


def report_to(report: Path, error: DriftError) -> None:
    """Write down what was raised, for the process that waits."""
    report.write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))


def reported(report: Path) -> DriftError | None:
    """What a process wrote down with ``report_to``, if anything."""
    if not report.is_file():
        return None
    found = json.loads(report.read_text())
    kind = getattr(errors, found["type"], None)
    return kind(found["message"]) if isinstance(kind, type) and issubclass(kind, DriftError) else None


def main() -> int:
    """Call the function of a request; an error goes into its report."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    function, arguments, report = pickle.loads(Path(sys.argv[1]).read_bytes())
    threading.Thread(target=_stop_with_the_caller, daemon=True).start()
    module, _, name = function.partition(":")
    try:
        getattr(import_module(module), name)(**arguments)
    except DriftError as error:
        report_to(report, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        report_to(report, in_words(error, function))
        return 1
    return 0


def _stop_with_the_caller() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    leave(main())
