"""What was sampled so far, and what all of it will cost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from drift.progress import Progress
from drift.types import Completion

# Replies after which the cost of all is told.
FIRST_BATCH = 64


class Meter:
    """Counts replies and tokens, and shows them in a progress.

    Args:
        policy: what replies; one that has ``tokens_sampled`` also tells the tokens of replies under way.
        progress: where they are shown.
        conversations: how many are still to be held.
        turns: the most replies of one.
    """

    def __init__(self, policy: Any, progress: Progress, conversations: int, turns: int) -> None:
        self._policy, self._progress = policy, progress
        self._conversations, self._turns = conversations, turns
        self._start, self._before = time.monotonic(), getattr(policy, "tokens_sampled", 0)
        self._replies = self._tokens = 0
        progress.detail = self.words

    @property
    def tokens(self) -> int:
        """Sampled so far."""
        running: int | None = getattr(self._policy, "tokens_sampled", None)
        return self._tokens if running is None else running - self._before

    def words(self) -> str:
        """Replies, tokens and tokens per second."""
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self._replies:,} replies, {self.tokens:,} tokens, {self.tokens / seconds:,.0f} tokens/s"

    def replied(self, completion: Completion) -> None:
        """Note a reply; after the first batch of them, say what all will take."""
        self._replies += 1
        self._tokens += len(completion.token_ids)
        if self._replies == min(FIRST_BATCH, self._conversations):
            self._progress.say(self.cost())

    def cost(self) -> str:
        """What all conversations take at most, if they go on as they began."""
        seconds, times = time.monotonic() - self._start, self._conversations * self._turns / self._replies
        return (
            f"{self._replies} replies took {self._tokens:,} tokens and {_duration(seconds)}; "
            f"all {self._conversations:,} conversations of at most {self._turns} replies take up to "
            f"{self._tokens * times:,.0f} tokens and {_duration(seconds * times)}"
        )

    async def watch(self) -> None:
        """Show how it goes while nothing is finished, until cancelled."""
        while True:
            await asyncio.sleep(1)
            self._progress.advance(0)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
