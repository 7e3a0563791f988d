"""Conversations that got no reply: kept back until it is clear that they are the exception, and the limit on them."""

from __future__ import annotations

from collections import Counter

from drift.dataset.store import TrajectoryWriter
from drift.dataset.tally import NO_REPLY, failure_kind
from drift.errors import PolicyError
from drift.types import Trajectory

# Share of the conversations that may fail for want of a reply, unless the policy says otherwise (``max_failed``).
MAX_FAILED = 0.05
# The prompts of a small run that may fail whatever share they are: one odd prompt of ten is no reason to stop.
ODD_PROMPTS = 3


class Failures:
    """Hands conversations on to the writer, but for those that got no reply: these it keeps back until the end.

    A run that is stopped before tries them again when it is started again, after whatever was wrong has been seen to.

    Args:
        writer: of the data set.
        planned: conversations of the collection, those on disk among them.
        limit: share of them that may fail.

    Attributes:
        delivered: conversations that came, kept back or not.
    """

    def __init__(self, writer: TrajectoryWriter, planned: int, limit: float) -> None:
        self._writer, self._planned, self._limit = writer, planned, limit
        self._kept: list[Trajectory] = []
        self._failed_tasks: Counter[str] = Counter()
        self.delivered = 0

    def deliver(self, trajectory: Trajectory) -> None:
        """Take one that has ended; raises ``PolicyError`` where too many got no reply."""
        self.delivered += 1
        failed = (trajectory.error or "").startswith(NO_REPLY)
        if not failed and not (trajectory.stop_reason == "context" and not trajectory.turns):
            self._writer.append(trajectory)
            return
        self._kept.append(trajectory)
        self._failed_tasks[trajectory.task_id] += failed
        count, tasks = self._failed_tasks.total(), len(+self._failed_tasks)
        if failed and count > self._limit * self._planned and (tasks > ODD_PROMPTS or not self._limit):
            raise self._stop(
                f"{count:,} of {self._planned:,} conversations got no reply, more than {self._limit:.0%} "
                "(policy.max_failed)"
            )

    def settle(self) -> None:
        """Record what was kept back; raises ``PolicyError`` where there is nothing else."""
        if self._kept and len(self._kept) == self.delivered and not self._writer.done:
            raise self._stop("no conversation got a reply")
        for trajectory in self._kept:
            self._writer.append(trajectory)

    def _stop(self, what: str) -> PolicyError:
        last = self._kept[-1].error or ""
        kinds = Counter(failure_kind(each.error or "") for each in self._kept)
        told = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        long = failure_kind(last) == "context"
        remedy = "Lower max_new_tokens, or take a model with a longer context" if long else "See to that"
        said = last.removeprefix(NO_REPLY).rstrip(".")
        again = f"{remedy}, then run the same command again: it goes on where it was."
        return PolicyError(f"{what} ({told}). The last: {said}. {again}")
