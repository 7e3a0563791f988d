"""One worker of a cluster: it makes its own policy and environment, and holds the conversations it is handed."""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections import deque
from dataclasses import dataclass

from drift import __version__
from drift.environments.base import EnvironmentFactory
from drift.errors import DriftError
from drift.policies.base import AnyPolicy, Sampling, is_text_only
from drift.rollouts.episode import Assignment, Counts, counts_of, episode
from drift.rollouts.setup import Setup
from drift.types import Trajectory

# A call returns after this long even if nothing is finished, so that assignments set free elsewhere find a worker.
POLL_SECONDS = 1.0
# Conversations that finish together travel together.
GATHER_SECONDS = 0.01
LARGEST_REPORT = 256


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker runs: Ray's id of the node, and a name to tell a person."""

    node: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker has made its policy: the policy's fingerprint, and whether it tells no token ids."""

    fingerprint: str
    text_only: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What was raised on a worker, as text: not every exception survives the journey.

    ``ours`` says that it is a ``DriftError``: a wrong setting or a missing model, explained by its message.
    """

    message: str
    ours: bool


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker is handed: conversations of one collection, the ``round``-th of this cluster."""

    round: int
    sampling: Sampling
    concurrency: int
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker returns: conversations finished since the last report, and all that it counted so far."""

    round: int
    finished: tuple[Trajectory, ...]
    counts: Counts
    failure: Failure | None = None


class Worker:
    """Holds up to ``Orders.concurrency`` conversations at once; each goes on as soon as its reply is there.

    An actor on one event loop. ``make`` comes first and says whether it worked; then ``exchange`` over and over.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._policy: AnyPolicy | None = None
        self._factory: EnvironmentFactory | None = None
        self._round = -1
        self._waiting: deque[Assignment] = deque()
        self._open: set[asyncio.Task[None]] = set()
        self._finished: deque[Trajectory] = deque()
        self._failure: Failure | None = None

    async def place(self) -> Place:
        """Where this is; the first answer, so that a worker that waits for room is told from one that loads."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return Place(node=node, name=f"{socket.gethostname()} (node {node[:8]})")

    async def make(self) -> Ready | Failure:
        """Make policy and environment."""
        if self._setup.version != __version__:
            text = f"drift {__version__} is installed there and {self._setup.version} here. Install the same version."
            return Failure(message=text, ours=True)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self._factory = self._setup.make_environment()
            self._policy = self._setup.make_policy()
            # Starts an engine: one that can't start here is told of now.
            getattr(self._policy, "context_length", None)
        except Exception as error:
            return _failure(error)
        return Ready(fingerprint=self._policy.fingerprint, text_only=is_text_only(self._policy))

    async def exchange(self, orders: Orders) -> Report:
        """Take assignments and return what has finished, as soon as there is something or a second has passed."""
        if orders.round != self._round:
            self._round, self._event = orders.round, asyncio.Event()
            self._waiting.clear()
            self._finished.clear()
        self._sampling, self._concurrency = orders.sampling, orders.concurrency
        self._waiting.extend(orders.assignments)
        self._fill()
        if not self._finished and self._failure is None:
            try:
                await asyncio.wait_for(self._event.wait(), POLL_SECONDS)
                await asyncio.sleep(GATHER_SECONDS)
            except TimeoutError:
                pass
        self._event.clear()
        sent = tuple(self._finished.popleft() for _ in range(min(LARGEST_REPORT, len(self._finished))))
        counts = counts_of(self._policy, self._factory)
        return Report(round=self._round, finished=sent, counts=counts, failure=self._failure)

    async def close(self) -> None:
        """Let policy and environment put away what they hold."""
        for held in (self._policy, self._factory):
            close = getattr(held, "aclose", None)
            if close is not None:
                await close()

    def _fill(self) -> None:
        while self._waiting and len(self._open) < self._concurrency and self._failure is None:
            task = asyncio.create_task(self._hold(self._waiting.popleft(), self._round))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _hold(self, assignment: Assignment, round: int) -> None:
        assert self._policy is not None and self._factory is not None
        try:
            trajectory = await episode(assignment, self._factory, self._policy, self._sampling)
            if round == self._round:
                self._finished.append(trajectory)
        except Exception as error:
            self._failure = self._failure or _failure(error)
        task = asyncio.current_task()
        assert task is not None
        self._open.discard(task)
        self._event.set()
        self._fill()


def _failure(error: Exception) -> Failure:
    if isinstance(error, DriftError):
        return Failure(message=str(error), ours=True)
    return Failure(message="".join(traceback.format_exception(error)[-3:]).strip(), ours=False)
