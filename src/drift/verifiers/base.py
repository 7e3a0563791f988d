"""What a verifier is, and the record of one check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

from drift.problems.boxed import boxed as boxed  # a solution's answer is boxed as a reply's is

Verdict = Literal["right", "wrong", "unparseable"]
VERDICTS: tuple[str, ...] = get_args(Verdict)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome of one check.

    Attributes:
        verdict: ``right``, ``wrong``, or ``unparseable``: no answer could be read, which is not the same as wrong.
        answer: what was read, in normalised form, compared to count repeats; ``None`` exactly if unparseable.
        reason: why nothing could be read, for example ``deadline``; empty otherwise.
        score: how good it is, from a verifier that grades (0 to 10); ``None`` from one that only knows right and wrong.
        scores: further scores by criterion, on the same scale, as far as they were given.
    """

    verdict: Verdict
    answer: str | None
    reason: str = ""
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.verdict == "right"


@runtime_checkable
class Verifier(Protocol):
    """A check of an answer against the gold one.

    Register a class (or a function returning one) under the entry-point group ``drift.verifiers``. Its keyword
    arguments are its settings. The same arguments give the same verdict, from any thread.
    """

    def verify(self, reply: str, gold: str) -> Verification:
        """Check the answer ``reply`` against ``gold``; raises ``ConfigError`` if ``gold`` itself can't be read."""
        ...

    async def verify_async(self, reply: str, gold: str) -> Verification:
        """The same without blocking the event loop, for many checks in flight at once."""
        ...


def judged(correct: bool, answer: str) -> Verification:
    """The record of an answer that could be read."""
    return Verification(verdict="right" if correct else "wrong", answer=answer)


def unparseable(reason: str) -> Verification:
    """The record of a reply in which no answer could be read, and why."""
    return Verification(verdict="unparseable", answer=None, reason=reason)
