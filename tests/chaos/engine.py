"""A server of the default policy in a process of its own, which can be killed like one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time

from tests.policies.servers import PolicyServer

from drift.policies.base import DEFAULT_MODEL
from drift.policies.hf import HFPolicy


class _At(PolicyServer):
    """As ``PolicyServer``, at a port that is given."""

    def __init__(self, policy: HFPolicy, port: int) -> None:
        super().__init__(policy)
        self._at = port

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", self._at)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(port: int) -> int:
    """Start a server in a fork of this process and wait until it answers; its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            with _At(HFPolicy(str(DEFAULT_MODEL)), port):
                while True:
                    time.sleep(3600)
        finally:
            os._exit(1)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return pid
        time.sleep(0.05)
    kill(pid)
    raise AssertionError("the server did not start")


def kill(pid: int) -> None:
    """End a server as the system would that has no memory left."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
