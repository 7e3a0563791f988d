"""Who holds which assignment: handed out, delivered once, handed out again when its worker is lost. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from drift.rollouts.episode import Assignment


class Ledger:
    """The assignments of a run, each delivered exactly once whatever becomes of the workers.

    Args:
        todo: the assignments, handed out in this order.
    """

    def __init__(self, todo: Iterable[Assignment]) -> None:
        self._queue = deque(todo)
        self._ids = {assignment.trajectory_id for assignment in self._queue}
        self._done: set[str] = set()
        self._held: dict[str, dict[str, Assignment]] = {}
        self.requeued = 0
        self.duplicates = 0

    @property
    def left(self) -> int:
        """How many are not delivered yet, held ones included."""
        return len(self._ids) - len(self._done)

    def held(self, worker: str) -> int:
        """How many ``worker`` holds."""
        return len(self._held.get(worker, {}))

    def room(self, worker: str, *, concurrency: int, workers: int) -> int:
        """How many more ``worker`` should be handed.

        Enough for ``concurrency`` open conversations and a quarter more to go on with at once, but never more than its
        share of what is left among ``workers``: the first to be ready must not take what the others would have done.
        """
        share = -(-self.left // max(1, workers))
        return max(0, min(concurrency + max(1, concurrency // 4), share) - self.held(worker))

    def take(self, worker: str, count: int) -> list[Assignment]:
        """Hand up to ``count`` assignments to ``worker``."""
        taken: list[Assignment] = []
        held = self._held.setdefault(worker, {})
        while self._queue and len(taken) < count:
            assignment = self._queue.popleft()
            if assignment.trajectory_id not in self._done:
                held[assignment.trajectory_id] = assignment
                taken.append(assignment)
        return taken

    def deliver(self, worker: str, trajectory_id: str) -> bool:
        """Note a result of ``worker``; false if it is there already, whoever brought it, and must be dropped."""
        assert trajectory_id in self._ids, f"{worker} delivers {trajectory_id}, which nobody asked for"
        self._held.get(worker, {}).pop(trajectory_id, None)
        if trajectory_id in self._done:
            self.duplicates += 1
            return False
        self._done.add(trajectory_id)
        return True

    def lose(self, worker: str) -> int:
        """Put what ``worker`` held back at the head of the queue; returns how many."""
        again = [a for key, a in self._held.pop(worker, {}).items() if key not in self._done]
        self._queue.extendleft(reversed(again))
        self.requeued += len(again)
        return len(again)
