"""The workers of a Ray cluster: where they may be, which are there, what they answer. No knowledge of conversations."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from drift.errors import ClusterError, PolicyError
from drift.rollouts.config import ClusterConfig
from drift.rollouts.setup import Setup
from drift.rollouts.worker import Failure, Orders, Place, Ready, Report, Worker

# How often the cluster is asked which nodes it has.
NODES_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
CLOSE_SECONDS = 10.0
CONNECT_SECONDS = 10.0

# A node and a number on it, or no node and a number where Ray may choose.
Slot = tuple[str, int]


@dataclass(kw_only=True, eq=False)
class Member:
    """One worker: ``pending`` until a node runs it, ``making`` while it loads its policy, then ``ready``."""

    key: str
    slot: Slot
    actor: Any
    call: Any
    state: Literal["pending", "making", "ready"] = "pending"
    place: Place | None = None

    @property
    def where(self) -> str:
        """Its machine, for messages."""
        return self.place.name if self.place else f"node {self.slot[0][:8]}" if self.slot[0] else "a node"


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A worker that will not answer any more; ``crashed`` says that its node lives on, so it died of itself."""

    message: str
    crashed: bool


Answer = Ready | Report | Failure | Gone


def slots(nodes: Iterable[Mapping[str, Any]], config: ClusterConfig) -> list[Slot]:
    """Where workers should be, given what ``ray.nodes()`` says."""
    if config.workers != "auto":
        return [("", number) for number in range(config.workers)]
    alive = [node for node in nodes if node["Alive"]]
    gpus = gpus_of_worker(alive, config)
    found = []
    for node in alive:
        has = node["Resources"]
        by_cpu = int(has.get("CPU", 0) // config.cpus) if config.cpus else None
        count = int(has.get("GPU", 0) / gpus + 1e-9) if gpus else 1
        found += [(node["NodeID"], number) for number in range(count if by_cpu is None else min(count, by_cpu))]
    return found


def gpus_of_worker(nodes: Iterable[Mapping[str, Any]], config: ClusterConfig) -> float:
    """GPUs of one worker: as set, or 1 where any live node has one."""
    if config.gpus != "auto":
        return config.gpus
    return float(any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in nodes))


