"""A Ray cluster of several nodes on this machine, policies for its workers, and ``drift`` run against it."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from drift.dataset.store import read_trajectories

# Ray reads the first when it is imported: servers on loopback alone. Nobody else on this machine may use the cluster.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

PLUGIN = '''
import asyncio, os
from pathlib import Path
from drift.errors import PolicyError
from drift.policies.scripted import ScriptedPolicy

REPLIES = ["<answer>40</answer>", "<answer>41</answer>", "what?", "<answer>55</answer>"]

class Slow(ScriptedPolicy):
    """Takes ``seconds`` for a reply, and notes in ``notes`` in which process it was made."""
    def __init__(self, seconds, notes=""):
        super().__init__(REPLIES)
        self._seconds = float(seconds)
        if notes:
            (Path(notes) / str(os.getpid())).touch()
    async def complete(self, prompt_ids, *, sampling, seed):
        await asyncio.sleep(self._seconds)
        return await super().complete(prompt_ids, sampling=sampling, seed=seed)

class Broken(ScriptedPolicy):
    def __init__(self, when):
        super().__init__(REPLIES)
        self._when = when
        if when == "made":
            raise PolicyError("no such model. Give another.")
        if when == "crash":
            os._exit(1)
    async def complete(self, prompt_ids, *, sampling, seed):
        raise RuntimeError("out of memory")

class Uneven(ScriptedPolicy):
    """Another policy in each process."""
    def __init__(self, name):
        super().__init__(REPLIES, name=str(os.getpid()))
'''
# Apart from the others, which load no torch.
PLUGIN_WITH_MODEL = '''
import os
from pathlib import Path
from drift.policies.base import DEFAULT_MODEL
from drift.policies.hf import HFPolicy

class Noted(HFPolicy):
    """The policy that comes with the package; notes in ``notes`` in which process it was made."""
    def __init__(self, notes):
        super().__init__(str(DEFAULT_MODEL), dtype="float32", batch_size=16)
        (Path(notes) / str(os.getpid())).touch()
'''
ENTRY_POINTS = """
[drift.policies]
noted = drift_test_model:Noted
slow = drift_test_policies:Slow
broken = drift_test_policies:Broken
uneven = drift_test_policies:Uneven
"""


def install(folder: Path) -> None:
    """A package with entry points in ``folder``, found by every process started from here on."""
    (folder / "drift_test_policies.py").write_text(PLUGIN)
    (folder / "drift_test_model.py").write_text(PLUGIN_WITH_MODEL)
    about = folder / "drift_test_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: drift-test-policies\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


class Machines:
    """Nodes of one Ray cluster: a head that runs no workers, and ``add`` for those that do."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # A dead node is noticed within two seconds, not fifteen.
        quick = {
            "health_check_initial_delay_ms": 500,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 1000,
            "health_check_failure_threshold": 2,
        }
        self._memory = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **self._memory}
        )
        self.address: str = self._cluster.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def add(self, cpus: int = 1) -> Any:
        """A node with room for ``cpus`` workers."""
        return self._cluster.add_node(num_cpus=cpus, **self._memory)

    def kill(self, node: Any) -> None:
        """SIGKILL to the node's raylet and everything it started."""
        for infos in node.all_processes.values():
            for info in infos:
                victim = psutil.Process(info.process.pid)
                for process in (*victim.children(recursive=True), victim):
                    process.send_signal(signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def clear(self) -> None:
        """Take away every node but the head."""
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node, allow_graceful=False)

    def node_of(self, worker: int) -> Any:
        """The node on which the process ``worker`` runs."""
        parents = {parent.pid for parent in psutil.Process(worker).parents()}
        return next(
            node
            for node in self._cluster.worker_nodes
            if any(info.process.pid in parents for infos in node.all_processes.values() for info in infos)
        )

    def workers(self) -> list[psutil.Process]:
        """The processes of drift's workers on all nodes that live."""
        found = []
        for node in self._cluster.worker_nodes:
            for infos in node.all_processes.values():
                for process in (child for info in infos for child in children(info.process.pid)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        found += [process] if "".join(process.cmdline()).startswith("ray::Worker") else []
        return found


def drift(*arguments: str, patience: float = 600.0) -> "subprocess.Popen[str]":
    """``drift`` with these arguments, in a process of its own, which does without workers for ``patience`` seconds."""
    # Shards are closed five times a second, so that a test can see that a run is under way.
    script = (
        "from drift.dataset import store; store.FLUSH_SECONDS = 0.2; "
        f"from drift.rollouts import cluster; cluster.PATIENCE_SECONDS = {patience}; "
        "from drift.cli import entry; entry()"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``child``."""
    try:
        out, err = child.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        raise AssertionError(f"still running after 200 s:\n{out}\n{err}") from None
    return child.returncode, out, err


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """What ``condition`` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def kept(folder: Path) -> int:
    """How many trajectories are in the shards of ``folder``."""
    if not (folder / "manifest.json").is_file():
        return 0
    return len(read_trajectories(folder, complete_only=False))


def children(pid: int) -> list[psutil.Process]:
    """What the process ``pid`` started, and what that started; none if it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead with nobody to bury it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def listening(process: psutil.Process) -> set[str]:
    """The addresses that ``process`` and what it started listen on."""
    found = set()
    for each in (process, *process.children(recursive=True)):
        found |= {c.laddr.ip for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return found
