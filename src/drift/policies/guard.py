"""Ends processes whose parent is gone: ``python -m drift.policies.guard PID …``, standard input a pipe of the parent.

vLLM's engine does not notice that the process which started it was killed, and would hold a GPU's memory for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE_SECONDS = 10.0


def watch(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a guard that ends ``pids`` when this process is gone; kill the guard once they have ended in order."""
    return subprocess.Popen(
        [sys.executable, "-m", "drift.policies.guard", *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Neither Ctrl-C nor a signal to the parent's group may end the guard before the parent.
        start_new_session=True,
    )


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def main(pids: Sequence[int]) -> None:
    """Wait until nobody holds the other end of standard input, then end ``pids``."""
    sys.stdin.buffer.read()
    _send(pids, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _send(pids, signal.SIGKILL)


if __name__ == "__main__":
    main([int(pid) for pid in sys.argv[1:]])