class Fleet:
    """Starts workers wherever there is a slot, replaces those that are lost, and passes on what they answer.

    Args:
        config: which cluster, and how many workers of which size.
        setup: what each worker makes.

    Raises:
        PolicyError: Ray is not installed.
        ClusterError: no such cluster.
    """

    def __init__(self, config: ClusterConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup
        self._ray, self._connected = connect(config.address)
        self.members: dict[Slot, Member] = {}
        self.closed: set[Slot] = set()
        self._numbers = itertools.count()
        self._pauses: dict[Slot, tuple[float, float]] = {}
        self._nodes: list[dict[str, Any]] = []
        self._looked = float("-inf")
        self.started = 0

    def nodes(self, *, now: bool = False) -> list[dict[str, Any]]:
        """The cluster's nodes, dead ones included, as of a second ago at most."""
        if now or time.monotonic() - self._looked >= NODES_SECONDS:
            self._nodes, self._looked = self._ray.nodes(), time.monotonic()
        return self._nodes

    def fill(self) -> None:
        """Start a worker in every slot that has none."""
        nodes = self.nodes()
        for slot in slots(nodes, self._config):
            due, _ = self._pauses.get(slot, (0.0, 0.0))
            if slot not in self.members and slot not in self.closed and time.monotonic() >= due:
                self.members[slot] = self._start(slot, gpus_of_worker(nodes, self._config))

    def _start(self, slot: Slot, gpus: float) -> Member:
        strategy: Any = "SPREAD"
        if slot[0]:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            strategy = NodeAffinitySchedulingStrategy(node_id=slot[0], soft=False)
        # Ray must not restart it: the conversations it had open have to be known lost.
        options = {"num_cpus": self._config.cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = self._ray.remote(Worker).options(scheduling_strategy=strategy, **options).remote(self._setup)
        return Member(key=f"worker {next(self._numbers)}", slot=slot, actor=actor, call=actor.place.remote())

    def send(self, member: Member, orders: Orders) -> None:
        """Hand ``orders`` to a ready worker that has answered all before."""
        assert member.call is None and member.state == "ready"
        member.call = member.actor.exchange.remote(orders)

    def answers(self, seconds: float) -> list[tuple[Member, Answer]]:
        """What workers answered: waits up to ``seconds`` for the first of them."""
        calling = {member.call: member for member in self.members.values() if member.call is not None}
        if not calling:
            time.sleep(seconds)
            return []
        self._ray.wait(list(calling), num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(list(calling), num_returns=len(calling), timeout=0)
        found = []
        for call in ready:
            member = calling[call]
            answer = self._result(member, call)
            if isinstance(answer, Place):
                member.place, member.state = answer, "making"
                member.call = member.actor.make.remote()
            else:
                found.append((member, answer))
        return found

    def _result(self, member: Member, call: Any) -> Answer | Place:
        from ray import exceptions

        member.call = None
        try:
            answer: Answer | Place = self._ray.get(call)
        except exceptions.RayError as error:
            node = member.place.node if member.place else member.slot[0]
            away = (exceptions.ActorUnavailableError, exceptions.ActorUnschedulableError, exceptions.ObjectLostError)
            dead = any(entry["NodeID"] == node and not entry["Alive"] for entry in self.nodes(now=True))
            return Gone(message=_last_lines(str(error)), crashed=not dead and not isinstance(error, away))
        if isinstance(answer, Ready):
            member.state = "ready"
            self._pauses.pop(member.slot, None)
            self.started += 1
        return answer

    def dismiss(self, member: Member, *, for_good: bool = False) -> None:
        """End a worker. Its slot is filled again after a pause that grows from time to time, or ``for_good`` never."""
        self.members.pop(member.slot, None)
        self._ray.kill(member.actor)
        if for_good:
            self.closed.add(member.slot)
        _, last = self._pauses.get(member.slot, (0.0, 0.5))
        pause = min(LONGEST_PAUSE_SECONDS, 2 * last)
        self._pauses[member.slot] = (time.monotonic() + pause, pause)

    def hopeless(self) -> bool:
        """Whether nobody is there and every slot is closed."""
        return not self.members and bool(self.closed) and self.closed >= set(slots(self.nodes(), self._config))

    def describe(self) -> str:
        """The live nodes and what a worker asks of them, for messages."""
        nodes = [node for node in self.nodes() if node["Alive"]]
        has = "; ".join(
            f"{node['NodeManagerHostname']} ({node['Resources'].get('CPU', 0):g} CPUs, "
            f"{node['Resources'].get('GPU', 0):g} GPUs)"
            for node in nodes
        )
        asks = f"{self._config.cpus:g} CPUs and {gpus_of_worker(nodes, self._config):g} GPUs"
        return f"a worker asks for {asks}; the cluster has {has or 'no live node'}"

    def close(self, *, orderly: bool) -> None:
        """End all workers, ``orderly`` ones after they have put away what they hold, and leave the cluster."""
        try:
            if orderly:
                ready = [member.actor.close.remote() for member in self.members.values() if member.state == "ready"]
                self._ray.wait(ready, num_returns=len(ready), timeout=CLOSE_SECONDS) if ready else None
            for member in self.members.values():
                self._ray.kill(member.actor)
            self.members.clear()
        finally:
            if self._connected:
                self._ray.shutdown()


def connect(address: str) -> tuple[Any, bool]:
    """Join the cluster at ``address``, or start one here for ``local``; returns Ray, and whether this call did it."""
    if address == "local":
        # Ray reads these when it is first imported: all its servers on loopback, and nothing reported anywhere.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise PolicyError("cluster: the ray package is missing. Run: pip install 'drift-rl[ray]'.") from error
    if ray.is_initialized():
        return ray, False
    _check_port(address)
    on_main = threading.current_thread() is threading.main_thread()
    terminate = signal.getsignal(signal.SIGTERM) if on_main else None
    try:
        own = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="error", **own)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, error) from error
    finally:
        # Ray sets a handler of its own, which would end the run without a word.
        if on_main:
            signal.signal(signal.SIGTERM, terminate)
    return ray, True


def _check_port(address: str) -> None:
    """Ray itself would try for minutes to reach a head that is not there."""
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ClusterError:
    return ClusterError(
        f"cluster.address: no Ray cluster can be joined at {address!r}: {_last_lines(str(error))}. "
        "Start one with `ray start --head`, and `ray start --address HOST:PORT` on every other machine."
    )


def _last_lines(text: str) -> str:
    """The end of a long message, where the cause stands, on one line."""
    return " ".join(" ".join(text.strip().splitlines()[-4:]).split())[-600:].rstrip(".")
