"""Conversations held by workers on many machines, delivered to one writer here, each exactly once."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import Any, NoReturn, Self

from drift.errors import ClusterError, PolicyError
from drift.policies.base import AnyPolicy, Sampling
from drift.progress import say
from drift.rollouts.config import ClusterConfig
from drift.rollouts.episode import Assignment, Counts
from drift.rollouts.failures import MAX_FAILED
from drift.rollouts.fleet import Answer, Fleet, Gone, Member
from drift.rollouts.ledger import Ledger
from drift.rollouts.setup import Setup
from drift.rollouts.worker import Failure, Orders, Ready, Report
from drift.types import Trajectory

WAIT_SECONDS = 0.5
SAY_SECONDS = 15.0
# A cluster without any worker for so long is given up: longer than it takes to replace a machine.
PATIENCE_SECONDS = 600.0
# So many workers may fail in a row, or one for each if there are more, before the run is given up.
FAILURES = 3


class Cluster:
    """Workers that hold conversations; ``collect`` takes it in place of a policy.

    A worker that is lost costs what it had open: that is handed out again, and another worker takes its place as soon
    as there is room. Nodes that join are used. What a worker raises is tried on others, but not for ever.

    Args:
        config: which cluster, and how many workers of which size.
        setup: what each worker makes.

    Raises:
        ClusterError: no such cluster; no worker for ``PATIENCE_SECONDS``; workers that fail over and over.
        PolicyError: Ray is missing; the policy can't be made on any node; two nodes have different ones.
    """

    def __init__(self, config: ClusterConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup
        self._fingerprint = ""
        self._text_only = False
        self._first: Member | None = None
        self._round = 0
        self._failures = 0
        self._counts: dict[str, Counts] = {}
        self._record: Counter[str] = Counter()

    def __enter__(self) -> Self:
        # Ray prints what happens to nodes, which must not get between the results on standard output.
        self._quiet = redirect_stdout(sys.stderr)
        self._quiet.__enter__()
        try:
            self._fleet = Fleet(self._config, self._setup)
        except BaseException:
            self._quiet.__exit__(None, None, None)
            raise
        self._served = self._said = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._fleet.close(orderly=kind is None)
        finally:
            self._quiet.__exit__(kind, error, trace)

    @property
    def fingerprint(self) -> str:
        """The policy's, told by the first worker that has made it; waits for that."""
        while not self._fingerprint:
            self._turn(Ledger([]), lambda trajectory: None)
        return self._fingerprint

    @property
    def text_only(self) -> bool:
        """Whether the policy tells no token ids, told in the same way."""
        return self._text_only if self.fingerprint else False

    @property
    def max_failed(self) -> float:
        """Share of the conversations that may fail for want of a reply, as the policy's settings have it."""
        return float(self._setup.policy.get("max_failed", MAX_FAILED))

    def hold(
        self,
        todo: Sequence[Assignment],
        deliver: Callable[[Trajectory], None],
        *,
        sampling: Sampling,
        concurrency: int,
    ) -> None:
        """Have every conversation held and ``deliver`` each once, in the order in which they arrive."""
        ledger = Ledger(todo)
        self._round += 1
        self._sampling, self._concurrency = sampling, concurrency
        while ledger.left:
            self._turn(ledger, deliver)
        self._record["requeued"] += ledger.requeued
        self._record["duplicates"] += ledger.duplicates

    def record(self) -> dict[str, Any]:
        """What the manifest says beside the spec: what workers counted, summed, and what became of them."""
        sums: dict[str, Counter[str]] = {}
        for counts in self._counts.values():
            for kind, found in counts.items():
                sums.setdefault(kind, Counter()).update(found)
        events = {name: self._record[name] for name in ("lost", "failed", "requeued", "duplicates")}
        return {
            **{kind: dict(total) for kind, total in sums.items()},
            "cluster": {"workers": self._fleet.started, **events},
        }

    def _turn(self, ledger: Ledger, deliver: Callable[[Trajectory], None]) -> None:
        """Hand out, wait for answers, take them in."""
        self._fleet.fill()
        members = list(self._fleet.members.values())
        serving = [member for member in members if member.state != "pending"]
        if ledger.left:
            for member in serving:
                if member.state == "ready" and member.call is None:
                    room = ledger.room(member.key, concurrency=self._concurrency, workers=len(serving))
                    orders = Orders(
                        round=self._round,
                        sampling=self._sampling,
                        concurrency=self._concurrency,
                        assignments=tuple(ledger.take(member.key, room)),
                    )
                    self._fleet.send(member, orders)
        self._check_patience(bool(serving))
        for member, answer in self._fleet.answers(WAIT_SECONDS):
            self._take_in(member, answer, ledger, deliver)

    def _take_in(self, member: Member, answer: Answer, ledger: Ledger, deliver: Callable[[Trajectory], None]) -> None:
        if isinstance(answer, Ready):
            self._compare(member, answer)
        elif isinstance(answer, Gone):
            self._lose(member, ledger, "failed" if answer.crashed else "lost")
            if answer.crashed:
                self._count_failure(member, Failure(message=answer.message, ours=False))
        elif isinstance(answer, Failure):
            # A wrong setting, or a model that is not there, will be so the next time.
            self._lose(member, ledger, "failed", for_good=answer.ours and bool(member.slot[0]))
            self._count_failure(member, answer)
        else:
            self._counts[member.key] = answer.counts
            self._deliver(member, answer, ledger, deliver)
            if answer.failure is not None:
                self._lose(member, ledger, "failed")
                self._count_failure(member, answer.failure)

    def _deliver(self, member: Member, report: Report, ledger: Ledger, deliver: Callable[[Trajectory], None]) -> None:
        if report.round != self._round:
            return
        for trajectory in report.finished:
            if ledger.deliver(member.key, trajectory.id):
                deliver(trajectory)
        if report.finished:
            self._failures = 0

    def _lose(self, member: Member, ledger: Ledger, kind: str, *, for_good: bool = False) -> None:
        self._record[kind] += member.state != "pending"
        held = ledger.lose(member.key)
        self._fleet.dismiss(member, for_good=for_good)
        if kind == "lost" and member.state != "pending":
            say(f"the worker on {member.where} is lost; its {held} open conversations are held again")

    def _count_failure(self, member: Member, failure: Failure) -> None:
        self._failures += 1
        limit = max(FAILURES, len(self._fleet.members) + 1)
        if self._failures < limit and not self._fleet.hopeless():
            say(f"a worker on {member.where} failed: {failure.message.splitlines()[-1]}")
            return
        self._give_up(member, failure)

    def _give_up(self, member: Member, failure: Failure) -> NoReturn:
        if failure.ours:
            raise PolicyError(f"on {member.where}: {failure.message}")
        raise ClusterError(
            f"{self._failures} workers in a row failed, the last on {member.where}: {failure.message}\n"
            "Fix the cause, then run the same command again: it goes on where it was."
        )

    def _compare(self, member: Member, ready: Ready) -> None:
        fingerprint = ready.fingerprint
        if not self._fingerprint:
            self._fingerprint, self._text_only, self._first = fingerprint, ready.text_only, member
        if fingerprint != self._fingerprint:
            assert self._first is not None
            raise PolicyError(
                f"the policy {self._setup.model!r} is {self._fingerprint} on {self._first.where} and {fingerprint} on "
                f"{member.where}. Give every machine the same model files, then run the same command again."
            )

    def _check_patience(self, served: bool) -> None:
        now = time.monotonic()
        if served:
            self._served = self._said = now
        elif now - self._served > PATIENCE_SECONDS:
            raise ClusterError(
                f"no worker for {PATIENCE_SECONDS:g} seconds: {self._fleet.describe()}. "
                "What was finished is on disk. Add nodes, or set cluster.gpus, cpus or workers to fit, then "
                "run the same command again."
            )
        elif now - self._said > SAY_SECONDS:
            self._said = now
            say(f"waiting for a worker: {self._fleet.describe()}")


@contextmanager
def sampler(config: ClusterConfig, setup: Setup) -> Iterator[AnyPolicy | Cluster]:
    """What ``collect`` samples from: a policy made in this process, or workers of a cluster that make it."""
    if not config.address:
        yield setup.make_policy()
    else:
        with Cluster(config, setup) as cluster:
            yield cluster
